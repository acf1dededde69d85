"""The kind `merge`: adapters folded into full weights."""
