"""Pipeline parallelism: each process holds consecutive decoder layers, and micro-batches flow through them."""
