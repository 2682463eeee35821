"""Speed and memory, each against a named peer, in one run: `python -m benchmarks.NAME` from the repository's root."""
