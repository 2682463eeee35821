"""Features of images as a file of their own, and what can be done with them: search, near-duplicates, scikit-learn."""
