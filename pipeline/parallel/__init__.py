"""Distributed training of a stage: splits batches, shards weights, and reduces metrics over the ranks."""
