"""Faults that are done to small runs for real, a module a kind: what `benchmarks.recovery` counts and times."""
