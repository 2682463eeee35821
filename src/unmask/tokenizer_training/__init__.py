"""Training of image tokenizers: from a folder of images to one file."""
