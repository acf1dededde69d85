"""Tensor parallelism: each rank holds a shard of every large matrix, and all ranks work on the same rows."""
