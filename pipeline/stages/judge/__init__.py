"""The kind `judge`: a reward model, a function or a server says which of two responses is better."""
