"""Machinery shared by the stages that train: batches, arguments, the loop with its checkpoints. No `Trainer` of ours."""
