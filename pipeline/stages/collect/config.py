"""Collect: people say which of two answers is better; their labels become the pairs reward, dpo and kto train on.

    data:
      answers: {path: answers.jsonl}                 # prompt and two answers: the rows of preference data
      pairs:   {artifact: labels, file: preferences.jsonl}
    stages:
      labels: {kind: collect, data: answers, overlap: 0.15}
      dpo:    {kind: dpo, data: pairs, model: sft}

`trueup collect RECIPE labels` opens the labelling app; `trueup run` stops at this stage with exit code 3 until the
labels are complete. Which answer the data calls the chosen one is neither used nor shown.

References: Stiennon et al. 2020, arXiv:2009.01325, section 3.3 (comparisons by people); Touvron et al. 2023,
arXiv:2307.09288, section 3.2 (the strength of a preference as a margin).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.kind.traits import Packages, Traits
from pipeline.stage import Data, PerRound, Runtime, StageConfig, register_kind


class Config(StageConfig):
    """Configuration of a collection.

    Attributes:
        data: pairs of answers to compare.
        labels_per_item: people who label each pair.
        overlap: share of the pairs that three people label, so that agreement can be measured.
        guidelines: what annotators are told, plain text.
        batch: name of the labels in the ledger; the stage's name when empty.
        ledger: SQLAlchemy URL of the database of labels; `TRUEUP_LEDGER` overrides it, the default is a file in the
            store.
    """

    data: Annotated[str, Data("preference")]
    labels_per_item: int = Field(default=1, ge=1)
    overlap: float = Field(default=0.0, ge=0, le=1)
    guidelines: str = ""
    batch: Annotated[str, Runtime(), PerRound()] = ""
    ledger: Annotated[str | None, Runtime()] = None


def ledger_url(config: Config, store: Path) -> str:
    """Return the SQLAlchemy URL of the ledger."""
    from pipeline.preferences.ledger import default_url  # imports sqlalchemy, and the plan imports this module

    return os.environ.get("TRUEUP_LEDGER") or config.ledger or default_url(store)


for _kind in ("labels", "collect"):  # the second is the older word
    register_kind(
        _kind,
        version=1,
        config=Config,
        run="pipeline.stages.collect.run:run",
        makes="preferences",
        doc=__doc__,
        traits=Traits(packages=Packages(("sqlalchemy", "krippendorff"), "pip install 'trueup[collect]'")),
    )
