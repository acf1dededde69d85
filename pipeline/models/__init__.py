"""Models: loading and saving, adapters, the chat format, sampling and log-probabilities."""
