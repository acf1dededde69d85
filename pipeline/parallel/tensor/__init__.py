"""Tensor parallelism: each process holds a shard of every large matrix, and all work on the same rows."""
