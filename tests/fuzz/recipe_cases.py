"""Mutated recipes: every shipped one with values, keys and text changed, through what `check` and `plan` do.

A case is a YAML text. It may be accepted, or refused with problems of our own in one line each; anything else that is
raised is a finding. No torch: models without a formula are not counted, and no hub answers.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.cli.survey import RecipeOptions, survey_of
from pipeline.cli.verbs.plan import print_plan
from pipeline.errors import ExitCode, PipelineError
from pipeline.preflight import check_plan
from pipeline.preflight.forecast.shapes import ModelShapes
from pipeline.stages import load_all

ROOT = Path(__file__).resolve().parents[2]
ROWS = 30
"""Rows of each data file that are kept, so that reading them takes no time."""

VALUES = (
    *("", "null", "~", "{}", "[]", "[[]]", "[{}]", "{a: {}}", "[null]", "{a: null}", "[[[[[[1]]]]]]"),
    *("true", "false", "yes", "0", "-1", "1", "3", "-0.0", "0.5", "1.5", "1e300", "1e-300", "1e400", ".nan", ".inf"),
    *("-.inf", "999999999999", "99999999999999999999999999", "-99999999999999999999", "0x1F", "0o17", "1_000", "1e3"),
    *(
        "2024-01-01",
        "2024-01-01T10:00:00Z",
        "12:30:45",
        '""',
        '" "',
        '"1"',
        '"1.5"',
        '"true"',
        "x",
        "X",
        "auto",
        "none",
    ),
    *("hub://x", "hf://a/b", "s3://bucket/key", "file:///x", "a/b", "a/b@c", "a/b@", "@", ":", "a:b", "a@v1", "a@v0"),
    *("a@v99999999999999999999", "sft@", "sft:champion", "/nonexistent", "./nothing", "..", ".", "~/nothing"),
    *(
        "${HOME}/nothing",
        "${NOT_SET_AT_ALL}",
        '"${"',
        '"${A:-}"',
        "data",
        "recipes",
        '"*"',
        '"**/*"',
        '"[a"',
        '"{a,b}"',
    ),
    *("rewards.py:f", "gsm8k_grpo.py:correct", "gsm8k_grpo.py:nothing", "gsm8k_grpo.py", "os.py:", ":f", "os:system"),
    *("!!python/object/apply:os.getcwd []", "!!binary aGVsbG8=", "!!set {a, b}", "!foo bar", "!!int x", "!!float x"),
    *(
        "!!str 1",
        "!!null x",
        "!!bool x",
        "!!timestamp x",
        "!!omap [a: 1]",
        "&a [*a]",
        "*nowhere",
        "&a x",
        "{<<: {a: 1}}",
    ),
    *(
        "{<<: 1}",
        "{1: 2}",
        "{null: 1}",
        "{? [a] : b}",
        "{true: 1}",
        "{'': 1}",
        "{a: 1, a: 2}",
        '[1, "a", null, {x: 1}]',
    ),
    *(
        '"\\0"',
        '"a\\nb"',
        '"\\ud800"',
        '"\\U0001F600"',
        '"\\u202Eabc"',
        "'é'",
        "größe",
        "日本",
        "|-\n  a",
        "%",
        "`",
        "- a",
    ),
    *('"' + "a" * 300 + '"', '"' + "a" * 10_000 + '"', "{" * 60 + "}" * 60, "[" * 300 + "]" * 300),
    *("llama", "gpt2", "qwen3", "mamba", "nosuch", "{type: llama}", "{type: 1}", "{model: rm}", "{function: 1}"),
    *("{path: data/quickstart/corpus.jsonl}", "{hub: a/b, revision: 1}", "{r: 4}", "{function: f, model: m}"),
    *("['all', 1]", "{name: h100-80gb}", "{memory_gib: 1e-9}", "{memory_gib: 1}", "h100-80gb", "slurm", "4bit", "4"),
)
"""What stands in the place of a value: raw YAML."""

KEYS = (
    "x",
    "",
    "kind",
    "Kind",
    "kind ",
    "data",
    "model",
    "train",
    "1",
    "null",
    "<<",
    "a.b",
    "a b",
    "ключ",
    "__class__",
)
INTERNAL = (" object at 0x", "Node(", "<class '", "PosixPath(", "Traceback")
"""Words that no message for a user has."""
TOP_KEYS = ("extends", "profiles", "store", "seed", "compute", "slurm", "hardware", "columns", "adapter", "reward")


class Raw(str):
    """YAML that is written as it stands."""


class RecipeCases:
    """Mutated recipes, tried in a folder of their own.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        load_all()
        self.folder = folder
        shutil.copytree(ROOT / "recipes", folder / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "data" / "quickstart").mkdir(parents=True)
        for file in (path for path in (ROOT / "data" / "quickstart").iterdir() if path.suffix in (".py", ".jsonl")):
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = lines[:ROWS] if file.suffix == ".jsonl" else lines
            (folder / "data" / "quickstart" / file.name).write_text("".join(kept), encoding="utf-8")
        _write_real_data(folder / "real")
        self.texts = [file.read_text(encoding="utf-8") for file in sorted((folder / "recipes").glob("*.yaml"))]
        self.trees = [YAML(typ="safe", pure=True).load(text) for text in self.texts]
        for tree in self.trees:  # some are refused where there is no GPU
            tree["compute"] = {**tree.get("compute", {}), "hardware": "h100-80gb"}
        self.file = folder / "recipes" / "mutated.yaml"

    def make(self, rng: random.Random, number: int) -> str:
        """Return a recipe with one to four mutations; each shipped one comes in turn."""
        which = number % len(self.texts)
        text = self.texts[which]
        if rng.random() < 0.85:
            tree = copy.deepcopy(self.trees[which])
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                rng.choice((_value, _value, _value, _value, _key, _remove, _add, _wrap, _swap))(tree, rng)
            text = "\n".join(_lines(tree)) + "\n"
            if rng.random() < 0.9:
                return text
        return rng.choice((_line, _text))(text, rng)

    def attempt(self, case: str) -> str:
        """Check and plan a recipe, as the verbs of the command do."""
        self.file.write_bytes(case.encode("utf-8", "surrogatepass"))
        try:
            with self._world():
                made, store = survey_of(RecipeOptions(self.file, None, str(self.folder / "store"), None)).sound()
                ends = [print_plan(made, store, as_json=as_json) for as_json in (False, True)]
                check_plan(made, store)
        except PipelineError as error:
            told = [str(problem) for problem in error.problems]
            unclear = [
                text for text in told if not text.strip() or "\n" in text or any(word in text for word in INTERNAL)
            ]
            if unclear or not told:
                raise AssertionError(f"no clear line: {unclear[:1]!r}") from error
            if error.exit_code != ExitCode.BAD_INPUT:
                raise AssertionError(f"exit code {error.exit_code}: {told[0]}") from error
            return "refused"
        return "accepted" if ends else ""

    @contextlib.contextmanager
    def _world(self) -> Iterator[None]:
        """Stand in the cases' folder, unheard, without a hub, and without counting parameters with torch."""
        before, environ, count = Path.cwd(), dict(os.environ), ModelShapes._count
        os.environ.update(
            HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9", TRUEUP_REAL_DATA=str(self.folder / "real")
        )
        ModelShapes._count = lambda self, key, text: self._failed.add(key)  # type: ignore[method-assign]
        os.chdir(self.folder)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield
        finally:
            os.chdir(before)
            ModelShapes._count = count  # type: ignore[method-assign]
            os.environ.clear()
            os.environ.update(environ)


