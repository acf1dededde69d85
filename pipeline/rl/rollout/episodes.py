"""Episodes, and the micro-batches in which they go through a model.

An episode holds token ids without padding. Padding exists only inside a micro-batch, on the right, where causal
attention never looks. So no mask is needed, no token is compared with the padding id, and padding may equal the end
token.

Shapes: B rows, T positions, N response tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.models.batching import length_batches
from pipeline.plain_data import Row


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        row: row with `prompt` (messages) and any further columns.
        ids: tokens up to the beginning of the response.
    """

    row: Row
    ids: tuple[int, ...]


@dataclass
class Episode:
    """A prompt with one sampled response, and what was measured about it.

    Attributes:
        place: index in the full rollout, over all ranks.
        row: row of the prompt.
        prompt_ids: tokens of the prompt.
        response_ids: sampled tokens, at least one; the end token, if there is one, is the last.
        ended: whether the response ends with an end token.
        text: text of the response.
        score: combined score of all rewards, before clipping and penalties.
        earned_T: part of the score that each token earned; empty if all of it is given at the last token.
        old_T: log-probability of each response token under the policy that sampled it.
        sampled_T: the same as computed by the rollout engine; empty if the engine samples from the policy's own law.
        reference_T: the same under the reference; empty if not measured.
        values_T: V(s_t) before each token.
        after: V after the last token, for a truncated response.
        entropy_T: entropy of the policy at each token.
        advantages_T: advantages, whitened if the settings say so.
        returns_T: targets of the value function.
        hidden_TH: cached hidden states of the frozen lower layers for prompt and response; None if not cached.
    """

    place: int
    row: Row
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    ended: bool
    text: str
    score: float = 0.0
    earned_T: Tensor = field(default_factory=lambda: torch.empty(0))
    old_T: Tensor = field(default_factory=lambda: torch.empty(0))
    sampled_T: Tensor = field(default_factory=lambda: torch.empty(0))
    reference_T: Tensor = field(default_factory=lambda: torch.empty(0))
    values_T: Tensor = field(default_factory=lambda: torch.empty(0))
    after: float = 0.0
    entropy_T: Tensor = field(default_factory=lambda: torch.empty(0))
    advantages_T: Tensor = field(default_factory=lambda: torch.empty(0))
    returns_T: Tensor = field(default_factory=lambda: torch.empty(0))
    hidden_TH: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of tokens of prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)


def idle_episode() -> Episode:
    """Return a dummy episode for extra collective passes; its place is -1, and it does not count for the loss."""
    idle = Episode(-1, {}, (0,), (0,), False, "")
    for name in ("old_T", "values_T", "advantages_T", "returns_T", "reference_T"):
        setattr(idle, name, torch.zeros(1))
    return idle


@dataclass(frozen=True)
class MicroBatch:
    """Episodes that go through a model together.

    Attributes:
        ids_BT: prompts and responses, padded on the right.
        positions_N: flat index, over all rows, of the position that predicts each response token.
        targets_N: the response tokens, row by row.
        hidden_BTH: cached hidden states of the lower layers, padded on the right; None if not cached.
        sizes: number of response tokens of each row.
    """

    ids_BT: Tensor
    positions_N: Tensor
    targets_N: Tensor
    hidden_BTH: Tensor | None
    sizes: tuple[int, ...]


def micro_batches(episodes: Sequence[Episode], token_budget: int) -> Iterator[list[Episode]]:
    """Yield episodes of similar length whose padded size stays within a budget of tokens."""
    for rows in length_batches([episode.length for episode in episodes], token_budget):
        yield [episodes[row] for row in rows]


def pack(episodes: Sequence[Episode], device: torch.device, *, one_more: bool = False) -> MicroBatch:
    """Pack episodes into one micro-batch, padded to the longest of them.

    Args:
        episodes: episodes to pack.
        device: device of the model.
        one_more: also include the position after each response's last token, for the value of a truncated response.
    """
    width = max(episode.length for episode in episodes)
    ids_BT = torch.zeros((len(episodes), width), dtype=torch.long)
    positions: list[int] = []
    targets: list[int] = []
    for row, episode in enumerate(episodes):
        ids = [*episode.prompt_ids, *episode.response_ids]
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        count = len(episode.response_ids) + one_more
        start = row * width + len(episode.prompt_ids) - 1
        positions += range(start, start + count)
        targets += [*episode.response_ids, *([0] * one_more)]
    return MicroBatch(
        ids_BT.to(device),
        torch.tensor(positions, device=device),
        torch.tensor(targets, device=device),
        _padded_hidden(episodes, width, device),
        tuple(len(episode.response_ids) + one_more for episode in episodes),
    )


def _padded_hidden(episodes: Sequence[Episode], width: int, device: torch.device) -> Tensor | None:
    if any(episode.hidden_TH is None for episode in episodes):
        return None
    states = [episode.hidden_TH for episode in episodes if episode.hidden_TH is not None]
    hidden_BTH = states[0].new_zeros((len(states), width, states[0].shape[-1]))
    for row, hidden_TH in enumerate(states):
        hidden_BTH[row, : len(hidden_TH)] = hidden_TH
    return hidden_BTH.to(device)


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack one-dimensional tensors, padded with zeros on the right; return them and their mask, both (B, T)."""
    width = max(len(row) for row in rows)
    stacked_BT = torch.zeros((len(rows), width), dtype=rows[0].dtype)
    mask_BT = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        stacked_BT[i, : len(row)] = row
        mask_BT[i, : len(row)] = True
    return stacked_BT, mask_BT
