"""What labels say beside tokens. No torch."""

IGNORE = -100
"""Label of a token that does not count towards the loss; that of torch's cross entropy."""
