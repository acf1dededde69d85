"""The kind `evaluate`: checkpoints answer held-out prompts and are compared."""
