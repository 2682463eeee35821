"""Weights and numbers of others: the authors' names for parameters, and their golden vectors."""
