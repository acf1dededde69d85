"""The kind `collect`: people label pairs of answers."""
