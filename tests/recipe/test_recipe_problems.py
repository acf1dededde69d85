"""What a wrong recipe is told, word for word."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.recipe import inspect, load

GOOD_BASE = "stages:\n  b: {kind: base}\n"
TUNE = """data:
  pairs: {path: pairs.jsonl}
stages:
  b: {kind: base}
  t:
    kind: tune
    data: pairs
    model: b
"""

BAD: dict[str, tuple[str, str]] = {
    "top-level key": ("seeed: 3\n" + GOOD_BASE, "r.yaml:1: unknown key `seeed`. Did you mean `seed`?"),
    "top-level key like nothing": (
        "zzz: 3\n" + GOOD_BASE,
        "r.yaml:1: unknown key `zzz`; "
        "expected one of extends, name, seed, trust_remote_code, store, data, stages, groups, "
        "sweep, compute, profiles",
    ),
    "type of a top-level key": ("seed: many\n" + GOOD_BASE, "r.yaml:1: seed is 'many'; it must be a whole number"),
    "negative seed": ("seed: -1\n" + GOOD_BASE, "r.yaml:1: seed is -1; it must be >= 0"),
    "yaml truth that is text": (
        "trust_remote_code: yes\n" + GOOD_BASE,
        "r.yaml:1: trust_remote_code is 'yes'; it must be true or false",
    ),
    "no stages": ("name: x\n", "r.yaml:1: the recipe has no stages; expected at least one under `stages:`"),
    "a list": ("- a\n", "r.yaml:1: the recipe is not a mapping; expected keys such as data: and stages:"),
    "broken yaml": (
        "stages: {b: {kind: base}\n",
        "r.yaml:2: not valid YAML: expected ',' or '}', but got '<stream end>'",
    ),
    "duplicate key": (
        "stages:\n  b: {kind: base}\n  b: {kind: base}\n",
        "r.yaml:3: key `b` is given twice, first at r.yaml:2. Remove one of them",
    ),
    "key that is no text": (
        "stages:\n  b: {kind: base}\n  1: {kind: base}\n",
        "r.yaml:3: key `1` is not text. Put it in quotes",
    ),
    "tag": (
        "stages:\n  b: !!python/object:os.system {kind: base}\n",
        "r.yaml:2: tag `tag:yaml.org,2002:python/object:os.system` is not allowed; expected plain YAML values",
    ),
    "not finite": (TUNE + "    train:\n      beta: .inf\n", "r.yaml:10: `.inf` is not a finite number"),
    "stage name": (
        "stages:\n  a/b: {kind: base}\n",
        "r.yaml:2: `a/b` is not a name; expected letters, digits, `_`, `-` and `.`, the first a letter or digit",
    ),
    "no kind": ("stages:\n  b: {size: 2}\n", "r.yaml:2 stage b: `kind` is missing; expected one of base, judge, tune"),
    "unknown kind": (
        "stages:\n  b:\n    kind: bse\n",
        "r.yaml:3 stage b: unknown kind `bse`; expected one of base, judge, tune. Did you mean `base`?",
    ),
    "key of a stage": (
        "stages:\n  b:\n    kind: base\n    sise: 3\n",
        "r.yaml:4 stage b: unknown key `sise`. Did you mean `size`?",
    ),
    "key every stage has": (
        "stages:\n  b:\n    kind: base\n    compuet: {}\n",
        "r.yaml:4 stage b: unknown key `compuet`. Did you mean `compute`?",
    ),
    "stage that is a word": ("stages:\n  b: base\n", "r.yaml:2: stage b is not a mapping; expected {kind: …}"),
    "missing key": (
        "data:\n  p: {path: pairs.jsonl}\nstages:\n  b: {kind: base}\n  t: {kind: tune, model: b}\n",
        "r.yaml:5 stage t: `data` is missing; expected preference pairs",
    ),
    "missing key, told by a docstring": (
        "stages:\n  j: {kind: judge}\n",
        "r.yaml:2 stage j: `models` is missing; expected what is compared, in this order",
    ),
    "too large": ("stages:\n  b: {kind: base, size: 65}\n", "r.yaml:2 stage b: size is 65; it must be <= 64"),
    "half an integer": (
        "stages:\n  b: {kind: base, size: 2.5}\n",
        "r.yaml:2 stage b: size is 2.5; it must be a whole number",
    ),
    "number in quotes": (
        'stages:\n  b: {kind: base, size: "2"}\n',
        "r.yaml:2 stage b: size is '2'; it must be a whole number",
    ),
    "truth for a number": (
        "stages:\n  b: {kind: base, size: true}\n",
        "r.yaml:2 stage b: size is true; it must be a whole number",
    ),
    "wrong word": (
        "stages:\n  b: {kind: base, algorithm: bpee}\n",
        "r.yaml:2 stage b: algorithm is 'bpee'; it must be 'bpe' or 'unigram'. Did you mean `bpe`?",
    ),
    "own train field": (TUNE + "    train: {beta: -0.1}\n", "r.yaml:9 stage t: train.beta is -0.1; it must be > 0"),
    "unknown train field": (
        TUNE + "    train:\n      batch_size: 4\n      learning_rat: 0.1\n",
        "r.yaml:11 stage t: unknown key `learning_rat`; expected a word of this stage or a field of DPOConfig. "
        "Did you mean `learning_rate`?",
    ),
    "passed-on field of a wrong type": (
        TUNE + "    train: {learning_rate: fast}\n",
        "r.yaml:9 stage t: train.learning_rate is 'fast'; it must be a number",
    ),
    "passed-on field that is not null": (
        TUNE + "    train: {adam_beta1: [0.9]}\n",
        "r.yaml:9 stage t: train.adam_beta1 is [0.9]; it must be a number",
    ),
    "field that is ours": (
        TUNE + "    train: {num_train_epochs: 2}\n",
        "r.yaml:9 stage t: `num_train_epochs` is decided by trueup. Use `train.epochs`",
    ),
    "contradiction a kind finds": (
        TUNE + "    train:\n      warm: 10\n",
        "r.yaml:10 stage t: train.warm is 10; it must not exceed 9",
    ),
    "unknown key below": (
        TUNE + "    adapter: {rank: 3}\n",
        "r.yaml:9 stage t: unknown key `rank` in `adapter`; expected one of r, targets",
    ),
    "list that is a word": (TUNE + "    tags: one\n", "r.yaml:9 stage t: tags is 'one'; it must be a list"),
    "item of a list": (
        TUNE + "    tags:\n      - one\n      - 2\n",
        'r.yaml:11 stage t: tags.1 is 2; it must be text. Write "2"',
    ),
    "mapping that is a word": (TUNE + "    train: fast\n", "r.yaml:9 stage t: train is 'fast'; it must be a mapping"),
    "unknown data source": (
        TUNE.replace("data: pairs", "data: pair"),
        "r.yaml:7 stage t: no data source `pair`; expected one of pairs. Did you mean `pairs`?",
    ),
    "missing file": (
        TUNE.replace("path: pairs.jsonl", "path: pears.jsonl"),
        "r.yaml:2: data.pairs: `pears.jsonl` does not exist; "
        "expected a file below {cwd}, its parent or the current folder. "
        "Did you mean `pairs.jsonl`?",
    ),
    "glob without files": (
        TUNE.replace("path: pairs.jsonl", "path: 'q*.jsonl'"),
        "r.yaml:2: data.pairs: no file matches `q*.jsonl`; "
        "expected a file below {cwd}, its parent or the current folder. "
        "Did you mean `pairs.jsonl`?",
    ),
    "variable that is not set": (
        TUNE.replace("path: pairs.jsonl", "path: '${NOWHERE_SET}/pairs.jsonl'"),
        "r.yaml:2: data.pairs: the environment variable NOWHERE_SET in `${NOWHERE_SET}/pairs.jsonl` is not set. "
        "Set it, or write ${NOWHERE_SET:-a default}",
    ),
    "two origins": (
        TUNE.replace("path: pairs.jsonl", "path: pairs.jsonl, hub: a/b"),
        "r.yaml:2: data.pairs has both `path` and `hub`; expected exactly one of `path`, `hub`, `artifact`",
    ),
    "no origin": (
        TUNE.replace("path: pairs.jsonl", "limit: 3"),
        "r.yaml:2: data.pairs says nowhere to read from; expected exactly one of `path`, `hub`, `artifact`",
    ),
    "key of another origin": (
        TUNE.replace("path: pairs.jsonl", "path: pairs.jsonl, subset: x"),
        "r.yaml:2: data.pairs `subset` is given with `path`; expected only with `hub`",
    ),
    "key of a data source": (
        TUNE.replace("path: pairs.jsonl", "path: pairs.jsonl, formt: text"),
        "r.yaml:2: unknown key `formt` in `data.pairs`. Did you mean `format`?",
    ),
    "share held out": (
        TUNE.replace("path: pairs.jsonl", "path: pairs.jsonl, held_out: 1"),
        "r.yaml:2: data.pairs.held_out is 1; it must be < 1",
    ),
    "machines without a place to meet": (
        GOOD_BASE + "compute:\n  nodes: 4\n",
        "r.yaml:4: compute.nodes is 4; it must be 1 without compute.rendezvous. "
        "Set compute.rendezvous: HOST:PORT of the first machine",
    ),
    "compute of a stage": (
        "stages:\n  b: {kind: base, compute: {zero: 3, fsdp: true}}\n",
        "r.yaml:2 stage b: compute.fsdp is true; it must be false with compute.zero above 0. "
        "Set compute.zero: 0, or leave compute.fsdp out",
    ),
    "weights in CPU memory below ZeRO-3": (
        GOOD_BASE + "compute: {zero: 2, offload: all}\n",
        "r.yaml:3: compute.offload is all; it must be optimizer or none below ZeRO-3. "
        "Set compute.zero: 3, or compute.offload: optimizer; only ZeRO-3 can keep weights in CPU memory",
    ),
    "a place to meet without a port": (
        GOOD_BASE + "compute: {nodes: 2, rendezvous: first}\n",
        "r.yaml:3: compute.rendezvous is 'first'; it must be HOST:PORT, e.g. node1:29500",
    ),
    "hardware without memory": (
        GOOD_BASE + "compute: {hardware: {tflops: 5}}\n",
        "r.yaml:3: compute.hardware says no memory; expected `name` of a known device, or `memory_gib` of another",
    ),
    "a figure of hardware": (
        GOOD_BASE + "compute: {hardware: {name: l4-24gb, memory_gib: -1}}\n",
        "r.yaml:3: compute.hardware.memory_gib is -1; it must be > 0",
    ),
    "offload of what no ZeRO shards": (
        GOOD_BASE + "compute: {fsdp: true, offload: optimizer}\n",
        "r.yaml:3: compute.offload is optimizer; it must be none without compute.zero. "
        "Set compute.zero: 2 or 3, and leave compute.fsdp out",
    ),
    "two ways to divide": (
        GOOD_BASE + "compute: {processes: 2, pipeline_parallel: 2, tensor_parallel: 2}\n",
        "r.yaml:3: compute.pipeline_parallel is 2; it must be 1 with compute.tensor_parallel above 1. "
        "Set compute.tensor_parallel: 1, or compute.pipeline_parallel: 1",
    ),
    "union": (
        GOOD_BASE + "compute: {micro_batch: big}\n",
        "r.yaml:3: compute.micro_batch is 'big'; it must be a whole number or 'auto'",
    ),
    "function of a file that is not there": (
        "stages:\n  b: {kind: base}\n  j: {kind: judge, models: [b], gold: 'gold.py:gold'}\n",
        "r.yaml:3 stage j: gold: `gold.py` does not exist; expected a file below {cwd}",
    ),
    "function without a name": (
        "stages:\n  b: {kind: base}\n  j: {kind: judge, models: [b], gold: gold}\n",
        "r.yaml:3 stage j: gold: `gold` names no function; expected `module:name` or `path/to/file.py:name`",
    ),
    "extends nothing": (
        "extends: quickstrt.yaml\n" + GOOD_BASE,
        "r.yaml:1: extends `quickstrt.yaml`, which does not exist",
    ),
    "profile with an unknown key": (
        GOOD_BASE + "profiles:\n  gpu:\n    compte: {}\n",
        "r.yaml:5: unknown key `compte` in profile `gpu`. Did you mean `compute`?",
    ),
    "profile for an unknown stage": (
        GOOD_BASE + "profiles:\n  gpu:\n    stages:\n      bb: {size: 3}\n",
        "r.yaml:6: profile `gpu` changes stage `bb`, which the recipe does not have. Did you mean `b`?",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_recipe_is_told_what_is_wrong(what: str, write: Callable[..., Path]) -> None:
    text, message = BAD[what]
    file = write(text)
    with pytest.raises(PipelineError) as caught:
        load(file.name)
    assert str(caught.value) == message.replace("{cwd}", str(file.parent))


def test_all_problems_come_in_one_go_ordered_by_line(write: Callable[..., Path]) -> None:
    write(
        "seeed: 1\n"
        "data:\n"
        "  pairs: {path: nowhere.jsonl}\n"
        "stages:\n"
        "  b: {kind: base, size: 0}\n"
        "  t:\n"
        "    kind: tune\n"
        "    data: pears\n"
        "    train: {beta: 0, bogus: 1, seed: 3, learning_rate: x}\n"
        "  ok: {kind: base}\n"
        "compute: {offload: all}\n"
    )
    recipe, problems = inspect("r.yaml")
    assert [p.where for p in problems] == [f"r.yaml:{n}" for n in (1, 3, 5, 6, 8, 9, 9, 9, 9, 11)]
    assert [p.found for p in problems] == [
        "unknown key `seeed`",
        "data.pairs: `nowhere.jsonl` does not exist",
        "size is 0",
        "`model` is missing",
        "no data source `pears`",
        "train.beta is 0",
        "unknown key `bogus`",
        "`seed` is decided by trueup",
        "train.learning_rate is 'x'",
        "compute.offload is all",
    ]
    assert (set(recipe.stages), set(recipe.broken)) == ({"ok"}, {"b", "t"})


def test_a_recipe_that_is_not_there(write: Callable[..., Path]) -> None:
    write(GOOD_BASE, "quickstart.yaml")
    with pytest.raises(PipelineError) as caught:
        load("quickstrt.yaml")
    assert str(caught.value) == "recipe `quickstrt.yaml` does not exist. Did you mean `quickstart.yaml`?"


def test_aliases_cannot_blow_up_memory(write: Callable[..., Path]) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    write("\n".join(lines) + "\n" + GOOD_BASE)
    _, problems = inspect("r.yaml")
    assert "aliases expand to more than 100,000 values" in [p.found for p in problems]


def test_an_alias_inside_its_anchor_and_endless_nesting_are_problems(write: Callable[..., Path]) -> None:
    write("x: &x [*x]\n" + GOOD_BASE)
    assert "an alias stands inside its own anchor" in [p.found for p in inspect("r.yaml")[1]]
    write("[" * 1200)
    assert inspect("r.yaml")[1][0].found == "nested too deeply"


@pytest.mark.parametrize("levels", [90, 120, 400])
def test_a_value_nested_deeper_than_a_recipe_may_be_is_told_with_its_line(
    levels: int, write: Callable[..., Path]
) -> None:
    write(TUNE.replace("data: pairs\n", f"data: {'[' * levels}{']' * levels}\n"))
    told = [str(problem) for problem in inspect("r.yaml")[1]]
    deep = "r.yaml:7: nested too deeply; expected at most 100 levels of lists and mappings"
    assert (deep in told) is (levels > 100)
    assert any("data is a list" in line for line in told)
