"""A tiny world, a finished chain trained on it, and ways to run stages and commands: all real, done in seconds.

The world: things have colours. A demonstration answers "which colour has the cat" with "it is red ."; the chosen side
of a preference is such an answer, the rejected one is rude. Two layers of 32 units learn it in tens of steps.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("MKL_NUM_THREADS", None)  # would count more
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("COLUMNS", None)  # lines would break at its width
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each of some hundred processes would compile the package anew

import pytest
from calling import Call
from hypothesis import HealthCheck, settings

import pipeline.stages
from pipeline.artifacts import Artifact, Store
from pipeline.launch.job import DataJob, Job, Outcome, execute
from pipeline.recipe import Compute, DataSource
from pipeline.stage import Event, ResolvedInput, StageContext

gc.disable()  # until everything is collected


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave libraries and tests out of the garbage collections to come: else those take a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.enable()


# No example fails because the machine is busy, and every run tries the same ones: `make fuzz` looks for new ones.
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

pipeline.stages.load_all()

ROOT = Path(__file__).resolve().parents[1]
COLOURS = ("red", "blue", "green", "white", "black")
THINGS = ("cat", "dog", "sun", "sky", "sea", "leaf", "rose", "snow", "coal", "door", "hat", "ship")
COLOUR_OF = {thing: COLOURS[i % len(COLOURS)] for i, thing in enumerate(THINGS)}
COMPUTE = {"micro_batch": "auto", "threads": 1, "precision": "fp32", "checkpoint_every_s": 1e9}
"""How stages compute that run in a test's own process: on any processor in the same format."""


SLOW = {
    "artifacts": "kills remote",
    "benchmarks": "gpu_benchmark",
    "cli": "cli_checkpoints",
    "docker": "inside",
    "docs": "tutorial",
    "end_to_end": "made_models real_data wheel",
    "estimate": "shape",
    "invariants": "accumulation chain_kills library_internals rerun resume",
    "launch": "broken_ranks missing_host two_hosts",
    "machine": "limits",
    "models": "deferred",
    "parallel": "equivalence fallbacks on_policy_processes one_precision pipeline resume_elsewhere "
    "sampling_processes sequence "
    "tensor tp_replicas trunk_processes zero3 zero_bytes",
    "preferences": "accessibility app browser browser_details collect_stage dimensions live_app live_browser "
    "live_endpoints never_stuck other_sites ranking_browser ranking_stage rendering security",
    "recipes": "real_recipes stories",
    "rl": "ppo_resume processes sampling_law sharded_steps trainer",
    "recipe": "trainer_fields",
    "run": "check_tokens full_disk implicit_chain merge_chain merge_sources preflight run run_rounds run_sweep signals",
    "stages": "endpoint_transformers every_field judge_transformers new_kind sample_endpoints "
    "stage_dpo stage_implicit_reward stage_judge stage_kto stage_merge stage_on_policy stage_ppo stage_reward "
    "stage_sft stages_templates written_models",
    "training": "audit best sampling_engines vllm_sampler",
}
"""Files whose tests train, start processes or wait, by folder: `make test-fast` leaves them out."""

_SLOW_FILES = frozenset(f"{folder}/test_{name}.py" for folder, names in SLOW.items() for name in names.split())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `slow` the tests of slow files, and those that need the trained chain."""
    for item in items:
        file = item.path.relative_to(ROOT / "tests").as_posix()
        if file in _SLOW_FILES or "chain" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def own_matmul() -> Iterator[None]:
    """Put torch's way of multiplying back: a stage that ran in this process may have chosen another."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].backends.mkldnn.matmul.fp32_precision = "none"


