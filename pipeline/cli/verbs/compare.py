"""The verb `compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.display.comparisons import print_comparisons
from pipeline.cli.options import JsonOption, StoreOption, complete_ref, existing_store
from pipeline.cli.reports import compare_refs
from pipeline.cli.terminal import print_json


def compare(
    first: Annotated[
        str, typer.Argument(metavar="FIRST", help="A report, or a model of a report.", autocompletion=complete_ref)
    ],
    second: Annotated[
        str, typer.Argument(metavar="SECOND", help="The other one, of the same sort.", autocompletion=complete_ref)
    ],
    report: Annotated[
        str | None,
        typer.Option(
            "--report",
            metavar="REF",
            help="Report with both models [default: newest on all prompts].",
            autocompletion=complete_ref,
        ),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two models of a report, or two reports, with intervals.

    The pairs are prompts: both answered the same ones.
    """
    comparisons = compare_refs(existing_store(store), first, second, report)
    if as_json:
        print_json([each.model_dump(mode="json") for each in comparisons])
    else:
        print_comparisons(comparisons)
