"""Chat in the terminal: resolving the checkpoint, slash commands, Ctrl-C.

Owns the loop between the user and a `ChatSession`. Knows nothing of decoding, and imports no torch.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Store
from pipeline.artifacts.refs import resolve
from pipeline.errors import PipelineError, Problem, agreeing, counted, nearest, sentences
from pipeline.stage import ResolvedInput

if TYPE_CHECKING:
    from pipeline.models.generate.chat_session import ChatSession

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")

_THINGS = {"reward": "reward model"}

HELP = """\
/reset               forget the conversation
/retry               answer the last message again, with another seed
/system TEXT         set the system message and start over
/greedy              always the most likely token
/sample              sample again
/temperature 0.7     /top-p 0.9     /top-k 50     /max 256     /seed 1
/settings            show how answers are decoded
/quit                leave (also Ctrl-D); Ctrl-C stops an answer"""


def find_checkpoint(store: Store, ref: str) -> ResolvedInput:
    """Resolve a ref to a model: an artifact of the store, a local folder, or a hub id.

    Raises:
        PipelineError: there is no such artifact or folder, or the artifact is no language model.
    """
    if Path(ref).is_dir():
        path = str(Path(ref).resolve())
        return ResolvedInput(ref=ref, name=Path(path).name, kind="external", fingerprint="", path=path)
    if HUB_ID.fullmatch(ref):
        name = ref.partition("@")[0].rpartition("/")[2]
        return ResolvedInput(ref=ref, name=name, kind="external", fingerprint=f"hub:{ref}", path=ref)
    if "/" in ref:
        raise PipelineError(Problem(f"no folder `{ref}`", "a ref, a local folder, or a hub id such as owner/name"))
    artifact = resolve(store, ref)
    manifest = artifact.manifest
    if manifest.makes != "model":
        models = sorted({other.manifest.name for other in store.artifacts() if other.manifest.makes == "model"})
        remedy = f"models here: {', '.join(models)}" if models else ""
        statement = f"`{artifact.ref}` is a {_THINGS.get(manifest.makes, manifest.makes)}"
        raise PipelineError(Problem(statement, "must be a language model", remedy))
    return ResolvedInput(
        ref=ref,
        name=manifest.name,
        kind=manifest.kind,
        fingerprint=manifest.fingerprint,
        path=str(artifact.path),
        manifest=manifest.model_dump(mode="json"),
    )


@dataclass
class ChatLoop:
    """Answers the user's messages and executes slash commands.

    Attributes:
        session: the conversation.
        write: prints text, which includes its line ends.
        last: the last message sent, for `/retry`.
    """

    session: ChatSession
    write: Callable[[str], None]
    last: str = ""

    def run(self, lines: Iterable[str]) -> None:
        """Process lines until they end or one is `/quit`."""
        for line in lines:
            text = line.strip()
            if text.startswith("/"):
                if not self.command(text):
                    return
            elif text:
                self.say(text)

    def say(self, text: str) -> None:
        """Print the answer to a message while it is decoded; Ctrl-C stops decoding and keeps the partial answer."""
        self.last, forgotten = text, self.session.forgotten
        pieces = self.session.say(text)
        try:
            for piece in pieces:
                self.write(piece)
            self.write("\n")
        except KeyboardInterrupt:
            pieces.close() if hasattr(pieces, "close") else None
            self.write(" … (stopped)\n")
        except PipelineError as error:
            self.write(f"{error}\n")
        dropped = self.session.forgotten - forgotten
        if dropped:
            were = agreeing(dropped, "was", "were")
            self.write(f"(the context is full: the oldest {counted(dropped, 'message')} {were} forgotten)\n")

    def command(self, text: str) -> bool:
        """Execute a slash command; return false when it ends the conversation."""
        word, _, rest = text[1:].partition(" ")
        word, rest = word.lower(), rest.strip()
        if word in ("quit", "exit", "q", "bye"):
            return False
        if word in _SIMPLE:
            _SIMPLE[word](self)
        elif word == "system":
            self.session.system = rest or None
            self.session.reset()
            self.write("system message set\n" if rest else "system message removed\n")
        elif word in _SETTINGS:
            self._set(word, rest)
        else:
            known = [*_SIMPLE, *_SETTINGS, "system", "quit"]
            self.write(sentences(f"no command /{word}", remedy=nearest(word, known) or "/help lists them") + "\n")
        return True

    def _set(self, word: str, rest: str) -> None:
        """Change one decoding option; an invalid value changes nothing."""
        name, convert = _SETTINGS[word]
        try:
            changed = replace(self.session.options, **{name: convert(rest)})
        except ValueError:
            self.write(f"/{word} needs a number\n")
            return
        problems = changed.sampling.problems()
        if changed.max_new_tokens < 1:
            problems.append(Problem(f"max is {changed.max_new_tokens}", "must be >= 1"))
        if problems:
            self.write(f"{problems[0]}\n")
            return
        self.session.options = replace(changed, greedy=changed.greedy and word in ("max", "seed"))
        self._settings()

    def _settings(self) -> None:
        options = self.session.options
        chance = f"temperature {options.temperature:g}, top-p {options.top_p:g}, top-k {options.top_k}"
        decoding = "greedy" if options.greedy else f"{chance}, seed {options.seed}"
        self.write(f"{decoding}, at most {options.max_new_tokens} tokens\n")

    def _reset(self) -> None:
        self.session.reset()
        self.write("forgotten\n")

    def _retry(self) -> None:
        if not self.last:
            self.write("nothing to retry\n")
            return
        history = self.session.history
        if len(history) >= 2 and history[-2]["content"] == self.last:
            del history[-2:]
        self.session.options = replace(self.session.options, seed=self.session.options.seed + 1)
        self.say(self.last)

    def _greedy(self, *, on: bool) -> None:
        self.session.options = replace(self.session.options, greedy=on)
        self._settings()


_SIMPLE: dict[str, Callable[[ChatLoop], None]] = {
    "help": lambda loop: loop.write(f"{HELP}\n"),
    "reset": ChatLoop._reset,
    "retry": ChatLoop._retry,
    "greedy": lambda loop: loop._greedy(on=True),
    "sample": lambda loop: loop._greedy(on=False),
    "settings": ChatLoop._settings,
}
_SETTINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "temperature": ("temperature", float),
    "top-p": ("top_p", float),
    "top-k": ("top_k", int),
    "max": ("max_new_tokens", int),
    "seed": ("seed", int),
}


def typed_lines(prompt: str, hint: Callable[[str], None]) -> Iterator[str]:
    """Yield lines typed at a terminal until Ctrl-D, with editing and history; Ctrl-C drops the line."""
    with contextlib.suppress(ImportError):
        # It gives `input` editing and history; importing it changes the terminal, and not every Python has it.
        import readline  # noqa: F401

    while True:
        try:
            yield input(prompt)
        except EOFError:
            hint("\n")
            return
        except KeyboardInterrupt:
            hint("\n(Ctrl-D or /quit leaves)\n")
