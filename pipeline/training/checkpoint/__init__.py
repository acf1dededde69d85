"""Checkpoints of a training stage: complete, independent of the layout, and the best one."""
