"""Image tokenizers: networks that name each place of an image by one of a vocabulary of codes (the BEiT family)."""
