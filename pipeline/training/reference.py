"""Log-probabilities of responses under the reference (the stage's starting model), computed once and cached."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.load.adapters import without_adapter
from pipeline.models.logprobs import response_logprobs
from pipeline.parallel.ranks import Ranks, any_reduce
from pipeline.stage import StageContext
from pipeline.training.arguments import precision_of

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel

    from pipeline.training.data.encoding import EncodedRow


@dataclass(frozen=True)
class Reference:
    """Part of a trl trainer on encoded rows: computes the reference's log-probabilities, in place of trl.

    With FSDP trl would load a second model as reference and never use it. So `is_fsdp_enabled` stays False until
    training begins (`TrainerHooks`).

    Attributes:
        ctx: the stage's context.
        columns: name of each column with reference log-probabilities, to the column with the response's ids.
    """

    ctx: StageContext
    columns: Mapping[str, str]

    def added(self, model: PreTrainedModel | PeftModel, dataset: Dataset, name: str) -> Dataset:
        """Return a dataset with the columns of the reference's log-probabilities; ``name`` names its cache."""
        return with_reference(self.ctx, model, dataset, self.columns, self.ctx.work / f"reference-{name}.json")


def with_reference(
    ctx: StageContext, model: PreTrainedModel | PeftModel, dataset: Dataset, columns: Mapping[str, str], cache: Path
) -> Dataset:
    """Add the reference's summed log-probabilities of responses to ``dataset``.

    Every process computes its share of the rows. The values are cached in a file, exact to the bit, so a resumed stage
    does not compute them again.

    Args:
        ctx: the stage's context.
        model: starting model of the policy; its adapter is disabled meanwhile.
        dataset: rows with `prompt_ids` and the responses.
        columns: name of each new column, to the column with the response's ids.
        cache: the cache file, in the stage's scratch folder.
    """
    ranks = Ranks.current()
    if not any_reduce(cache.is_file()):
        values = _computed(ctx, model, dataset.to_list(), columns)
        if ranks.is_first:
            partial = cache.with_suffix(".part")
            partial.write_text(json.dumps(values), encoding="utf-8")
            partial.replace(cache)
        ranks.barrier()
    for column, logps in json.loads(cache.read_text(encoding="utf-8")).items():
        dataset = dataset.add_column(column, logps)
    return dataset


@contextmanager
def unhashed(trainer_class: type) -> Iterator[None]:
    """Keep trl from hashing the model for its own cache, which the stage does not use: sharded weights have no hash."""
    modules = (sys.modules[one.__module__] for one in trainer_class.__mro__)
    module: Any = next(module for module in modules if hasattr(module, "hash_module"))
    hash_module = module.hash_module
    module.hash_module = lambda model: ""
    try:
        yield
    finally:
        module.hash_module = hash_module


def _computed(
    ctx: StageContext, model: PreTrainedModel | PeftModel, rows: list[EncodedRow], columns: Mapping[str, str]
) -> dict[str, list[float]]:
    """Return each column's values in the order of ``rows``, on every process.

    The processes of a tensor- or sequence-parallel group compute the same rows.
    """
    ranks = Ranks.current() if ctx.replicas > 1 else Ranks()
    share = Ranks(ranks.index * ctx.replicas // ranks.count, ctx.replicas)
    own_rows = share.shard(rows)
    values = {}
    for i, (column, ids) in enumerate(columns.items()):

        def show(done: int, _: int, before: int = i * len(own_rows)) -> None:
            if ranks.count == 1:  # collective, and several processes have different numbers of batches
                ctx.stop_if_asked()
            ctx.progress(before + done, len(columns) * len(own_rows))

        with without_adapter(model):
            tokens = response_logprobs(
                model,
                [row["prompt_ids"] for row in own_rows],
                [row[ids] for row in own_rows],
                precision=precision_of(ctx),
                on_progress=show,
            )
        if ranks.count > 1:
            ctx.stop_if_asked()
        sums = [(index, math.fsum(row)) for index, row in zip(share.shard([*range(len(rows))]), tokens, strict=True)]
        values[column] = [value for _, value in sorted(dict(ranks.all_gather(sums)).items())]
    return values
