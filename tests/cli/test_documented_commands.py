"""Every command that README, docs and recipes show is one that the command line takes as it is written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer._click.exceptions import MissingParameter

from pipeline.cli.app import app, command_of
from pipeline.cli.command_table import VERBS
from pipeline.cli.verbs.transfers import _url_and_refs

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "data/quickstart/README.md",
    *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
)
NO_COMMANDS = {"docs/cli.md", "docs/log.md"}  # generated from the command itself; history


def _commands(text: str) -> list[tuple[str, bool]]:
    """Return the commands of a page, and whether each stands in a block to be copied, or in a sentence."""
    commands = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language in ("", "bash"):
            lines = block.replace("\\\n", " ").splitlines()
            lines = [re.sub(r"^\s*([A-Z_]+=\S+ )*", "", line) for line in lines]
            commands += [(line, True) for line in lines if re.match(r"trueup [a-z]", line)]
    return [*commands, *((command, False) for command in re.findall(r"`(trueup [a-z][^`]*)`", text))]


PAGE_COMMANDS = [
    (page, command, whole)
    for page in PAGES
    if page not in NO_COMMANDS
    for command, whole in dict.fromkeys(_commands((ROOT / page).read_text(encoding="utf-8")))
]
RECIPE_COMMANDS = [
    (file.name, command, True)
    for file in sorted((ROOT / "recipes").glob("*.yaml"))
    for command in re.findall(r"^#\s+(trueup [a-z].*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize(("page", "command", "whole"), [*PAGE_COMMANDS, *RECIPE_COMMANDS])
def test_the_command_line_takes_it(page: str, command: str, whole: bool) -> None:
    _, verb, *arguments = shlex.split(command, comments=True)
    arguments = [argument for argument in arguments if argument != "…"]
    group: Any = typer.main.get_command(app)
    context = group.make_context("trueup", [], resilient_parsing=True)
    assert verb in VERBS, f"{page} names a verb `{verb}` that there is not"
    verb_command = command_of(VERBS[verb])
    try:
        values = verb_command.make_context(verb, arguments, parent=context).params
    except MissingParameter:
        assert not whole  # a sentence may name a verb without what it is called with
        return
    if verb in ("push", "pull"):
        url, _ = _url_and_refs([values["url"], *(values["refs"] or ())], verb)
        assert "/" in url


def test_pages_have_commands() -> None:
    assert len([page for page, *_ in PAGE_COMMANDS if page == "README.md"]) >= 8
    assert len(PAGE_COMMANDS) >= 90
    assert len(RECIPE_COMMANDS) >= 8