def _write_real_data(folder: Path) -> None:
    """Write a row of each shape where `real-small.yaml` and `smollm2-135m.yaml` look for them."""
    asked, said = {"role": "user", "content": "hello"}, [{"role": "assistant", "content": "hi"}]
    pair = {"prompt": [asked], "chosen": said, "rejected": [{"role": "assistant", "content": "no"}]}
    rows = {
        "pretrain/oasst1.jsonl.gz": {"text": "some text"},
        "instruction/oasst1_val_threads.jsonl.gz": {"messages": [asked, *said]},
        "instruction/self_instruct_seed.jsonl.gz": {"messages": [asked, *said]},
        "preference/oasst1_val_pairs.jsonl.gz": pair,
        "preference/hh_harmless_a.jsonl.gz": pair,
        "eval/mt_bench_question.jsonl": {"prompt": "why?"},
        "eval/ifeval_input_data.jsonl": {"prompt": "why?"},
    }
    for name, row in rows.items():
        content = (json.dumps(row) + "\n").encode()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


def _lines(tree: Any, indent: str = "") -> Iterator[str]:
    """Write plain data as YAML: blocks outside, one line for what is small."""
    if isinstance(tree, dict) and tree and (not indent or len(tree) > 2):
        for key, child in tree.items():
            name = json.dumps(key) if isinstance(key, str) else str(key)
            name = key if isinstance(key, Raw) or str(key).isidentifier() else name
            if isinstance(child, dict) and len(child) > 2:
                yield f"{indent}{name}:"
                yield from _lines(child, indent + "  ")
            else:
                yield f"{indent}{name}: {_flow(child)}"
    else:
        yield indent + _flow(tree)


