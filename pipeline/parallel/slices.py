"""Sequence parallelism: the processes of a group hold a slice of the tokens of the same rows each.

DeepSpeed's Ulysses exchanges slices of tokens for slices of heads around attention, and sums gradients over all
processes. Owns how rows are cut, and the check that a model computes from slices what it computes from whole rows.

Reference: Jacobs et al. 2023, arXiv:2309.14509; Bekman et al. 2025, arXiv:2506.13996 (for transformers). DeepSpeed's
`UlyssesSPDataLoaderAdapter` is not used: it deals the micro-batches of one step to several, and knows neither epochs nor
where a resumed one begins.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.parallel.ranks import Ranks

IGNORE = -100
"""Label of a token that does not count towards the loss."""

PROBE_TOKENS, PROBE_ROUNDING = 16, {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Tokens of the rows a prepared model is tried with, in each slice; and how far rounding may move their logits."""


@dataclass(frozen=True)
class Slices:
    """Which slice is this process's, and which group of processes it is in.

    Attributes:
        index: of the slice.
        count: of slices, the processes of a group.
        group: the groups share the rows of a batch.
        groups: of them.
    """

    index: int = 0
    count: int = 1
    group: int = 0
    groups: int = 1

    @staticmethod
    def of(ranks: Ranks, count: int) -> Slices:
        """Return this process's: neighbours form a group, as DeepSpeed has it (`parallel_state_sp.py`)."""
        return Slices(ranks.index % count, count, ranks.index // count, ranks.count // count)

    def cut(self, tokens: Tensor) -> Tensor:
        """Return this process's slice of (batch, tokens); the tokens divide."""
        width = tokens.shape[1] // self.count
        return tokens[:, self.index * width : (self.index + 1) * width].contiguous()

    def batch(self, batch: dict[str, Tensor], pad_id: int) -> dict[str, Tensor]:
        """Return this process's slice of a padded batch, with each token's place in its row, and what follows it.

        Rows are padded to a multiple of the slices. Labels are shifted before they are cut: what the last token of a
        slice predicts is the first of the next one.

        Args:
            batch: `input_ids`, `labels` and perhaps `attention_mask`, each (batch, tokens).
            pad_id: token to pad with.
        """
        ids, labels = batch["input_ids"], batch["labels"]
        rest = -ids.shape[1] % self.count
        ids = torch.nn.functional.pad(ids, (0, rest), value=pad_id)
        follows = torch.nn.functional.pad(labels, (0, rest + 1), value=IGNORE)[:, 1:]
        places = torch.arange(ids.shape[1]).expand_as(ids)
        made = {"input_ids": ids, "position_ids": places, "labels": follows, "shift_labels": follows}
        if "attention_mask" in batch:
            made["attention_mask"] = torch.ones_like(ids)  # padding is on the right: a causal mask hides it
        return {name: self.cut(tensor) for name, tensor in made.items()}


def parallelism(slices: Slices, kernel: str) -> Any:
    """Return accelerate's configuration of it.

    Args:
        slices: of this process.
        kernel: `transformers`' name of the attention, torch's (`sdpa`) or a FlashAttention.
    """
    from accelerate import ParallelismConfig
    from accelerate.utils import DeepSpeedSequenceParallelConfig

    handler = DeepSpeedSequenceParallelConfig(sp_seq_length_is_variable=True, sp_attn_implementation=kernel)
    return ParallelismConfig(
        sp_size=slices.count, sp_backend="deepspeed", sp_handler=handler, dp_replicate_size=slices.groups
    )


@torch.no_grad()
def difference(engine: Any, kernel: str, slices: Slices, rows: int) -> float:
    """Return how far a prepared model's logits of sliced rows are from those of whole ones, relative to their norm.

    A model that attends past DeepSpeed's exchange, or by other rules than a causal mask, differs; every process calls it.

    Args:
        engine: DeepSpeed's, around the model.
        kernel: attention the exchange is put around.
        slices: of this process.
        rows: of a micro-batch, which DeepSpeed was told.

    Raises:
        RuntimeError: DeepSpeed has put no exchange there.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    exchange = inspect.getclosurevars(ALL_ATTENTION_FUNCTIONS[kernel]).nonlocals.get("uattn")
    if exchange is None or exchange.world_size != slices.count:
        raise RuntimeError(f"DeepSpeed has not put its exchange around {kernel}")
    vocab = int(engine.module.config.get_text_config().vocab_size)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab, (rows, PROBE_TOKENS * slices.count), generator=random).to(engine.device)
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    was_training = engine.module.training
    engine.eval()
    try:
        whole = slices.cut(engine(input_ids=ids, position_ids=places, use_cache=False).logits)
        exchange.disable_in_eval = False
        sliced = engine(input_ids=slices.cut(ids), position_ids=slices.cut(places), use_cache=False).logits
    finally:
        exchange.disable_in_eval = True
        engine.train(was_training)
    return Ranks.current().largest(float((sliced - whole).float().norm() / whole.float().norm()))
