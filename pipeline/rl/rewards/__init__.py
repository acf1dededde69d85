"""Rewards of on-policy stages: recipe fields, reward models, Python functions."""
