"""The kind `implicit_reward`: a reward from the log-ratio of a preference-trained policy and its reference."""
