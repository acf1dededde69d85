"""The held-out report of a reward model, and its page."""
