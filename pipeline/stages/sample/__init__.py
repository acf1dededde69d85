"""The kind `sample`: checkpoints answer prompts, and the answers are candidates to compare."""
