"""Machinery shared by the stages that train: batches, arguments, the loop and its checkpoints. No `Trainer` of ours."""
