"""Shows a push or a pull: a progress bar, then the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Self, TextIO

from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress

from pipeline.artifacts.transfer import Progress, Transfer
from pipeline.cli.terminal import console, print_json, print_line, size
from pipeline.errors import counted


class Bar:
    """Progress bar of a transfer, in bytes; shown on a terminal only."""

    def __init__(self, stream: TextIO, verb: str) -> None:
        self.verb = verb
        self.bar: RichProgress | None = None
        self.task: Any = None
        if stream.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(28), DownloadColumn(), TransferSpeedColumn())
            self.bar = RichProgress(*columns, console=console(stream), transient=True)
            self.task = self.bar.add_task(verb, total=None)

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, progress: Progress) -> None:
        """Update the bar; called from the threads of a transfer."""
        if self.bar is not None:
            text = f"{self.verb} {progress.ref}"
            self.bar.update(self.task, description=text, completed=progress.done_bytes, total=progress.total_bytes)


def print_transfer(done: Transfer, where: str, *, as_json: bool) -> None:
    """Print the artifacts a transfer copied, skipped or missed, and the number of files and bytes."""
    if as_json:
        print_json(asdict(done))
        return
    for words, refs in (
        ("copied", done.moved),
        ("was there already", done.present),
        ("is there with other bytes and was left as it is", done.different),
        ("is named as an ancestor but not here", done.missing),
    ):
        _lines(words, refs)
    skipped = f", {done.files_kept:,} were there" if done.files_kept else ""
    print_line(
        f"{counted(len(done.moved), 'artifact')} {where}: {counted(done.files, 'file')}, {size(done.bytes)}{skipped}"
    )


def _lines(words: str, refs: Sequence[str]) -> None:
    for ref in refs:
        print_line(f"{ref} {words}")
