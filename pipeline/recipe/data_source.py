"""A data source of a recipe: where its rows are, and how they are read.

Owns the fields and the lookup of files. Knows nothing of what is in a row.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

from pipeline.errors import PipelineError, Problem
from pipeline.recipe.paths import Variable, distinct, expand, find_files, unread_files
from pipeline.stage import Added, Runtime

Format = Literal[
    "auto",
    "text",
    "messages",
    "prompt_completion",
    "sharegpt",
    "alpaca",
    "hh",
    "preference",
    "comparison",
    "prompt",
    "candidates",
]

VARIABLE_KEYS = ("path", "hub", "revision", "artifact")
"""Keys of a data source in which environment variables stand for their values."""


def _two_shares(value: object) -> object:
    """Refuse a value that is not two shares in order, in one sentence for the whole of it."""
    shares = value if isinstance(value, list | tuple) and len(value) == 2 else ()
    numbers = [one for one in shares if isinstance(one, int | float) and not isinstance(one, bool)]
    if value is None:
        return None
    if len(numbers) == 2 and 0 <= numbers[0] < numbers[1] <= 1:
        return tuple(map(float, numbers))  # a list of JSON is no tuple to a strict model
    raise ValueError(
        f"is {json.dumps(value, default=str)}|two shares between 0 and 1, the smaller one first, such as [0.5, 1.0]"
    )


class DataSource(BaseModel):
    """Rows from files, from a hub data set, or from an artifact: exactly one of `path`, `hub`, `artifact`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | list[str] | None = Field(
        None, description="A file, a folder, a glob, or a list of them; ${NAME:-default} is an environment variable."
    )
    hub: str | None = Field(None, description="Id of a hub data set, `owner/name`.")
    revision: str | None = Field(None, description="Commit or tag of the hub data set.")
    subset: str | None = Field(None, description="Configuration of the hub data set.")
    hub_split: str = Field("train", description="Split of the hub data set.")
    artifact: str | None = Field(None, description="A stage of this recipe, or a ref of the store.")
    file: str | None = Field(None, description="Which file of the artifact.")
    format: Format = Field("auto", description="Layout of the rows; found out when `auto`.")
    columns: dict[str, str] = Field({}, description="Columns to rename: old name to new name.")
    on_bad_row: Annotated[Literal["stop", "skip"], Runtime()] = Field(
        "stop", description="Stop at a bad row, or keep it in a rejects file and go on."
    )
    held_out: float = Field(0.0, ge=0, lt=1, description="Share of the prompts split off for evaluation.")
    part: Annotated[tuple[float, float] | None, BeforeValidator(_two_shares), Added()] = Field(
        None,
        description="Use only the prompts between two shares, such as [0.5, 1.0]; parts that do not meet share none.",
    )
    limit: int | None = Field(None, gt=0, description="Use only the first rows.")
    system: str | None = Field(None, description="System message of conversations that have none.")

    _files: tuple[Path, ...] | None = PrivateAttr(None)
    _unread: tuple[str, ...] = PrivateAttr(())
    _repeated: tuple[tuple[Path, Path], ...] = PrivateAttr(())
    _variables: tuple[Variable, ...] = PrivateAttr(())

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        origins = [name for name in ("path", "hub", "artifact") if getattr(self, name) is not None]
        if len(origins) != 1:
            statement = f"has both `{origins[0]}` and `{origins[1]}`" if origins else "says nowhere to read from"
            raise ValueError(f"{statement}|exactly one of `path`, `hub`, `artifact`")
        for name, origin in (("revision", "hub"), ("subset", "hub"), ("file", "artifact")):
            if getattr(self, name) is not None and origins[0] != origin:
                raise ValueError(f"`{name}` is given with `{origins[0]}`|only with `{origin}`")
        return self

    @model_validator(mode="after")
    def _held_out_within_part(self) -> Self:
        low, high = self.part or (0.0, 1.0)
        if self.held_out and not low < self.held_out < high:
            statement = f"`held_out` is {self.held_out:g} and `part` from {low:g} to {high:g}: one side has no prompts"
            raise ValueError(f"{statement}|a share between the two, since the prompts below `held_out` are held out")
        return self

    @property
    def files(self) -> tuple[Path, ...]:
        """Absolute paths of the files; looked up from the current folder unless `place` was called before."""
        if self._files is None:
            self.place([Path.cwd()])
        return self._files or ()

    @property
    def unread_files(self) -> tuple[str, ...]:
        """Names of files and folders in the folders of `path` that are not read."""
        return self._unread

    @property
    def repeated_files(self) -> tuple[tuple[Path, Path], ...]:
        """Links to files that are read already, each with the path that is read."""
        return self._repeated

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The environment variables in `path`."""
        return self._variables

    def place(self, folders: list[Path] | tuple[Path, ...]) -> None:
        """Find the files of `path` in ``folders``.

        Raises:
            PipelineError: a path matches no file, or an environment variable in it is not set.
        """
        patterns = [self.path] if isinstance(self.path, str) else self.path or []
        try:
            variables: list[Variable] = []
            patterns = [expand(pattern, variables=variables) for pattern in patterns]
            files = [file for pattern in patterns for file in find_files(pattern, folders)]
            self._files, self._repeated = distinct(tuple(files))
            self._unread = tuple(name for pattern in patterns for name in unread_files(pattern, folders))
            self._variables = tuple(variables)
        except (OSError, ValueError) as error:  # the name is too long, or the folder is not readable
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise PipelineError(Problem(f"`{str(self.path)[:80]}` cannot be looked up: {reason}")) from None
