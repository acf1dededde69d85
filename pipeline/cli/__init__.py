"""The `trueup` command: each verb parses its arguments, calls another package and prints the result.

Importing this package imports nothing but a few modules of Python's own, so that `main` decides what Ctrl-C does before
anything slow is imported. `verbs` imports all verbs; none of them imports torch, pydantic or rich before it is called,
so that `trueup --help` answers at once.
"""

from __future__ import annotations

import os
import signal
from typing import Any


def main() -> None:
    """Run the command: the entry point of `trueup`.

    Until the verbs are imported, Ctrl-C ends the process at once. The default handler would raise KeyboardInterrupt
    somewhere in an import, which shows a traceback, or is lost where Python can only report it (in a callback).
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job in the background ignores Ctrl-C
        signal.signal(signal.SIGINT, _leave)
    from pipeline.cli.verbs import run

    try:
        if signal.getsignal(signal.SIGINT) is _leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:  # between the two handlers
        _leave()


def _leave(*_: Any) -> None:
    """Exit with the code of Ctrl-C; nothing has been done yet that needs an end in good order."""
    os.write(2, b"stopped\n")
    os._exit(130)  # `ExitCode.STOPPED`, whose module may not be imported yet
