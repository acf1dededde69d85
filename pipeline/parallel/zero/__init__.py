"""ZeRO through DeepSpeed: ranks shard optimizer state, from stage 2 on gradients, and at stage 3 weights."""
