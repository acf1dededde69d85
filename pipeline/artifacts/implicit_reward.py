"""The payload of an implicit reward: the files of two language models, and the settings that join them.

    config.json, *.safetensors, tokenizer…    the policy, a causal language model with its tokenizer
    reference/                                the reference, the same way
    implicit_reward.json                      {"version": 1, "beta": 0.2, "reference_weight": 1.0}

Owns names and format. Knows nothing of tensors or of the layout of a store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import PipelineError, Problem

SETTINGS_FILE = "implicit_reward.json"
REFERENCE_FOLDER = "reference"
VERSION = 1
"""Format of the settings file."""

MODEL_FILES = (
    *("config.json", "generation_config.json", "model*.safetensors", "model*.safetensors.index.json", "*.py"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "vocab.json", "vocab.txt", "merges.txt", "*.model"),
)
"""Patterns of the files at the top of a model's folder that load it and its tokenizer."""


def model_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that load its model and tokenizer, each once."""
    yield from sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern) if file.is_file()})


class ImplicitSettings(NamedTuple):
    """What joins policy and reference into a reward.

    Attributes:
        beta: factor of the reward.
        reference_weight: weight of the reference's log-probability, 0 to 1.
    """

    beta: float
    reference_weight: float = 1.0


def write_settings(folder: Path, settings: ImplicitSettings) -> None:
    """Write the settings of an implicit reward into its folder."""
    text = json.dumps({"version": VERSION, **settings._asdict()}, indent=2) + "\n"
    (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")


def settings_of(folder: Path) -> ImplicitSettings | None:
    """Return the settings of an implicit reward; None if the folder holds another model.

    Raises:
        PipelineError: the settings cannot be read, or a newer trueup wrote them.
    """
    file = folder / SETTINGS_FILE
    if not file.is_file():
        return None
    remedy = "make the implicit reward again, or pull it again"
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        version = stored["version"]
        settings = ImplicitSettings(float(stored["beta"]), float(stored.get("reference_weight", 1.0)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        expected = "`version` and `beta` as JSON"
        raise PipelineError(Problem(f"{file} cannot be read", expected, remedy)) from error
    if version != VERSION:
        raise PipelineError(Problem(f"{file} is of version {version}", f"version {VERSION}", "update trueup"))
    if not (math.isfinite(settings.beta) and settings.beta > 0):
        raise PipelineError(Problem(f"{file} has beta {settings.beta}", "a number above 0", remedy))
    if not 0 <= settings.reference_weight <= 1:
        statement = f"{file} has reference_weight {settings.reference_weight}"
        raise PipelineError(Problem(statement, "a number from 0 to 1", remedy))
    return settings
