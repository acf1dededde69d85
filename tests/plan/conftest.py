from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field

from pipeline.artifacts import Artifact, Store
from pipeline.artifacts.manifest import DataRecord, InputRecord
from pipeline.plan import Plan, PlannedStage, make_plan
from pipeline.recipe import load
from pipeline.stage import KINDS, Code, Data, Input, Runtime, StageConfig, register_kind
from pipeline.trainer_fields import TrainFields

PLANNED = """
seed: 17
data:
  corpus: {path: corpus.jsonl}
  pairs: {path: pairs.jsonl}
stages:
  base: {kind: base, data: corpus}
  sft: {kind: tune, data: pairs, model: base}
  dpo: {kind: tune, data: pairs, model: sft, train: {beta: 0.1}}
  report: {kind: judge, models: [base, sft, dpo], gold: gold.py:gold}
"""


class PlanTrain(TrainFields):
    trainer: ClassVar[str] = "DPOConfig"
    beta: float = Field(0.1, gt=0)
    log_every: Annotated[int, Runtime()] = 10


class Nested(StageConfig):
    r: int = 16
    note: Annotated[str, Runtime()] = ""


class BaseConfig(StageConfig):
    data: Annotated[str, Data("text")]
    size: int = 4


class TuneConfig(StageConfig):
    data: Annotated[str, Data("preference")]
    model: Annotated[str, Input("base", "tune", external=True)]
    adapter: Nested = Nested()
    train: PlanTrain = PlanTrain()
    shown_as: Annotated[str, Runtime()] = ""


class JudgeConfig(StageConfig):
    models: Annotated[list[str], Input()]
    gold: Annotated[str | None, Code()] = None
    samples: int = 3


@pytest.fixture(autouse=True)
def kinds() -> Iterator[None]:
    saved = dict(KINDS)
    KINDS.clear()
    for name, config, makes in (
        ("base", BaseConfig, "model"),
        ("tune", TuneConfig, "model"),
        ("judge", JudgeConfig, "report"),
    ):
        register_kind(name, version=1, config=config, run="", makes=makes)
    yield
    KINDS.clear()
    KINDS.update(saved)


class World:
    """A folder with a recipe, its data and a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "store")
        self.write("corpus.jsonl", '{"text": "a"}\n{"text": "b"}\n')
        self.write("pairs.jsonl", '{"prompt": "p", "chosen": "c", "rejected": "r"}\n' * 12)
        self.write("gold.py", "def gold(row):\n    return 1.0\n\n\ndef other(row):\n    return 2.0\n")
        self.write("r.yaml", PLANNED)

    def write(self, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def change(self, old: str, new: str) -> None:
        text = (self.folder / "r.yaml").read_text()
        assert old in text
        self.write("r.yaml", text.replace(old, new))

    def plan(self, *overrides: str, **options: Any) -> Plan:
        return make_plan(load(self.folder / "r.yaml", overrides=overrides), self.store, **options)

    def stage(self, name: str, *overrides: str) -> PlannedStage:
        return next(s for s in self.plan(*overrides).stages if s.spec.name == name)

    def why(self, *overrides: str, **options: Any) -> dict[str, tuple[str, ...]]:
        return {s.spec.name: s.why for s in self.plan(*overrides, **options).pending}

    def finish(self, plan: Plan) -> None:
        """Put every pending stage into the store, as a runner would."""
        for planned in plan.pending:
            self.commit(planned)

    def commit(self, planned: PlannedStage) -> Artifact:
        kind = KINDS[planned.spec.kind]
        with self.store.work(planned.spec.name, planned.fingerprint) as area:
            (area.payload / "out.txt").write_text(planned.spec.name)
            return area.commit(
                kind=kind.name,
                kind_version=kind.version,
                makes=kind.makes,
                recipe={"name": "r", "file": "r.yaml"},
                config=planned.payload,
                seed=planned.spec.seed,
                inputs=[
                    InputRecord(
                        field=i.field, ref=i.ref, name=i.name, kind=i.kind, version=1, fingerprint=i.fingerprint
                    )
                    for items in planned.inputs.values()
                    for i in items
                ],
                data={
                    name: DataRecord(source=d.source_name, digest=d.digest, rows=d.rows, rejected=0, where=[])
                    for name, d in planned.data.items()
                },
            )


@pytest.fixture
def make_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], World]:
    monkeypatch.chdir(tmp_path)
    return lambda: World(tmp_path)


@pytest.fixture
def world(make_world: Callable[[], World]) -> World:
    return make_world()
