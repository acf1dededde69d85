"""Plots of training runs: loss curves, reward over KL."""