RECIPE = """\
name: tiny
seed: 7
data:
  corpus: {path: corpus.jsonl}
  demos: {path: demos.jsonl, held_out: 0.1}
  pairs: {path: pairs.jsonl, held_out: 0.1}
  pairs_test: {path: pairs_test.jsonl}
  asks: {path: asks.jsonl}
stages:
  tokenizer: {kind: tokenizer, data: corpus, vocab_size: 360}
  base:
    kind: pretrain
    data: corpus
    tokenizer: tokenizer
    model:
      type: llama
      hidden_size: 32
      num_hidden_layers: 2
      num_attention_heads: 4
      intermediate_size: 64
      max_position_embeddings: 64
    train: {max_steps: 60, batch_size: 16, learning_rate: 1.0e-2}
  sft: {kind: sft, data: demos, model: base, train: {epochs: 4, batch_size: 16, learning_rate: 1.0e-2}}
  rm:
    kind: reward
    data: pairs
    test: pairs_test
    model: sft
    group_by: task
    adapter: {r: 4, dropout: 0.1}
    train: {epochs: 3, batch_size: 16, learning_rate: 5.0e-3}
  dpo: {kind: dpo, data: pairs, model: sft, train: {epochs: 3, batch_size: 16, learning_rate: 1.0e-3, beta: 0.5}}
  report:
    kind: evaluate
    data: asks
    models: [base, sft, dpo]
    baseline: sft
    reward: rm
    gold: gold.py:gold
    correct: gold.py:correct
    max_new_tokens: 16
    resamples: 200
compute: {threads: 1, checkpoint_every_s: 0.2}
"""

GOLD = '''\
"""What a good answer is in the tiny world."""


def correct(completions, answer, **columns):
    return [float(expected in turns[-1]["content"].split()) for turns, expected in zip(completions, answer)]


def gold(completions, answer, **columns):
    rude = [float("away" in turns[-1]["content"].split()) for turns in completions]
    return [right - bad for right, bad in zip(correct(completions, answer), rude)]
'''


def _question(rng: random.Random) -> tuple[str, str]:
    thing = rng.choice(THINGS)
    asks = ("which colour has the {0}", "the {0} has which colour", "tell me the colour of the {0} please")
    return rng.choice(asks).format(thing), COLOUR_OF[thing]


def _polite(rng: random.Random, colour: str) -> str:
    return rng.choice(("it is {0} .", "the colour is {0} .", "i see that it is {0} , my friend .")).format(colour)


def _rude(rng: random.Random, colour: str) -> str:
    return rng.choice(("go away .", "go away , it is {0} .", "no , go away now .")).format(colour)


def _corpus(rng: random.Random, count: int) -> list[dict[str, Any]]:
    rows = []
    for _ in range(count):
        sentences = []
        for _ in range(rng.randint(1, 3)):
            question, colour = _question(rng)
            answer = _polite(rng, colour) if rng.random() < 0.8 else _rude(rng, colour)
            sentences.append(f"{question} ? {answer}")
        rows.append({"text": " ".join(sentences)})
    return rows


def _demos(rng: random.Random, count: int) -> list[dict[str, Any]]:
    rows = []
    for i in range(count):
        question, colour = _question(rng)
        answer = _polite(rng, colour) if i % 4 else _rude(rng, colour)
        turns = [{"role": "user", "content": f"{question} ?"}, {"role": "assistant", "content": answer}]
        rows.append({"messages": turns})
    return rows


def _pairs(rng: random.Random, count: int) -> list[dict[str, Any]]:
    rows = []
    for i in range(count):
        question, colour = _question(rng)
        row = {"prompt": f"{question} ? {i % 7}", "chosen": _polite(rng, colour), "rejected": _rude(rng, colour)}
        rows.append({**row, "task": "short" if i % 2 else "long", "gold_chosen": 1.0, "gold_rejected": -1.0})
    return rows


def _asks(rng: random.Random, count: int) -> list[dict[str, Any]]:
    asked = [_question(rng) for _ in range(count)]
    return [
        {"prompt": f"{question} ?", "task": "colour" if i % 2 else "hue", "answer": colour}
        for i, (question, colour) in enumerate(asked)
    ]


def _write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def write_jsonl() -> Callable[[Path, list[dict[str, Any]]], Path]:
    """Write rows to a JSON Lines file."""
    return _write_jsonl


