from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from pipeline.errors import Problem
from pipeline.stage import KINDS, Code, Data, Input, Runtime, StageConfig, register_kind
from pipeline.trainer_fields import TrainFields


class TinyTrain(TrainFields):
    trainer: ClassVar[str] = "DPOConfig"
    batch_size: int = Field(8, gt=0)
    beta: float = Field(0.1, gt=0)
    warm: int = 0

    def check(self) -> list[Problem]:
        return [Problem(f"train.warm is {self.warm}", "must not exceed 9")] if self.warm > 9 else []


class Adapter(StageConfig):
    r: int = Field(16, gt=0)
    targets: Literal["all-linear"] | list[str] = "all-linear"


class TrainingConfig(StageConfig):
    data: Annotated[str, Data("preference")] = Field(description="Preference pairs.")
    model: Annotated[str, Input("base", external=True)]
    adapter: Adapter | None = None
    train: TinyTrain = TinyTrain()
    tags: list[str] = Field(default_factory=list)
    max_length: int | None = 512
    note: Annotated[str, Runtime()] = ""


class BaseConfig(StageConfig):
    size: int = Field(4, ge=1, le=64)
    algorithm: Literal["bpe", "unigram"] = "bpe"


class JudgeConfig(StageConfig):
    """Judges.

    Attributes:
        models: what is compared,
            in this order.
        gold: a function.

    Not a field: this.
    """

    models: Annotated[list[str], Input()]
    gold: Annotated[str | None, Code()] = None


@pytest.fixture
def kinds() -> Iterator[None]:
    saved = dict(KINDS)
    KINDS.clear()
    for name, config, makes in (
        ("base", BaseConfig, "model"),
        ("tune", TrainingConfig, "model"),
        ("judge", JudgeConfig, "report"),
    ):
        register_kind(name, version=1, config=config, run="", makes=makes)
    yield
    KINDS.clear()
    KINDS.update(saved)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: None) -> Callable[..., Path]:
    """Write a recipe into a fresh current folder, beside a small data file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')

    def write_file(text: str, name: str = "r.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write_file
