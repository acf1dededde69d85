"""The application: the group of all verbs, its global options, and the handling of errors.

Owns exit codes and the form of errors on standard error. Knows nothing of what a verb does: it imports the module of a
verb when the verb is called, or when its own help is shown.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from pipeline import __version__
from pipeline.cli.command_table import VERBS, VerbEntry, verbs_by_topic
from pipeline.cli.terminal import expect_json, has_printed_json, print_json, print_line
from pipeline.errors import ExitCode, PipelineError, Problem
from pipeline.machine.disk import disk_problem, exit_code_of
from pipeline.plain_data import JsonObject

_DEBUG, _JSON = "--debug", "--json"


class Terminated(SystemExit):
    """SIGTERM arrived while no run was in progress whose state had to be saved."""


class Verbs(TyperGroup):
    """The group of all verbs: lists them by topic, and turns errors into messages and exit codes.

    Knows each verb by its entry of the table, so that listing and completing verbs imports none of their modules.
    `--debug` may stand anywhere on the command line.
    """

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for entry in VERBS.values():
            self.add_command(TyperCommand(entry.name, help=entry.summary, hidden=entry.is_hidden))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line and exit with its exit code."""
        args, debug = without_debug(sys.argv[1:] if args is None else args)
        expect_json()

        def call() -> Any:
            return super(Verbs, self).main(
                args, prog_name or "trueup", complete_var, standalone_mode=False, windows_expand_args=False, **extra
            )

        sys.exit(guarded(call, debug=debug, as_json=_JSON in before_dashes(args)))

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of the pipe, e.g. `head`, has closed it
            _forget_output()
            raise typer.Exit from None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the verb named by the first argument, with its options; import its module."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else command_of(VERBS[name]), rest

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the verbs by topic."""
        width = max(len(name) for name in VERBS)
        for topic, entries in verbs_by_topic().items():
            with formatter.section(topic):
                formatter.write_dl([(entry.name.ljust(width), entry.summary) for entry in entries])


class Verb(TyperCommand):
    """One verb; its usage line has no braces: `trueup show [OPTIONS] REF`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line without braces around required arguments."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]


def command_of(entry: VerbEntry) -> Verb:
    """Import the module of a verb and return its command."""
    function = getattr(importlib.import_module(f"pipeline.cli.verbs.{entry.module}"), entry.function)
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(entry.name, cls=Verb, hidden=entry.is_hidden)(function)
    command = typer.main.get_command(single)
    assert isinstance(command, Verb)
    return command


def without_debug(args: Sequence[str]) -> tuple[list[str], bool]:
    """Remove `--debug` from the arguments before a `--`; return the rest, and whether debugging is on.

    Debugging is on with `--debug` or with the variable TRUEUP_DEBUG.
    """
    given = before_dashes(args)
    others = [arg for arg in given if arg != _DEBUG]
    return [*others, *args[len(given) :]], len(others) < len(given) or bool(os.environ.get("TRUEUP_DEBUG"))


def before_dashes(args: Sequence[str]) -> list[str]:
    """Return the arguments before a `--`: those that may be options."""
    return list(args)[: list(args).index("--") if "--" in args else len(args)]


def guarded(call: Callable[[], Any], *, debug: bool, as_json: bool = False) -> int:
    """Call a function and return the exit code; print errors on standard error, with ``as_json`` also as JSON.

    The JSON of the error is omitted when the verb has printed its own JSON already, as `verify` does for damaged files.
    """
    problems, code = _called(call, debug=debug)
    for problem in problems:
        _say(str(problem))
    if problems and as_json and not has_printed_json():
        print_json(error_data(problems, code))
    return code


def error_data(problems: Sequence[Problem], code: int) -> JsonObject:
    """Return the data that `--json` prints when a verb fails."""
    return {
        "ok": False,
        "error": "\n".join(map(str, problems)),
        "exit_code": code,
        "problems": [vars(problem) | {"text": str(problem)} for problem in problems],
    }


def _called(call: Callable[[], Any], *, debug: bool) -> tuple[Sequence[Problem], int]:
    """Call a function and return its problems, if any, and the exit code."""
    try:
        code = call()
        sys.stdout.flush()
    except PipelineError as error:
        if debug:
            _print_trace(error)
        return tuple(dict.fromkeys(error.problems)), int(error.exit_code)
    except TyperException as error:
        return [Problem(_usage_problem(error))], int(ExitCode.BAD_INPUT)
    except (typer.Abort, KeyboardInterrupt):
        code = ExitCode.STOPPED
    except Terminated:
        return [Problem("stopped")], int(ExitCode.TERMINATED)
    except BrokenPipeError:
        _forget_output()
        return [], int(ExitCode.DONE)
    except Exception as error:  # nothing a user does should end in a traceback
        if debug:
            _print_trace(error)
        refused = disk_problem(error, Path.cwd())
        if refused is not None:
            return [refused], int(exit_code_of(error, Path.cwd()))
        text = f"{type(error).__name__}: {_one_line(error)}"
        return [Problem(text, remedy="run with --debug for the traceback")], int(ExitCode.FAILED)
    if code == ExitCode.STOPPED:  # typer also returns this code for Ctrl-C
        if sys.stderr.isatty():
            print(file=sys.stderr)  # after the terminal's own `^C`
        return [Problem("stopped")], int(code)
    return [], code if isinstance(code, int) else int(ExitCode.DONE)


def _usage_problem(error: TyperException) -> str:
    """Return a one-line message for a usage error, with the `--help` command to run."""
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "trueup"
    return f"{message[:1].lower()}{message[1:]}; see `{command} --help`"


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"


def _say(line: str) -> None:
    """Print a problem on standard error: wrapped on a terminal, as one line elsewhere."""
    if sys.stderr.isatty():
        print_line(line, stream=sys.stderr)
    else:
        print(line, file=sys.stderr)


def _print_trace(error: BaseException) -> None:
    traceback.print_exception(error)


def _forget_output() -> None:
    """Redirect standard output to the null device: the interpreter's last flush would fail on a closed pipe."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())


app = typer.Typer(
    name="trueup",
    cls=Verbs,
    help="One recipe takes a language model from raw text to an aligned, evaluated checkpoint.",
    epilog="Start with: trueup new --example quickstart my-project",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(value: bool) -> None:
    if value:
        print(f"trueup {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def entry(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option(_DEBUG, help="Show tracebacks; may stand anywhere on the line.")] = False,
) -> None:
    """Show help when no verb is given."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def _terminate(number: int, frame: object) -> None:
    raise Terminated(int(ExitCode.TERMINATED))


def _leave_stopped() -> NoReturn:
    """Exit with the code of Ctrl-C, bypassing the interpreter's own exit.

    The interpreter remembers a KeyboardInterrupt raised inside `exec` of a string, which every dataclass runs on
    import. It would then end the process by SIGINT although the interrupt was handled, so that the exit code would
    depend on the moment of the key press.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(int(ExitCode.STOPPED))


def run() -> None:
    """Run the command; `pipeline.cli.main` calls it once this module is imported.

    SIGTERM gets a handler at once: process 1 of a container ignores a signal without a handler.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except KeyboardInterrupt:  # before a verb started, or after it ended
        _say("stopped")
        _leave_stopped()
    except SystemExit as ended:
        if ended.code == ExitCode.STOPPED:
            _leave_stopped()
        raise
    finally:
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # the process is ending: a second Ctrl-C must not change the exit code
