"""Engines that sample responses: our own batched decoding, `model.generate` of transformers, and vLLM.

Every stage samples by these: `sample` and `evaluate` from checkpoints, on-policy stages from the policy they train.
"""