@pytest.fixture(scope="session")
def make_tiny_world() -> Callable[[Path], Path]:
    """Write the tiny world's data and recipe into a folder and return the recipe's path: the same bytes each time."""

    def make(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        rng = random.Random(5)
        _write_jsonl(folder / "corpus.jsonl", _corpus(rng, 240))
        _write_jsonl(folder / "demos.jsonl", _demos(rng, 240))
        _write_jsonl(folder / "pairs.jsonl", _pairs(rng, 160))
        _write_jsonl(folder / "pairs_test.jsonl", _pairs(rng, 60))
        _write_jsonl(folder / "asks.jsonl", _asks(rng, 24))
        (folder / "gold.py").write_text(GOLD, encoding="utf-8")
        (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
        return folder / "tiny.yaml"

    return make


@pytest.fixture
def tiny_recipe(tmp_path: Path, make_tiny_world: Callable[[Path], Path]) -> Path:
    """A tiny world of the test's own."""
    return make_tiny_world(tmp_path / "world")


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "COLUMNS": "200"}


class Command:
    """Runs `trueup` as users do, in processes of their own."""

    def start(self, *args: str | Path, cwd: Path) -> subprocess.Popen[str]:
        """Start it as the leader of a new process group, output in pipes."""
        line = [sys.executable, "-m", "pipeline.cli", *map(str, args)]
        return subprocess.Popen(
            line,
            cwd=cwd,
            env=_environment(),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def __call__(self, *args: str | Path, cwd: Path, timeout_s: float = 800) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        process = self.start(*args, cwd=cwd)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="session")
def command() -> Command:
    """`trueup`, in a process of its own."""
    return Command()


@pytest.fixture(scope="session")
def call() -> Call:
    """`trueup`, called in this process; stages are forked from the warm parent of all runs of this process."""
    return Call()


def _journal(store: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for file in sorted(store.glob(".runs/*/journal.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]


@pytest.fixture(scope="session")
def journal() -> Callable[[Path], list[dict[str, Any]]]:
    """Return the events of every run in a store, oldest first."""
    return _journal


@dataclass(frozen=True)
class Chain:
    """The tiny chain, finished; tests must not change it.

    Attributes:
        recipe: its file, beside its data.
        store: where its artifacts are.
        seconds: wall time of the whole command.
    """

    recipe: Path
    store: Store
    seconds: float

    def __getitem__(self, name: str) -> Artifact:
        """Return the newest artifact of a stage."""
        return self.store.artifacts(name)[-1]

    @property
    def digests(self) -> dict[str, str]:
        """Payload digest of every stage."""
        return {artifact.manifest.name: artifact.manifest.digest for artifact in self.store.artifacts()}


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory, make_tiny_world: Callable[[Path], Path], command: Command) -> Chain:
    """The tiny chain run once per test session (also by several pytest workers) through the real command."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "chain"
    shared.mkdir(exist_ok=True)
    done = shared / "seconds"
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.is_file():
            recipe = make_tiny_world(shared / "world")
            started = time.perf_counter()
            ended = command("run", recipe, "--store", shared / "store", cwd=shared)
            assert ended.returncode == 0, ended.stdout + ended.stderr
            done.write_text(str(time.perf_counter() - started))
    return Chain(shared / "world" / "tiny.yaml", Store(shared / "store"), float(done.read_text()))


@pytest.fixture(scope="session")
def as_input() -> Callable[[Artifact], ResolvedInput]:
    """Name an artifact as the runner names a stage's input."""

    def name(artifact: Artifact) -> ResolvedInput:
        manifest = artifact.manifest
        return ResolvedInput(
            ref=manifest.name,
            name=manifest.name,
            kind=manifest.kind,
            fingerprint=manifest.fingerprint,
            path=str(artifact.path),
            manifest=manifest.model_dump(mode="json"),
        )

    return name


@dataclass(frozen=True)
class Ran:
    """A stage that ran in this process: its outcome, its payload folder, and what it said."""

    outcome: Outcome
    out: Path
    work: Path
    events: list[Event]

    @property
    def notes(self) -> list[str]:
        """Lines it told the user."""
        return [event.text for event in self.events if event.kind == "note"]

    @property
    def history(self) -> list[dict[str, float]]:
        """Its loss curve."""
        return [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]

    @property
    def source(self) -> ResolvedInput:
        """Its payload as the next stage's input."""
        return ResolvedInput(ref="made", name="made", kind="sft", fingerprint="f" * 64, path=str(self.out))


@pytest.fixture
def run_stage(tmp_path: Path) -> Iterator[Callable[..., Ran]]:
    """Run one stage in this process, as a job of the runner, and return what it did.

    ``data`` maps a field to a file or a `DataSource`, ``inputs`` a field to one input or a list. ``expect`` is
    ``done``, ``failed`` or ``stopped``; None takes any. Pictures take longer to draw than a few steps to train: only
    with ``pictures`` are they more than an empty file. Stages in processes of their own always draw them. What is
    sampled is kept in ``responses``, by default in the stage's own work folder.
    """
    import torch
    from matplotlib.figure import Figure

    threads = torch.get_num_threads()

    def run(
        kind: str,
        config: dict[str, Any],
        *,
        data: dict[str, Any],
        inputs: dict[str, Any] | None = None,
        compute: dict[str, Any] | None = None,
        seed: int = 7,
        name: str = "",
        expect: str | None = "done",
        stopping: Callable[[], bool] = lambda: False,
        out: Path | None = None,
        pictures: bool = False,
        responses: Path | None = None,
    ) -> Ran:
        folder = out or tmp_path / f"{name or kind}-{len(list(tmp_path.iterdir()))}"
        for part in ("payload", "work"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        sources = {field: _source(value) for field, value in data.items()}
        given = {
            field: [value] if isinstance(value, ResolvedInput) else value for field, value in (inputs or {}).items()
        }
        names = {field: items[0].ref for field, items in given.items()}
        names |= {field: [item.ref for item in items] for field, items in given.items() if field == "models"}
        job = Job(
            name=name or kind,
            kind=kind,
            config={**{field: field for field in data}, **names, **config},
            seed=seed,
            out=folder / "payload",
            work=folder / "work",
            log=folder / "log",
            inputs=given,
            data={f: DataJob(f, s, None, folder / "payload" / "rejects" / f"{f}.jsonl") for f, s in sources.items()},
            compute=Compute.model_validate({**COMPUTE, **(compute or {})}),
            code_dirs=(tmp_path,),
            responses=responses,
        )
        events: list[Event] = []
        with pytest.MonkeyPatch.context() as patch:
            if not pictures:
                patch.setattr(Figure, "savefig", lambda self, file, **options: file.write(b"<svg/>"))
            outcome = execute(job, events.append, stopping)
        ended = "done" if outcome.result is not None else "stopped" if outcome.stopped else "failed"
        assert expect in (ended, None), outcome.trace or outcome
        return Ran(outcome, folder / "payload", folder / "work", events)

    yield run
    torch.set_num_threads(threads)


def _source(value: Any) -> DataSource:
    return value if isinstance(value, DataSource) else DataSource(path=str(value))


@pytest.fixture(scope="session")
def tiny_tokenizer(chain: Any) -> Any:
    """The chain's tokenizer; tests must not change it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(chain["tokenizer"].path)


@pytest.fixture
def tiny_model(chain: Any) -> Any:
    """The chain's SFT model, in training mode; each test gets its own."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(chain["sft"].path).train()


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., StageContext]:
    """Make the context of a stage that has begun, with some compute settings."""

    def make(events: list[Event] | None = None, **compute: Any) -> StageContext:
        for part in ("out", "work"):
            (tmp_path / part).mkdir(exist_ok=True)
        settings = Compute(**{"precision": "fp32", **compute})
        return StageContext(
            name="tiny",
            seed=3,
            out=tmp_path / "out",
            work=tmp_path / "work",
            inputs={},
            load_rows=lambda field: pytest.fail(f"nothing reads {field} here"),
            compute=settings.settings,
            dims=settings.dims,
            emit=(events if events is not None else []).append,
            stopping=lambda: False,
        )

    return make
