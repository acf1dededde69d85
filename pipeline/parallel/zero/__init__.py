"""ZeRO through DeepSpeed: processes shard optimizer state, gradients and, at stage 3, weights."""
