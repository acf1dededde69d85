"""Shapes in, bytes and operations out: what a stage needs, computed before it runs. No torch, no files."""
