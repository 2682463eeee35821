"""What this machine makes of a method: how fast a step and the data are, what bounds them, which batch fits."""
