"""Sequence parallelism (Ulysses): each rank of a group holds a shard of the tokens of the same rows."""
