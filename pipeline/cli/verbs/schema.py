"""The verb `schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.machine.disk import writing
from pipeline.recipe import json_schema
from pipeline.stages import load_all


def schema(
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it here instead.")] = None,
) -> None:
    """Print the JSON schema of recipes, for editors."""
    load_all()
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    if out is None:
        print(text)
        return
    with writing(out):
        out.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {out}; begin a recipe with\n  # yaml-language-server: $schema={out}")
