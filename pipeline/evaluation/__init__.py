"""How good a checkpoint is and how sure that is: statistics, records, pages and figures.

Pure numerics and rendering: no model is loaded here and torch is never imported. Every figure that a reader could
act on is an `Estimate`, a value with its interval and the number of observations behind it.
"""
