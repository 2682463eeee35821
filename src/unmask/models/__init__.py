"""Encoders, decoders, heads and target networks."""
