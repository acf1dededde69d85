"""What a good recipe becomes: merging, overrides, profiles, paths, variables."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.recipe import DataSource, load
from pipeline.recipe.document import Node, parse, wrap
from pipeline.recipe.merging import merge, override
from pipeline.recipe.paths import expand

Write = Callable[..., Path]
TUNE = """
name: small
seed: 17
data: {pairs: {path: pairs.jsonl}}
stages:
  t: {kind: tune, data: pairs, model: b, seed: 3, train: {beta: 0.2, learning_rate: 1.0e-3, max_steps: 5}}
  b: {kind: base}
compute: {threads: 2}
"""

keys = st.text("abc", min_size=1, max_size=2)
trees = st.recursive(
    st.none() | st.integers(0, 3), lambda below: st.dictionaries(keys, below, max_size=3), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


def leaves(tree: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    if isinstance(tree, dict) and tree:
        return {k: v for key, below in tree.items() for k, v in leaves(below, (*path, key)).items()}
    return {path: tree}


@given(trees, trees)
def test_deep_merge_laws(under: dict[str, object], over: dict[str, object]) -> None:
    def merged(a: object, b: object) -> object:
        return merge(wrap(a, "a:1"), wrap(b, "b:1")).plain()

    both = merged(under, over)
    assert merged(under, {}) == under
    assert merged({}, over) == over
    assert merged(both, over) == both  # laying the same on top again changes nothing
    for path, value in leaves(over).items():  # the upper one wins
        at: object = both
        for key in path:
            assert isinstance(at, dict)
            at = at[key]
        assert at == value or value == {}
    for path, value in leaves(under).items():  # what the upper one does not touch stays
        touched: object = over
        for key in path:
            if not isinstance(touched, dict) or key not in touched:
                assert leaves(both).get(path, value) == value
                break
            touched = touched[key]


@given(trees, trees, trees)
def test_deep_merge_is_associative_where_mappings_stay_mappings(a: dict, b: dict, c: dict) -> None:  # type: ignore[type-arg]
    def kinds_clash(x: object, y: object) -> bool:
        if isinstance(x, dict) and isinstance(y, dict):
            return any(kinds_clash(x[k], y[k]) for k in x.keys() & y.keys())
        return isinstance(x, dict) != isinstance(y, dict)

    if kinds_clash(a, b) or kinds_clash(b, c) or kinds_clash(a, c):
        return
    one, two, three = (wrap(tree, "x:1") for tree in (a, b, c))
    assert merge(merge(one, two), three).plain() == merge(one, merge(two, three)).plain()


def test_a_recipe_is_resolved(write: Write) -> None:
    recipe = load(write(TUNE))
    assert (recipe.name, recipe.seed, list(recipe.stages)) == ("small", 17, ["t", "b"])
    tuned = recipe.stages["t"]
    assert (tuned.kind, tuned.seed, tuned.compute.threads, tuned.where) == ("tune", 3, 2, "r.yaml:6")
    assert recipe.stages["b"].seed == 17
    train = tuned.config.train  # type: ignore[attr-defined]
    assert (train.beta, train.batch_size) == (0.2, 8)
    assert train.passthrough() == {"learning_rate": 0.001, "max_steps": 5}
    assert recipe.data["pairs"].files == (Path.cwd() / "pairs.jsonl",)
    assert recipe.where("stages", "b", "kind") == "r.yaml:7"
    assert recipe.where("stages", "b", "size") == "r.yaml:7"
    assert recipe.resolved["stages"]["t"]["train"] == {"beta": 0.2, "learning_rate": 0.001, "max_steps": 5}


def test_yaml_is_version_1_2_and_merges_anchors(write: Write) -> None:
    node, problems = parse("a: &x {p: 1e-3, q: no, r: 2024-01-01}\nb: {<<: *x, q: 0o17}\n", "f")
    assert problems == []
    assert node.plain() == {
        "a": {"p": 0.001, "q": "no", "r": "2024-01-01"},
        "b": {"p": 0.001, "q": 15, "r": "2024-01-01"},
    }


def test_whole_floats_are_integers_and_null_means_the_default_or_null(write: Write) -> None:
    recipe = load(
        write(
            "data: {pairs: pairs.jsonl}\n"
            "stages:\n"
            "  b: {kind: base, size: 1e1, algorithm: null}\n"
            "  t: {kind: tune, data: pairs, model: b, max_length: null, seed: null,\n"
            "      train: {beta: null, max_steps: 1e2}}\n"
            "  gone: null\n"
        )
    )
    assert recipe.stages["b"].config.model_dump() == {"size": 10, "algorithm": "bpe"}
    tuned = recipe.stages["t"]
    assert tuned.config.max_length is None  # type: ignore[attr-defined]
    assert tuned.config.train.beta == 0.1  # type: ignore[attr-defined]
    assert repr(tuned.config.train.passthrough()) == "{'max_steps': 100}"  # type: ignore[attr-defined]
    assert tuned.seed == 0
    assert "gone" not in recipe.stages


def test_extends_merges_files_in_order_and_null_takes_out(write: Write) -> None:
    write("seed: 1\nstages:\n  b: {kind: base, size: 5}\n  c: {kind: base}\n  d: {kind: base, size: 7}\n", "low.yaml")
    write("seed: 2\nstages: {b: {algorithm: unigram}}\n", "mid.yaml")
    recipe = load(write("extends: [low.yaml, mid.yaml]\nstages:\n  c: null\n  d: {size: null}\n"))
    assert recipe.seed == 2
    assert list(recipe.stages) == ["b", "d"]
    assert recipe.stages["b"].config.model_dump() == {"size": 5, "algorithm": "unigram"}
    assert recipe.stages["d"].config.model_dump()["size"] == 4
    assert recipe.where("stages", "b", "size") == "low.yaml:3"
    assert recipe.where("stages", "b", "algorithm") == "mid.yaml:2"
    assert recipe.name == "r"


def test_problems_of_an_extended_file_name_that_file(write: Write) -> None:
    write("stages:\n  b:\n    kind: base\n    size: 99\n", "low.yaml")
    with pytest.raises(PipelineError, match=r"^low.yaml:4 stage b: size is 99; it must be <= 64$"):
        load(write("extends: low.yaml\n"))


def test_recipes_that_extend_each_other(write: Write) -> None:
    write("extends: r.yaml\n", "other.yaml")
    with pytest.raises(PipelineError, match=r"other.yaml:1: recipes extend each other: r.yaml → other.yaml → r.yaml"):
        load(write("extends: other.yaml\nstages: {b: {kind: base}}\n"))


def test_set_changes_adds_and_removes(write: Write) -> None:
    file = write(TUNE)
    recipe = load(
        file,
        overrides=[
            "stages.t.train.beta=0.05",
            "stages.t.tags=[x, y]",
            "stages.t.tags.1=z",
            "stages.b.algorithm=unigram",
            "stages.t.train.max_steps=",
            "stages.extra={kind: base, size: 8}",
            "name=other",
        ],
    )
    config = recipe.stages["t"].config.model_dump()
    assert config["train"] == {"batch_size": 8, "beta": 0.05, "warm": 0, "learning_rate": 0.001}
    assert config["tags"] == ["x", "z"]
    assert recipe.stages["b"].config.model_dump()["algorithm"] == "unigram"
    assert recipe.stages["extra"].config.model_dump()["size"] == 8
    assert recipe.name == "other"


def test_set_finds_keys_with_dots() -> None:
    root, _ = parse("stages: {a.b: {size: 1}, a: {size: 2}}", "f")
    changed, problems = override(root, "stages.a.b.size=3")
    assert problems == []
    assert changed.plain() == {"stages": {"a.b": {"size": 3}, "a": {"size": 2}}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages.tt.train.beta=1", "--set stages.tt.train.beta=1: no stage `tt`. Did you mean `t`?"),
        ("data.pear.limit=1", "--set data.pear.limit=1: no data source `pear`. Did you mean `pairs`?"),
        (
            "nonsense",
            "--set nonsense: cannot be read; expected key.key=value. For example `--set stages.dpo.train.beta=0.05`",
        ),
        ("stages.t.train.beta=-1", "--set stages.t.train.beta=-1 stage t: train.beta is -1; it must be > 0"),
        ("stages.t.kind.x=1", "--set stages.t.kind.x=1: `x` is set inside 'tune'; expected a mapping at r.yaml:6"),
        (
            "stages.t.train.beta=[",
            "--set stages.t.train.beta=[: not valid YAML: expected the node content, but found '<stream end>'",
        ),
    ],
)
def test_a_bad_set_is_told(write: Write, text: str, message: str) -> None:
    write(TUNE)
    with pytest.raises(PipelineError) as caught:
        load("r.yaml", overrides=[text])
    assert str(caught.value) == message


def test_profiles(write: Write) -> None:
    text = TUNE + "profiles:\n  gpu: {compute: {precision: bf16}, stages: {b: {size: 9}}}\n  off: {stages: {t: null}}\n"
    file = write(text)
    plain, gpu, off = (load(file, profile=name) for name in (None, "gpu", "off"))
    assert plain.stages["b"].config.model_dump()["size"] == 4
    assert gpu.stages["b"].config.model_dump()["size"] == 9
    assert (gpu.stages["t"].compute.precision, gpu.stages["t"].compute.threads) == ("bf16", 2)
    assert list(off.stages) == ["b"]
    assert gpu.profiles == ("gpu", "off")
    with pytest.raises(PipelineError, match=r"no profile `gpo`; expected one of gpu, off. Did you mean `gpu`\?"):
        load(file, profile="gpo")


def test_set_is_stronger_than_a_profile_and_that_than_the_file(write: Write) -> None:
    file = write(TUNE + "profiles: {p: {seed: 2, stages: {b: {size: 9}}}}\n")
    recipe = load(file, profile="p", overrides=["stages.b.size=10"])
    assert (recipe.seed, recipe.stages["b"].config.model_dump()["size"]) == (2, 10)


def test_paths_are_found_beside_the_recipe_then_above_then_here(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("recipes", "here"):
        (tmp_path / folder).mkdir()
    for name in ("recipes/one.jsonl", "one.jsonl", "two.jsonl", "here/two.jsonl", "here/three.jsonl"):
        (tmp_path / name).write_text("{}\n")
    text = "data: {a: {path: [one.jsonl, two.jsonl, three.jsonl]}, g: {path: '*o*.jsonl'}}\nstages: {b: {kind: base}}\n"
    (tmp_path / "recipes/r.yaml").write_text(text)
    monkeypatch.chdir(tmp_path / "here")
    recipe = load("../recipes/r.yaml")
    expected = [tmp_path / name for name in ("recipes/one.jsonl", "two.jsonl", "here/three.jsonl")]
    assert recipe.data["a"].files == tuple(expected)
    assert recipe.data["g"].files == (tmp_path / "recipes/one.jsonl",)
    assert recipe.find("two.jsonl") == tmp_path / "two.jsonl"
    assert recipe.find("four.jsonl") is None


def test_a_folder_is_all_its_data_files(write: Write, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("b.jsonl.gz", "a.csv", "README.md", ".hidden.jsonl"):
        (tmp_path / "d" / name).write_text("x")
    source = DataSource(path="d")
    assert [file.name for file in source.files] == ["a.csv", "b.jsonl.gz"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, "pairs.jsonl"), ({"WHICH": ""}, "pairs.jsonl"), ({"WHICH": "other"}, "other.jsonl")],
)
def test_environment_variables_in_paths(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], expected: str
) -> None:
    (tmp_path / "other.jsonl").write_text("{}\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    recipe = load(write("data: {d: {path: '${WHICH:-pairs}.jsonl'}}\nstages: {b: {kind: base}}\nstore: ${HOME}/s\n"))
    assert [file.name for file in recipe.data["d"].files] == [expected]
    assert recipe.store == f"{Path.home()}/s"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$${A}", "${A}"),
        ("$${A:-x}/${A}", "${A:-x}/a"),
        ("$${", "${"),
        ("$A $", "$A $"),
        ("${NONE:-}${A}", "a"),
        ("${A:-$b}", "a"),
        ("${NONE:-$b}", "$b"),
    ],
)
def test_what_variables_and_escapes_stand_for(text: str, expected: str) -> None:
    assert expand(text, {"A": "a"}) == expected


def test_what_a_variable_holds_is_not_expanded_again() -> None:
    assert expand("${A}", {"A": "${B}", "B": "b"}) == "${B}"


@pytest.mark.parametrize("text", ["${A", "${A-x}", "${}", "${1}", "${A:-${B:-x}}", "${A}${ A }"])
def test_a_brace_that_begins_no_variable_is_a_problem(text: str) -> None:
    with pytest.raises(PipelineError, match=f"^a `\\${{` in `{re.escape(text)}` begins no variable; expected"):
        expand(text, {"A": "a", "B": "b"})


def test_an_empty_variable_is_called_empty() -> None:
    with pytest.raises(PipelineError, match=r"^the environment variable A in `\${A}` is empty. Set it, or write "):
        expand("${A}", {"A": ""})


def test_a_recipe_keeps_the_variables_it_names(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"KIND": "sm", "ROWS": "pairs", "MODEL": "a/b"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "small.yaml").write_text("stages: {b: {kind: base}}\nstore: ${STORE:-s}\n")
    text = "extends: ${KIND}all.yaml\ndata: {d: '${ROWS}.jsonl', h: {hub: '${HUB:-x/y}', revision: '${REV:-v1}'}}\n"
    recipe = load(write(text + "stages: {t: {kind: tune, data: d, model: '${MODEL}'}}\n"))
    assert set(recipe.variables) == {
        ("KIND", "sm", True),
        ("ROWS", "pairs", True),
        ("MODEL", "a/b", True),
        ("HUB", "x/y", False),
        ("REV", "v1", False),
        ("STORE", "s", False),
    }
    assert (recipe.data["h"].hub, recipe.data["h"].revision, recipe.store) == ("x/y", "v1", "s")
    assert recipe.resolved["stages"]["t"]["model"] == "${MODEL}", "a manifest says what the recipe says"


def test_a_data_set_whose_variable_is_not_set_is_a_problem(write: Write) -> None:
    with pytest.raises(PipelineError, match=r"^r.yaml:1: the environment variable NONE in `\${NONE}` is not set"):
        load(write("data: {d: {hub: '${NONE}'}}\nstages: {b: {kind: base}}\n"))


def test_a_variable_inside_braces_without_quotes_is_said_to_want_them(write: Write) -> None:
    message = r"^r.yaml:1: not valid YAML: .*\. Put a text with \${NAME} in quotes where it stands inside {…} or \[…\]$"
    with pytest.raises(PipelineError, match=message):
        load(write("stages: {b: {kind: base, note: ${A:-b}}}\n"))
    with pytest.raises(PipelineError, match=r"^r.yaml:1: not valid YAML: [^$]*$"):
        load(write("stages: {b: {kind: base, note: [A}}\n"))


def test_the_home_of_nobody_is_a_path_that_does_not_exist(write: Write) -> None:
    with pytest.raises(PipelineError, match=r"data.d: `~nobody-of-this-name/x.jsonl` does not exist"):
        load(write("data: {d: {path: '~nobody-of-this-name/x.jsonl'}}\nstages: {b: {kind: base}}\n"))


def test_variables_in_models_and_functions(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gold.py").write_text("def gold(row):\n    return 1.0\n")
    monkeypatch.setenv("FILE", "gold")
    text = "data: {pairs: pairs.jsonl}\nstages:\n  t: {kind: tune, data: pairs, model: '${MODEL}'}\n"
    text += "  j: {kind: judge, models: [t, '${MODEL:-t}'], gold: '${FILE}.py:gold'}\n"
    with pytest.raises(
        PipelineError, match=r"^r.yaml:3 stage t: the environment variable MODEL in `\${MODEL}` is not set"
    ):
        load(write(text))
    monkeypatch.setenv("MODEL", "owner/name")
    recipe = load("r.yaml")
    assert recipe.stages["t"].config.model_dump()["model"] == "owner/name"
    assert recipe.stages["j"].config.model_dump() == {"models": ["t", "owner/name"], "gold": "gold.py:gold"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=50)
@given(st.binary(max_size=60) | st.text("{}[]:,-&*!|>'\"#%@ \nab1", max_size=60).map(str.encode))
def test_no_bytes_crash_the_reader(write: Write, content: bytes) -> None:
    file = write("")
    file.write_bytes(content)
    with pytest.raises(PipelineError):  # no random bytes are a recipe with a stage
        load(file)


def test_nodes_are_walked() -> None:
    node = wrap({"a": [1, {"b": 2}]}, "f:1")
    assert [n.value for n in node.walk() if not isinstance(n.value, dict | list)] == [1, 2]
    assert isinstance(node.child("a"), Node)
