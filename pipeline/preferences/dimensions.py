"""Dimensions of a comparison, such as helpfulness or honesty: their settings, and what a person said in each.

A dimension is rated, each response from 1 to a number, or compared: one response is better in it, or neither. Each may
have a rationale in words. Reference: Wang et al. 2023, arXiv:2311.09528 (HelpSteer: responses rated by attribute).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.errors import PipelineError, Problem
from pipeline.preferences.events import Rating

LONGEST_RATIONALE = 1000
"""Most characters of a rationale."""


class Dimension(BaseModel):
    """A dimension that people judge beside the verdict.

    Attributes:
        name: what is judged, as the page shows it.
        rated: best of the ratings 1, 2, … that each response gets; without it the responses are compared.
        rationale: whether the page asks for a reason.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=40)]
    rated: Annotated[int, Field(ge=2, le=9)] | None = None
    rationale: bool = False


def distinct(dimensions: tuple[Dimension, ...]) -> tuple[Dimension, ...]:
    """Return dimensions whose names are distinct.

    Raises:
        ValueError: two have the same name.
    """
    names = [one.name for one in dimensions]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"names {twice} twice; each needs a name of its own")
    return dimensions


Dimensions = Annotated[tuple[Dimension, ...], Field(max_length=6), AfterValidator(distinct)]


class SideRating(BaseModel):
    """What a person said in one dimension, by sides of the screen.

    Attributes:
        left: rating of the response on the left.
        right: rating of the response on the right.
        better: the better response of a compared dimension.
        rationale: why.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    left: int | None = None
    right: int | None = None
    better: Literal["left", "right", "tie"] | None = None
    rationale: Annotated[str, Field(max_length=LONGEST_RATIONALE)] = ""


def check_ratings(ratings: Mapping[str, SideRating], dimensions: Iterable[Dimension]) -> None:
    """Check that ratings are of these dimensions and within their range.

    Raises:
        PipelineError: they are not.
    """
    known = {one.name: one for one in dimensions}
    for name, rating in ratings.items():
        dimension = known.get(name)
        if dimension is None:
            raise PipelineError(Problem(f"no dimension is called {name!r}", f"one of {', '.join(known) or 'none'}"))
        if dimension.rated is None and (rating.left is not None or rating.right is not None):
            raise PipelineError(Problem(f"{name} is compared", "`better`, and no ratings"))
        if dimension.rated is not None and rating.better is not None:
            raise PipelineError(Problem(f"{name} is rated", "`left` and `right`, and no comparison"))
        for value in (rating.left, rating.right):
            if value is not None and not 1 <= value <= (dimension.rated or 0):
                raise PipelineError(Problem(f"{name} is rated {value}", f"1 to {dimension.rated}"))


def by_response(ratings: Mapping[str, SideRating], *, swapped: bool) -> dict[str, Rating]:
    """Return ratings by the responses in the order of the data.

    Args:
        ratings: ratings by sides of the screen, by dimension.
        swapped: whether the second response was on the left.
    """
    told: dict[str, Rating] = {}
    for name, rating in ratings.items():
        first, second = (rating.right, rating.left) if swapped else (rating.left, rating.right)
        one = Rating()
        if first is not None:
            one["first"] = first
        if second is not None:
            one["second"] = second
        if rating.better is not None:
            one["better"] = "tie" if rating.better == "tie" else _response(rating.better, swapped=swapped)
        if rating.rationale.strip():
            one["rationale"] = rating.rationale
        if one:
            told[name] = one
    return told


def shown_dimensions(dimensions: Sequence[Dimension]) -> list[dict[str, object]]:
    """Return dimensions as a browser receives them."""
    return [one.model_dump() for one in dimensions]


def _response(side: str, *, swapped: bool) -> Literal["first", "second"]:
    return "second" if (side == "right") != swapped else "first"
