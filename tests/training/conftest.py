"""Tokenizer and model of the tiny chain, and the context of a stage, for tests of the training machinery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import Compute
from pipeline.stage import Event, StageContext


@pytest.fixture(scope="session")
def tiny_tokenizer(chain: Any) -> Any:
    """The chain's tokenizer; tests must not change it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(chain["tokenizer"].path)


@pytest.fixture
def tiny_model(chain: Any) -> Any:
    """The chain's SFT model, in training mode; each test gets its own."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(chain["sft"].path).train()


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., StageContext]:
    """Make the context of a stage with some compute settings."""

    def make(events: list[Event] | None = None, **compute: Any) -> StageContext:
        for part in ("out", "work"):
            (tmp_path / part).mkdir(exist_ok=True)
        settings = Compute(**compute)
        return StageContext(
            name="tiny",
            seed=3,
            out=tmp_path / "out",
            work=tmp_path / "work",
            inputs={},
            load_rows=lambda field: pytest.fail(f"nothing reads {field} here"),
            compute=settings.settings,
            dims=settings.dims,
            emit=(events if events is not None else []).append,
            stopping=lambda: False,
        )

    return make
