"""The report on choosing the best of n answers, and its page."""
