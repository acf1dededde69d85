"""Pipeline parallelism: each rank holds consecutive decoder layers, and micro-batches flow through them."""
