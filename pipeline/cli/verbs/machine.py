"""Verbs on the set-up: `doctor`, and the hidden `docs` that writes the reference of the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.doctor import examine
from pipeline.cli.options import JsonOption, StoreOption, open_store
from pipeline.cli.reference import reference
from pipeline.cli.terminal import Column, print_json, print_table
from pipeline.errors import ExitCode, agreeing, counted


def doctor(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Check the environment; exit 1 when something needed is missing."""
    checks = examine(open_store(store).root)
    missing = sum(check.status == "missing" for check in checks)
    if as_json:
        print_json({"ok": not missing, "checks": [vars(check) for check in checks]})
    else:
        columns = [
            Column("", style="bold"),
            Column("status", style="status"),
            Column("found", fold=True),
            Column("to do", fold=True),
        ]
        print_table(columns, [[check.name, check.status, check.found, check.remedy] for check in checks])
        lacking = f"{counted(missing, 'needed thing')} {agreeing(missing, 'is', 'are')} missing"
        print(f"\n{lacking if missing else 'everything needed is here'}")
    if missing:
        raise typer.Exit(int(ExitCode.FAILED))


def docs(
    context: typer.Context,
    out: Annotated[Path | None, typer.Argument(metavar="FILE", help="Write it here.")] = None,
) -> None:
    """Write the reference of all verbs as Markdown."""
    text = reference(context.find_root())
    if out is None:
        print(text, end="")
    else:
        out.write_text(text, encoding="utf-8")
        print(f"wrote {out}")
