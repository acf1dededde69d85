"""User functions: found without running them, hashed, loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.recipe import find_code, load_function


def put(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_a_file_is_found_and_not_run(tmp_path: Path) -> None:
    file = put(tmp_path, "a/gold.py", "raise SystemExit('ran')\ndef gold(row): return 1\n")
    source = find_code("a/gold.py:gold", [tmp_path])
    assert (source.function, source.file) == ("gold", file)
    assert find_code(f"{file}:gold", []).sha256 == source.sha256


def test_a_module_is_found_and_its_package_is_not_run(tmp_path: Path) -> None:
    put(tmp_path, "pack_x/__init__.py", "raise SystemExit('ran')\n")
    file = put(tmp_path, "pack_x/deep/__init__.py", "def gold(row): return 1\n")
    other = put(tmp_path, "pack_x/deep/leaf.py", "gold = lambda row: 1\n")
    assert find_code("pack_x.deep:gold", [tmp_path]).file == file
    assert find_code("pack_x.deep.leaf:gold", [tmp_path]).file == other
    assert find_code("json.decoder:JSONDecoder", []).file.name == "decoder.py"


def test_the_source_counts_and_so_do_files_beside_it_that_it_imports(tmp_path: Path) -> None:
    put(
        tmp_path,
        "gold.py",
        "import json\nfrom near import one\nimport far\ndef gold(row): return one()\ndef two(): ...\n",
    )
    put(tmp_path, "near.py", "from deep_down import x\ndef one(): return 1\n")
    put(tmp_path, "deep_down.py", "x = 1\n")
    put(tmp_path, "other.py", "x = 1\n")

    def of(name: str = "gold") -> str:
        return find_code(f"gold.py:{name}", [tmp_path]).fingerprint

    before = of()
    assert of("two") != before  # another function of the same file is another fingerprint
    put(tmp_path, "other.py", "x = 2\n")
    assert of() == before
    put(tmp_path, "deep_down.py", "x = 2\n")
    assert of() != before
    put(tmp_path, "deep_down.py", "x = 1\n")
    assert of() == before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gold.py:gld", "gold.py does not define `gld`. Did you mean `gold`?"),
        ("gold.py:zzz", "gold.py does not define `zzz`. It defines gold, Rules, limit"),
        (
            "gold.py:loads",
            "gold.py does not define `loads`. It only imports it from `json`: name the file that defines it",
        ),
        ("broken.py:gold", "broken.py line 1 is not valid Python: invalid syntax (broken.py, line 1)"),
        (
            "no_such_module_x:gold",
            "there is no module `no_such_module_x`; expected a module that can be imported from here",
        ),
        ("math:sqrt", "module `math` has no Python source; expected a module written in Python"),
        ("gold.py", "`gold.py` names no function; expected `module:name` or `path/to/file.py:name`"),
    ],
)
def test_what_cannot_be_found_is_told(tmp_path: Path, spec: str, message: str) -> None:
    put(tmp_path, "gold.py", "from json import loads\ndef gold(r): ...\nclass Rules: ...\nlimit: int = 3\nempty: int\n")
    put(tmp_path, "broken.py", "def (\n")
    with pytest.raises(PipelineError) as caught:
        find_code(spec, [tmp_path])
    assert str(caught.value).replace(f"{tmp_path}/", "") == message


def test_functions_are_loaded(tmp_path: Path) -> None:
    put(tmp_path, "load_me.py", "from load_near import one\ndef gold(row): return one() + row\nnumber = 3\n")
    put(tmp_path, "load_near.py", "def one(): return 1\n")
    put(tmp_path, "pack_y/__init__.py", "")
    put(tmp_path, "pack_y/leaf.py", "class Gold:\n    def __init__(self, row): self.row = row\n")
    gold = load_function("load_me.py:gold", [tmp_path])
    assert gold(2) == 3
    assert load_function("load_me.py:gold", [tmp_path]) is gold
    assert load_function("pack_y.leaf:Gold", [tmp_path])(5).row == 5
    with pytest.raises(PipelineError, match=r"^`load_me.py:number` is int; expected a function$"):
        load_function("load_me.py:number", [tmp_path])


def test_an_edit_of_the_same_size_in_the_same_second_is_what_runs(tmp_path: Path) -> None:
    """Python would run its compiled file of before: the fingerprint of one function, the rewards of another."""

    def edited(value: int) -> int:
        put(tmp_path, "edit_me.py", f"from edit_near import other\ndef gold(): return {value} + other()\n")
        put(tmp_path, "edit_near.py", f"def other(): return {value}0\n")
        for name in ("edit_me.py", "edit_near.py"):
            os.utime(tmp_path / name, (1_700_000_000, 1_700_000_000))
        script = "import sys; sys.path.insert(0, '.'); import edit_me; print(edit_me.gold())"
        if value == 1:  # as the owner of the file has run it
            environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
            subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
        return int(load_function("edit_me.py:gold", [tmp_path])())

    assert [edited(value) for value in (1, 2, 3)] == [11, 22, 33]


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    put(tmp_path, "one/same.py", "def gold(): return 1\n")
    put(tmp_path, "two/same.py", "def gold(): return 2\n")
    assert [load_function(f"{name}/same.py:gold", [tmp_path])() for name in ("one", "two")] == [1, 2]


def test_a_module_hidden_by_another_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "fractions.py", "def gold(): return 1\n")
    with pytest.raises(PipelineError, match=r"^module `fractions` is .*Name the function by its file: `path.py:name`$"):
        load_function("fractions:gold", [tmp_path])


def test_two_folders_may_have_helpers_of_one_name(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        put(tmp_path, f"{folder}/uses_{folder}.py", "from helps import name\ndef gold(): return name\n")
        put(tmp_path, f"{folder}/helps.py", f"name = {folder!r}\n")
    assert [load_function(f"{one}/uses_{one}.py:gold", [tmp_path])() for one in ("one", "two")] == ["one", "two"]
