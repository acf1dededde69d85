"""Collect: people say which of two answers is better; their labels become the pairs reward, dpo and kto train on.

    data:
      answers: {path: answers.jsonl}                 # prompt and two answers: the rows of preference data
      pairs:   {artifact: labels, file: preferences.jsonl}
    stages:
      labels: {kind: collect, data: answers, overlap: 0.15}
      dpo:    {kind: dpo, data: pairs, model: sft}

`trueup collect RECIPE labels` opens the labelling app; `trueup run` stops at this stage with exit code 3 until the
labels are complete. Which answer the data calls the chosen one is neither used nor shown. Candidates of a `sample`
stage (`file: candidates.jsonl`) are paired here. With `pair_choice: rank`, and with `file: groups.jsonl`, people rank
three to six answers.

With `models` in place of `data`, people talk with two of these checkpoints at a time, choose an answer at each turn,
and the dialogue goes on with it; models behind servers (`endpoints`) take part too:

      labels: {kind: labels, models: [sft, dpo], live: {labels: 200, turns: 4}}

References: Stiennon et al. 2020, arXiv:2009.01325, section 3.3 (comparisons by people); Touvron et al. 2023,
arXiv:2307.09288, section 3.2 (the strength of a preference as a margin); Bai et al. 2022, arXiv:2204.05862, section 2
(live dialogues with two models); Ouyang et al. 2022, arXiv:2203.02155, section 3.5 (rankings of 4 to 9 answers, of
which all pairs are learnt from).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.endpoints.answers import AnswerEndpoint, Endpoints, endpoint_problems
from pipeline.errors import Problem
from pipeline.kind.traits import Packages, Reading, Traits
from pipeline.preferences.anchors import default_url
from pipeline.preferences.dimensions import Dimensions
from pipeline.records.pair_choice import PairChoice
from pipeline.stage import Data, Input, PerRound, ResolvedInput, Runtime, StageConfig, register_kind


class Live(StageConfig):
    """`live:` of a collection: how people talk with the models.

    Attributes:
        labels: choices after which the batch is finished.
        turns: messages of a dialogue.
        temperature: sampling temperature.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 keeps all.
        max_new_tokens: longest answer.
    """

    labels: int = Field(default=100, ge=1)
    turns: int = Field(default=8, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=256, ge=1)


_NOT_RANKED = ("gold", "repeats", "dimensions")
"""Fields that concern pairs, and not groups that people rank."""

_OF_PAIRS = ("labels_per_item", "overlap", "gold", "repeats", "aggregate")
"""Fields that concern pairs of the data."""


class Config(PairChoice):
    """Configuration of a collection.

    Attributes:
        data: pairs of answers to compare, or candidates to pair or rank (`PairChoice` says how).
        models: in place of `data`, checkpoints that people talk with, two at a time.
        endpoints: models behind servers that people talk with too, by name; the app asks them, not the stage.
        live: how they talk; for `models` and `endpoints`.
        openings: conversations to begin a dialogue with, in turn; for `models` and `endpoints`. The last message is
            offered to the person, the turns before it are part of the dialogue.
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

    data: Annotated[str | None, Data(("preference", "candidates"))] = None
    models: Annotated[list[str], Input(external=True)] = Field(default=[])
    endpoints: Endpoints = Field(default={})
    live: Live | None = None
    openings: Annotated[str | None, Data("prompt")] = None
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
        """Return a problem if it is not either pairs or models, and for each field that the other one has."""
        if bool(self.data) == self.is_live:
            talked = "models" if self.models or not self.data else "endpoints"
            statement = f"data and {talked} are both set" if self.data else "neither data nor models is set"
            expected = "`data`, pairs of answers to compare, or `models`, at least two checkpoints to talk with"
            return [Problem(statement, expected)]
        problems = super().check()
        if self.gold is None and "gold_share" in self.model_fields_set:
            statement = f"gold_share is {self.gold_share:g}, without `gold`"
            problems.append(Problem(statement, "pairs whose better answer is known", "add `gold:`"))
        if self.data:
            problems += self.ranking_problems() if self.pair_choice == "rank" else []
            fields = [name for name in ("live", "openings") if getattr(self, name) is not None]
            return problems + [Problem(f"{name} has no effect with data", "`models` to talk with") for name in fields]
        is_twice = len(set(self.models)) < len(self.models)
        if is_twice or len(self.models) + len(self.endpoints) < 2:
            statement = (
                "models names one twice" if is_twice else f"{'models' if self.models else 'endpoints'} names one"
            )
            problems.append(Problem(statement, "two different checkpoints or more, or an endpoint beside one"))
        problems += endpoint_problems(self.endpoints, self.models)
        for name in (*_OF_PAIRS, *PairChoice.model_fields):
            if getattr(self, name) != type(self).model_fields[name].default:
                is_choice = name in PairChoice.model_fields
                why = "the answers come as people talk" if is_choice else "nobody else sees a person's dialogue"
                remedy = f"leave it out: {why}"
                problems.append(Problem(f"{name} has no effect with models", remedy=remedy))
        return problems

    def ranking_problems(self) -> list[Problem]:
        """Return a problem for each field that does not apply where people rank."""
        changed = [name for name in _NOT_RANKED if getattr(self, name) != type(self).model_fields[name].default]
        remedy = "leave it out, or pair the answers with another `pair_choice`"
        return [Problem(f"{name} applies to pairs, and people rank groups here", "", remedy) for name in changed]

    @property
    def is_live(self) -> bool:
        """Whether people talk with models, and do not compare pairs of the data."""
        return bool(self.models or self.endpoints)

    @property
    def talk(self) -> Live:
        """How people talk with the models."""
        return self.live or Live()


def ledger_url(config: Config, store: Path) -> str:
    """Return the SQLAlchemy URL of the ledger."""
    return os.environ.get("TRUEUP_LEDGER") or config.ledger or default_url(store)


def ledger_names(sources: Iterable[ResolvedInput], endpoints: Mapping[str, AnswerEndpoint]) -> list[str]:
    """Return the names under which the ledger has the models of live dialogues: checkpoints, then endpoints."""
    named = [(source.ref, source.fingerprint) for source in sources]
    named += [(name, endpoint.fingerprint) for name, endpoint in sorted(endpoints.items())]
    return [f"{name} {fingerprint[:12]}" for name, fingerprint in named]


for _kind in ("labels", "collect"):  # the second is the older word
    register_kind(
        _kind,
        version=3,
        config=Config,
        run="pipeline.stages.collect.run:run",
        makes="preferences",
        doc=__doc__,
        traits=Traits(
            reads={"openings": Reading(long_prompts="answered")},
            packages=Packages(("sqlalchemy", "krippendorff"), "pip install 'trueup[collect]'"),
        ),
    )