def _flow(tree: Any) -> str:
    if isinstance(tree, Raw):
        return str(tree)
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {_flow(child)}" for key, child in tree.items()) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(_flow, tree)) + "]"
    return json.dumps(tree, default=str)


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Return every container with a key or index of it."""
    places: list[tuple[Any, Any]] = []
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in entries:
        places.append((tree, key))
        places += _places(child)
    return places


def _names(tree: Any) -> list[str]:
    return [str(key) for holder, key in _places(tree) if isinstance(holder, dict)] or ["x"]


def _raw(rng: random.Random) -> Raw:
    return Raw(rng.choice(VALUES))


def _value(tree: Any, rng: random.Random) -> None:
    """Put anything in the place of a value."""
    if places := _places(tree):
        holder, key = rng.choice(places)
        holder[key] = _raw(rng)


def _key(tree: Any, rng: random.Random) -> None:
    """Rename a key: to another, to one of the recipe's, or by a letter; sometimes both are there then."""
    holders = [place for place in _places(tree) if isinstance(place[0], dict)]
    if not holders:
        return
    holder, key = rng.choice(holders)
    word = str(key)
    at = rng.randrange(len(word)) if word else 0
    fresh = rng.choice(
        (rng.choice(KEYS), rng.choice(_names(tree)), word[:at] + word[at + 1 :], word.upper(), Raw(word))
    )
    entries = [(fresh if name == key else name, child) for name, child in holder.items()]
    holder.clear()
    holder.update(entries)


def _remove(tree: Any, rng: random.Random) -> None:
    if places := _places(tree):
        holder, key = rng.choice(places)
        del holder[key]


def _add(tree: Any, rng: random.Random) -> None:
    """Put a known or unknown key, or an entry, where there was none."""
    containers = [tree, *(holder[key] for holder, key in _places(tree) if isinstance(holder[key], dict | list))]
    chosen = rng.choice(containers)
    if isinstance(chosen, list):
        chosen.append(_raw(rng))
    elif isinstance(chosen, dict):
        chosen[rng.choice((rng.choice(KEYS), rng.choice(_names(tree)), rng.choice(TOP_KEYS)))] = _raw(rng)


def _wrap(tree: Any, rng: random.Random) -> None:
    if places := _places(tree):
        holder, key = rng.choice(places)
        child = holder[key]
        holder[key] = rng.choice(([child], {"a": child}, [child, child], {str(key): child}, str(child)))


def _swap(tree: Any, rng: random.Random) -> None:
    """Put a copy of another place's value here."""
    if places := _places(tree):
        holder, key = rng.choice(places)
        donor, name = rng.choice(places)
        holder[key] = copy.deepcopy(donor[name])


def _line(text: str, rng: random.Random) -> str:
    """Repeat, drop, indent, move or empty a line."""
    lines = text.splitlines()
    if not lines:
        return text
    at = rng.randrange(len(lines))
    line = lines[at]
    how = rng.randrange(7)
    if how == 0:
        lines.insert(at, line)
    elif how == 1:
        del lines[at]
    elif how == 2:
        lines[at] = " " * rng.randrange(1, 5) + line
    elif how == 3:
        lines[at] = "\t" + line
    elif how == 4:
        lines[at] = line.lstrip()
    elif how == 5:
        lines.insert(rng.randrange(len(lines)), lines.pop(at))
    else:
        lines[at] = line.partition(":")[0] + ":"
    return "\n".join(lines)


def _text(text: str, rng: random.Random) -> str:
    """Cut the text, or put something anywhere into it."""
    at = rng.randrange(len(text) + 1)
    if rng.random() < 0.3:
        return text[:at]
    odd = ("\t", "\0", "\ufeff", "é", "{", "}", "[", "]", ":", ": ", "#", "&", "*", "!", "|", ">", "'", '"', "%", "@")
    bits = (*odd, "---\n", "...\n", "\r", "\x85", "\ud800", "\n\n", "- ", "? ", ",", "\\", "`", "<<: *a", "!!x ", "💥")
    return text[:at] + rng.choice(bits) + text[at:]
