"""Computes the bytes and operations of a stage from its model's shape, before it runs. Imports no torch."""
