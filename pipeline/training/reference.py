"""Log-probabilities of responses under the reference, a stage's start: computed once, kept across a kill."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.models.adapters import without_adapter
from pipeline.models.logprobs import response_logprobs
from pipeline.stage import StageContext
from pipeline.training.arguments import precision_of


def with_reference(ctx: StageContext, model: Any, dataset: Any, columns: Mapping[str, str], kept: Path) -> Any:
    """Return ``dataset`` with the reference's summed log-probabilities of responses.

    They are kept in a file of the stage's scratch folder, so a resumed stage does not compute them again; every number
    is written with enough digits to come back bit for bit.

    Args:
        ctx: of the stage.
        model: the start of the policy; its adapter is switched off.
        dataset: rows with `prompt_ids` and the responses.
        columns: new column to the one that holds the response's ids.
        kept: the file.
    """
    if kept.is_file():
        values = json.loads(kept.read_text(encoding="utf-8"))
    else:
        rows = dataset.to_list()
        prompts = [row["prompt_ids"] for row in rows]
        values = {}
        for i, (column, ids) in enumerate(columns.items()):

            def show(done: int, _: int, before: int = i * len(rows)) -> None:
                ctx.stop_if_asked()
                ctx.progress(before + done, len(columns) * len(rows))

            with without_adapter(model):
                tokens = response_logprobs(
                    model, prompts, [row[ids] for row in rows], precision=precision_of(ctx), on_progress=show
                )
            values[column] = [math.fsum(row) for row in tokens]
        part = kept.with_suffix(".part")
        part.write_text(json.dumps(values), encoding="utf-8")
        part.replace(kept)
    for column, logps in values.items():
        dataset = dataset.add_column(column, logps)
    return dataset
