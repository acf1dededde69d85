"""The `trueup` command: each verb parses its arguments, calls another package and prints the result.

Importing this package imports nothing but a few modules of Python's own, so that `main` decides what Ctrl-C does before
anything slow is imported. `pipeline.cli.app` imports no torch, no pydantic, no rich and no verb: the module of a verb
is imported when the verb is called, so that `trueup --help` answers at once. `pipeline.cli.command_table` lists the
verbs and their modules.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command: the entry point of `trueup`.

    Until the application is imported, Ctrl-C ends the process at once. The default handler would raise
    KeyboardInterrupt somewhere in an import, which shows a traceback, or is lost where Python can only report it (in a
    callback).
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job in the background ignores Ctrl-C
        signal.signal(signal.SIGINT, _leave)
    from pipeline.cli.app import run  # imports typer, during which Ctrl-C has to be handled already

    try:
        if signal.getsignal(signal.SIGINT) is _leave:
            signal.signal(signal.SIGINT, _interrupt)
        run()
    except KeyboardInterrupt:  # between the two handlers
        _leave()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but exit at once if Python is in the middle of looking for a module.

    A verb imports what it needs when it is called. Python looks for modules with callbacks that cannot raise: it would
    print the traceback there and go on.
    """
    if frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
        _leave()
    raise KeyboardInterrupt


def _leave(*_: object) -> None:
    """Exit with the code of Ctrl-C: nothing that is kept is written while modules are imported."""
    os.write(2, b"stopped\n")
    os._exit(130)  # `ExitCode.STOPPED`, whose module may not be imported yet
