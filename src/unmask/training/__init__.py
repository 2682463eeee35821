"""The training step, checkpoints and signals."""
