"""What the training stages share: batches, trainer arguments, the training loop, checkpoints."""
