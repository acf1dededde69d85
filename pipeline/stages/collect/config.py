"""Collect: people say which of two answers is better; their labels become the pairs reward, dpo and kto train on.

    data:
      answers: {path: answers.jsonl}                 # prompt and two answers: the rows of preference data
      pairs:   {artifact: labels, file: preferences.jsonl}
    stages:
      labels: {kind: collect, data: answers, overlap: 0.15}
      dpo:    {kind: dpo, data: pairs, model: sft}

`trueup collect RECIPE labels` opens the labelling app; `trueup run` stops at this stage with exit code 3 until the
labels are complete. Which answer the data calls the chosen one is neither used nor shown. Candidates of a `sample`
stage (`file: candidates.jsonl`) are paired here.

References: Stiennon et al. 2020, arXiv:2009.01325, section 3.3 (comparisons by people); Touvron et al. 2023,
arXiv:2307.09288, section 3.2 (the strength of a preference as a margin).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.errors import Problem
from pipeline.kind.traits import Packages, Traits
from pipeline.preferences.dimensions import Dimensions
from pipeline.preferences.pair_choice import PairChoice
from pipeline.stage import Data, PerRound, Runtime, register_kind


class Config(PairChoice):
    """Configuration of a collection.

    Attributes:
        data: pairs of answers to compare, or candidates to pair (`PairChoice` says how).
        labels_per_item: people who label each pair.
        overlap: share of the pairs that three people label, so that agreement can be measured.
        gold: pairs whose better answer is known, hidden among the others to see how people label; they make no rows.
        gold_share: expected share of them among what a person is shown.
        repeats: expected share of pairs that a person is shown again, with the sides exchanged.
        dimensions: what people may judge besides the verdict; each is rated or compared.
        guidelines: what annotators are told, in Markdown.
        aggregate: how several labels of a pair become one: by majority, or by Dawid and Skene's estimate.
        batch: name of the labels in the ledger; the stage's name when empty.
        ledger: SQLAlchemy URL of the database of labels; `TRUEUP_LEDGER` overrides it, the default is a file in the
            store.
    """

    data: Annotated[str, Data(("preference", "candidates"))]
    labels_per_item: int = Field(default=1, ge=1)
    overlap: float = Field(default=0.0, ge=0, le=1)
    gold: Annotated[str | None, Data("preference")] = None
    gold_share: float = Field(default=0.05, ge=0, le=0.4)
    repeats: float = Field(default=0.0, ge=0, le=0.4)
    dimensions: Dimensions = ()
    guidelines: str = ""
    aggregate: Literal["majority", "dawid_skene"] = "majority"
    batch: Annotated[str, Runtime(), PerRound()] = ""
    ledger: Annotated[str | None, Runtime()] = None

    def check(self) -> list[Problem]:
        """Return the problems of the choice of pairs, and one if a share of gold items is given without any."""
        problems = super().check()
        if self.gold is None and "gold_share" in self.model_fields_set:
            statement = f"gold_share is {self.gold_share:g}, without `gold`"
            problems.append(Problem(statement, "pairs whose better answer is known", "add `gold:`"))
        return problems


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
