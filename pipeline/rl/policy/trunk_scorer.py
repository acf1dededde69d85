"""Scorer for a reward model that is an adapter on the policy's trunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.models.batching import length_batches
from pipeline.parallel.ranks import Ranks
from pipeline.rl.policy.adapters import TrunkReward
from pipeline.rl.policy.policy import Policy
from pipeline.rl.rewards.functions import Offered
from pipeline.rl.rewards.sources import Sample, Scorer


def trunk_scorer(policy: Policy, reward: TrunkReward, pad_id: int, *, token_budget: int = 4096) -> Scorer:
    """Return a scorer of samples.

    Args:
        policy: policy whose trunk carries the reward adapter.
        reward: adapter and score head.
        pad_id: padding token; the score is read at a row's last token, whatever that is.
        token_budget: padded tokens per forward pass.
    """

    def scored(samples: Sequence[Sample], offered: Offered) -> list[float]:
        rows = [[*sample.prompt_ids, *sample.response_ids] for sample in samples]
        scores = [0.0] * len(rows)
        batches = list(length_batches([len(row) for row in rows], token_budget))
        # With sharded weights a forward pass is collective: all processes must agree on their number beforehand.
        most = int(Ranks.current().all_reduce_max(len(batches))) if policy.is_collective else len(batches)
        for batch in batches:
            width = max(len(rows[row]) for row in batch)
            ids = torch.tensor([[*rows[row], *[pad_id] * (width - len(rows[row]))] for row in batch])
            ends = torch.tensor([i * width + len(rows[row]) - 1 for i, row in enumerate(batch)])
            values = policy.scores(reward, ids.to(policy.device), ends.to(policy.device)).tolist()
            for row, value in zip(batch, values, strict=True):
                scores[row] = value
        if policy.is_collective:
            idle = torch.zeros((1, 1), dtype=torch.long, device=policy.device)
            for _ in range(most - len(batches)):
                policy.scores(reward, idle, idle[0])
        return scores

    return scored
