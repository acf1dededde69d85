"""trueup: one recipe takes a language model from raw text to an evaluated, aligned checkpoint."""

__version__ = "0.1.0"
