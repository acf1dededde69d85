"""The verb `new`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import JsonOption
from pipeline.cli.scaffold import write_example, write_starter
from pipeline.cli.terminal import print_command, print_json, print_line


def new(
    target: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Recipe to write; with --example, a folder.")
    ] = None,
    kind: Annotated[str, typer.Option("--kind", help="What it does: sft, dpo (sft, then dpo) or chain.")] = "sft",
    example: Annotated[
        str | None,
        typer.Option("--example", metavar="NAME", help="Copy an example and its data, e.g. quickstart."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a starter recipe, or copy an example with its data."""
    if example is not None:
        written = write_example(example, target or Path(example), overwrite=overwrite)
    else:
        written = write_starter(target or Path("recipe.yaml"), kind, overwrite=overwrite)
    if as_json:
        print_json({"files": [str(file) for file in written.files], "recipe": str(written.recipe)})
        return
    for file in written.files:
        print(f"wrote {file}")
    print("\nnext:")
    for line in written.next_steps:
        if line.startswith(("cd ", "trueup ")):
            print_command(line)
        else:
            print_line(f"  {line}")
