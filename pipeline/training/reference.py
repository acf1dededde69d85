"""Log-probabilities of responses under the reference, a stage's start: computed once, kept across a kill."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.models.adapters import without_adapter
from pipeline.models.logprobs import response_logprobs
from pipeline.parallel.ranks import Ranks, any_rank
from pipeline.stage import StageContext
from pipeline.training.arguments import precision_of


class OwnReference:
    """Mixin for a trainer of trl whose reference passes are `with_reference`'s.

    Under FSDP trl would load a second model to be the reference, and never ask it. So it learns of FSDP only once it
    has set itself up, when it begins to train (`ConsolidatedCheckpoint`).
    """

    is_fsdp_enabled: bool

    def create_accelerator_and_postprocess(self) -> None:
        """Set accelerate up, and say nothing of FSDP."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        self.is_fsdp_enabled = False


def with_reference(ctx: StageContext, model: Any, dataset: Any, columns: Mapping[str, str], kept: Path) -> Any:
    """Return ``dataset`` with the reference's summed log-probabilities of responses.

    Every process computes its share. They are kept in a file of the stage's scratch folder, so a resumed stage does not
    compute them again; every number is written with enough digits to come back bit for bit.

    Args:
        ctx: of the stage.
        model: the start of the policy; its adapter is switched off.
        dataset: rows with `prompt_ids` and the responses.
        columns: new column to the one that holds the response's ids.
        kept: the file.
    """
    ranks = Ranks.current()
    if not any_rank(kept.is_file()):
        values = _computed(ctx, model, dataset.to_list(), columns)
        if ranks.is_first:
            part = kept.with_suffix(".part")
            part.write_text(json.dumps(values), encoding="utf-8")
            part.replace(kept)
        ranks.wait()
    for column, logps in json.loads(kept.read_text(encoding="utf-8")).items():
        dataset = dataset.add_column(column, logps)
    return dataset


@contextmanager
def unhashed(trainer_class: type) -> Iterator[None]:
    """Keep trl from hashing a model for a cache of its own, which the stage does not use: shards have no hash."""
    module: Any = sys.modules[trainer_class.__module__]
    hash_module = module.hash_module
    module.hash_module = lambda model: ""
    try:
        yield
    finally:
        module.hash_module = hash_module


def _computed(
    ctx: StageContext, model: Any, rows: list[dict[str, Any]], columns: Mapping[str, str]
) -> dict[str, list[float]]:
    """Return each column's values, in the order of ``rows``; every process gets all of them.

    Processes that work on the same rows compute the same ones.
    """
    ranks = Ranks.current() if ctx.replicas > 1 else Ranks()
    share = Ranks(ranks.index * ctx.replicas // ranks.count, ctx.replicas)
    mine = share.shard(rows)
    values = {}
    for i, (column, ids) in enumerate(columns.items()):

        def show(done: int, _: int, before: int = i * len(mine)) -> None:
            if ranks.count == 1:  # several have different numbers of batches: they may not ask one another here
                ctx.stop_if_asked()
            ctx.progress(before + done, len(columns) * len(mine))

        with without_adapter(model):
            tokens = response_logprobs(
                model,
                [row["prompt_ids"] for row in mine],
                [row[ids] for row in mine],
                precision=precision_of(ctx),
                on_progress=show,
            )
        if ranks.count > 1:
            ctx.stop_if_asked()
        sums = [(place, math.fsum(row)) for place, row in zip(share.shard([*range(len(rows))]), tokens, strict=True)]
        values[column] = [value for _, value in sorted(dict(ranks.gathered(sums)).items())]
    return values
