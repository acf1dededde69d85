"""Checks of rows against stages before anything runs: sources, row counts, tokenizers, tokens."""
