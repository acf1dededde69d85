"""FSDP2 through accelerate: processes shard weights, gradients and optimizer state as DTensors."""
