"""Supervised tasks on a pre-trained encoder: each a trainee, as the methods of pre-training are."""
