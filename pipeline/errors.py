"""Errors for users: each says what was found, what was expected, and what to do.

Owns the exception classes of the package and its exit codes. Knows nothing of recipes, stores or models.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit status of the `trueup` command."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    WAITING = 3
    GATE_FAILED = 4
    STOPPED = 130  # Ctrl-C, as in shells: 128 + SIGINT
    TERMINATED = 143  # SIGTERM


@dataclass(frozen=True)
class Problem:
    """One problem, rendered as one line of sentences.

    Attributes:
        found: what was found, e.g. ``beta is -0.1``.
        expected: what would be correct: a noun (``at least one row``), ``must be > 0``, or a clause that says what
            there is instead (``the recipe has no `data:` ``); may be empty.
        remedy: what to do, e.g. ``did you mean `learning_rate`?`` or a command; may be empty.
        where: location, e.g. ``recipes/tiny.yaml:14``; may be empty.
        stage: name of the stage concerned; may be empty.
    """

    found: str
    expected: str = ""
    remedy: str = ""
    where: str = ""
    stage: str = ""

    def __str__(self) -> str:
        """Render as ``where stage NAME: found; expected that. Do this``."""
        location = " ".join(part for part in (self.where, f"stage {self.stage}" if self.stage else "") if part)
        text = sentences(self.found, self.expected, self.remedy)
        text = f"{location}: {text}" if location else text
        return text.replace("\n", "\\n").replace("\r", "\\r")  # a user's name may contain line breaks


_CLAUSE = re.compile(
    r"(it|this|they|there|nothing|stored|tags|reports have|text rows have|the recipe has|this recipe|`[^`]+` has)\b"
)
"""Beginning of an `expected` that is a clause of its own, such as ``tags are a, b``."""

_COMMAND = re.compile(r"(pip install|apt-get install|trueup|iconv|git|gzip|bzip2|xz|zstd) [^;,]+")
_WORD = re.compile(r"[a-z][a-z']*(?![\w.:=(\[/-])")
"""A word of prose, not a setting or a path."""


def sentences(found: str, expected: str = "", remedy: str = "") -> str:
    """Join the parts of a message: *X is A; expected B. Do C.* A remedy that is only a command is put in backticks."""
    text = f"{found.rstrip('.')}; {_clause(expected)}" if expected else found
    if not remedy:
        return text
    advice = f"Run `{remedy}`" if _COMMAND.fullmatch(remedy) else remedy
    advice = f"Run {advice}" if _COMMAND.match(advice) else advice
    if _WORD.match(advice):
        advice = advice[0].upper() + advice[1:]
    # No full stop at the end: the last words are often a setting, a path or a command to copy.
    return f"{text.rstrip('.')}. {advice}"


def _clause(expected: str) -> str:
    """Return ``expected`` as a clause that follows a semicolon."""
    if expected.startswith("must "):
        return f"it {expected}"
    return expected if _CLAUSE.match(expected) or expected.startswith("expected ") else f"expected {expected}"


class PipelineError(Exception):
    """An error a user can act on; printed without a traceback.

    Attributes:
        problems: all problems, in reading order.
        exit_code: exit status of the command.
    """

    exit_code: ExitCode = ExitCode.BAD_INPUT

    def __init__(self, *problems: Problem | str, exit_code: ExitCode | None = None) -> None:
        self.problems: tuple[Problem, ...] = tuple(p if isinstance(p, Problem) else Problem(found=p) for p in problems)
        if exit_code is not None:
            self.exit_code = exit_code
        super().__init__("\n".join(str(p) for p in self.problems))


class StageFailed(PipelineError):  # noqa: N818 -- says what happened to a stage
    """A stage failed while running; its checkpoints are kept."""

    exit_code = ExitCode.FAILED


class Interrupted(PipelineError):  # noqa: N818 -- not an error of anyone
    """The user or the system asked the run to stop; work so far is kept."""

    exit_code = ExitCode.FAILED


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean `x`?`` for the closest known name, or an empty string."""
    hits = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"did you mean `{hits[0]}`?" if hits else ""


def listed(names: Sequence[str] | Iterable[str], limit: int = 12) -> str:
    """Join names for a message, shortened after ``limit``."""
    names = list(names)
    more = f", … ({len(names) - limit} more)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun in the right number: ``1 row``, ``1,024 rows``, ``2 losses``.

    Args:
        count: how many there are.
        noun: the noun in the singular, with its adjectives.
        plural: the plural, where it is not the singular with an ``s``.
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def agreeing(count: int, singular: str, plural: str) -> str:
    """Return the form of a verb or pronoun that goes with a count, such as ``is`` or ``are``."""
    return singular if count == 1 else plural
