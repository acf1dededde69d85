"""The request for a verdict: prompt template and rubric. No numerics."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence

from pydantic import Field

from pipeline.errors import Problem, listed, nearest
from pipeline.evaluation.judges.pairs import Pair, conversation_text
from pipeline.stage import StageConfig

REQUIRED = ("prompt", "first", "second")
PLACEHOLDERS = (*REQUIRED, "rubric", "format")
"""What a template may contain in braces; it must contain those of `REQUIRED`."""

DEFAULT_TEMPLATE = """\
Two assistants answered the same request. Judge which answer is better: what is true and what was asked for counts, the
order and the length of the answers do not.

[Request]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

{rubric}{format}"""

REPLY_FORMAT = "End with one line that holds your verdict alone: A, B or tie."
RUBRIC_FORMAT = "End with one line for each criterion, its name, a colon and your verdict on it, A, B or tie:"


class Criterion(StageConfig):
    """A criterion of a rubric.

    Attributes:
        name: a short name, which the judge repeats.
        description: what the judge is told of it.
        weight: its share of the verdict.
    """

    name: str = Field(pattern=r"^\w[\w -]*$")
    description: str = ""
    weight: float = Field(default=1.0, gt=0)


def template_problems(template: str, rubric: Sequence[Criterion]) -> Iterator[Problem]:
    """Yield problems of a template: a placeholder that is unknown or missing, a brace that stands alone."""
    expected = listed(f"{{{name}}}" for name in PLACEHOLDERS)
    try:
        parts = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        remedy = "write {{ and }} for braces of the text"
        yield Problem(f"endpoint.template has a brace that stands alone ({error})", expected, remedy)
        return
    for name in dict.fromkeys(parts):
        if name not in PLACEHOLDERS:
            remedy = nearest(name, PLACEHOLDERS) or "write {{ and }} for braces of the text"
            yield Problem(f"endpoint.template has the placeholder {{{name}}}", f"one of {expected}", remedy)
    needed = [*REQUIRED, *(["rubric"] if rubric else [])]
    missing = [f"{{{name}}}" for name in needed if name not in parts]
    if missing:
        yield Problem(f"endpoint.template lacks {' and '.join(missing)}", expected, "add it to the template")


def rubric_problems(rubric: Sequence[Criterion]) -> Iterator[Problem]:
    """Yield a problem if two criteria have one name."""
    names = [criterion.name for criterion in rubric]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield Problem(f"endpoint.rubric names `{name}` twice", "each criterion once")


def weights_of(rubric: Sequence[Criterion]) -> Mapping[str, float]:
    """Return the weight of each criterion."""
    return {criterion.name: criterion.weight for criterion in rubric}


def filled(template: str, rubric: Sequence[Criterion], pair: Pair, *, swapped: bool) -> str:
    """Return the text that asks for a verdict; all criteria of a rubric are asked in one request."""
    first, second = (conversation_text(turns) for turns in (pair.first, pair.second))
    told = "".join(f"- {one.name}: {one.description}\n" if one.description else f"- {one.name}\n" for one in rubric)
    form = "\n".join([RUBRIC_FORMAT, *(f"{one.name}: …" for one in rubric)]) if rubric else REPLY_FORMAT
    return template.format(
        prompt=conversation_text(pair.row["prompt"]),
        first=second if swapped else first,
        second=first if swapped else second,
        rubric=f"Judge by each of these criteria alone:\n{told}\n" if rubric else "",
        format=form,
    )
