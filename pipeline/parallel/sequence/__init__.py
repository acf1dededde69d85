"""Sequence parallelism (Ulysses): the processes of a group hold a shard of the tokens of the same rows."""
