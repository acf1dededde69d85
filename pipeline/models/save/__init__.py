"""Saves a model as an artifact, and verifies the written files."""
