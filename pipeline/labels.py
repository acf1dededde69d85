"""The ignore index of labels. No torch."""

IGNORE = -100
"""Label of a token that does not count towards the loss; the default `ignore_index` of torch's cross entropy."""
