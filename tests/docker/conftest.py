"""Reads the files an image is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Instruction:
    """One instruction of the Dockerfile, its lines joined.

    Attributes:
        stage: counted from 0; -1 before the first FROM.
        word: RUN, COPY and so on.
        rest: what follows it.
    """

    stage: int
    word: str
    rest: str


@pytest.fixture(scope="session")
def dockerfile() -> list[Instruction]:
    """The Dockerfile's instructions in order."""
    lines = [line for line in (ROOT / "docker" / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    instructions: list[Instruction] = []
    stage = -1
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            stage += word == "FROM"
            instructions.append(Instruction(stage, word, " ".join(rest.split())))
    return instructions
