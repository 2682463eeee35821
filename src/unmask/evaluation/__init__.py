"""What an encoder is worth: neighbours and linear probes on its frozen features, and what needs no label."""
