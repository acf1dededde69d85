"""Reads data files: JSON Lines, JSON, CSV, Parquet, text, each also compressed."""
