"""Evaluation of checkpoints and reward models: statistics, records, pages and figures.

Pure numerics and rendering: this package loads no model and never imports torch. Every figure that a reader could act
on is an `Estimate`: a value, its confidence interval and the number of observations.
"""
