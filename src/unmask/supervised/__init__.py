"""Supervised runs: a task on labelled data, trained by the one loop, scored, kept as a model file and a page."""
