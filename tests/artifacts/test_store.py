"""Artifacts: what is committed, what is refused, what two processes do to one another."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.artifacts import Store
from pipeline.artifacts.manifest import SHORT, FileRecord, Manifest
from pipeline.errors import ExitCode, Interrupted, PipelineError

A = "a" * 64
B = "b" * 64
FIELDS = {"kind": "sft", "makes": "report"}


def test_a_commit_can_be_found_and_holds_what_was_written(store, make):
    artifact = make(store, "sft", "1", files={"a.txt": b"alpha", "sub/b.txt": b"beta"}, metrics={"loss": 0.5}, seed=7)
    stored_artifact = store.find("sft", artifact.manifest.fingerprint)
    assert stored_artifact == artifact
    assert (stored_artifact.path / "sub" / "b.txt").read_bytes() == b"beta"
    assert stored_artifact.path == store.root / "sft" / artifact.manifest.fingerprint[:12]
    assert stored_artifact.manifest.metrics == {"loss": 0.5}
    assert stored_artifact.manifest.seed == 7
    assert stored_artifact.manifest.files["a.txt"] == FileRecord(sha256=hashlib.sha256(b"alpha").hexdigest(), bytes=5)
    assert store.verify(stored_artifact) == []
    assert store.find("sft", B) is None
    assert store.find("other", artifact.manifest.fingerprint) is None


def test_digest_is_sha256_over_sorted_lines_of_path_and_hash(store, make):
    artifact = make(store, files={"b": b"2", "a/z": b"1"})
    one, two = hashlib.sha256(b"1").hexdigest(), hashlib.sha256(b"2").hexdigest()
    assert artifact.manifest.digest == hashlib.sha256(f"a/z {one}\nb {two}\n".encode()).hexdigest()


def test_order_and_times_of_writing_do_not_change_the_digest(tmp_path):
    contents = {"b.txt": b"2", "a/c.txt": b"3", "a/a.txt": b"1"}
    digests = set()
    for turn, order in enumerate(itertools.permutations(contents)):
        store = Store(tmp_path / str(turn))
        with store.work("sft", A) as area:
            for path in order:
                file = area.payload / path
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(contents[path])
                os.utime(file, (turn * 1000, turn * 1000))
            digests.add(area.commit(**FIELDS).manifest.digest)
    assert len(digests) == 1


def test_versions_count_per_name_and_are_never_given_twice(store, make):
    assert [make(store, "sft", str(i)).manifest.version for i in range(3)] == [1, 2, 3]
    assert make(store, "dpo", "0").manifest.version == 1
    newest = store.artifacts("sft")[-1]
    store.remove(newest)
    assert store.find("sft", newest.manifest.fingerprint) is None
    assert make(store, "sft", "9").manifest.version == 4
    assert [a.ref for a in store.artifacts()] == ["dpo@v1", "sft@v1", "sft@v2", "sft@v4"]
    assert not list(store.root.glob(".work/.removed/*"))


def test_the_same_fingerprint_again_keeps_the_first(store):
    with store.work("sft", A) as area:
        (area.payload / "x").write_text("first")
        first = area.commit(**FIELDS)
    with store.work("sft", A) as area:
        (area.payload / "x").write_text("second")
        assert area.commit(**FIELDS) == first
    assert (first.path / "x").read_text() == "first"
    assert len(store.artifacts()) == 1


def test_replace_puts_the_new_payload_in_its_place_as_a_new_version(store):
    for turn, text in enumerate(["first", "second"]):
        with store.work("sft", A) as area:
            (area.payload / "x").write_text(text)
            artifact = area.commit(replace=turn == 1, **FIELDS)
    assert artifact.ref == "sft@v2"
    assert (artifact.path / "x").read_text() == "second"
    assert store.artifacts() == [artifact]
    assert not list(store.root.glob(".work/sft-*"))


def test_scratch_survives_a_failure_and_payload_does_not(store):
    with pytest.raises(RuntimeError, match="broke"), store.work("sft", A) as area:
        (area.scratch / "checkpoint").write_text("step 10")
        (area.payload / "half").write_text("x")
        raise RuntimeError("broke")
    assert store.resumable("sft", A)
    assert not store.resumable("sft", B)
    with store.work("sft", A) as area:
        assert (area.scratch / "checkpoint").read_text() == "step 10"
        assert list(area.payload.iterdir()) == []
        area.commit(**FIELDS)
    assert not store.resumable("sft", A)
    assert not list(store.root.glob(".work/sft-*"))


def test_discard_gives_up_the_checkpoints(store):
    with store.work("sft", A) as area:
        (area.scratch / "checkpoint").write_text("step 10")
        area.discard()
    assert not store.resumable("sft", A)


def test_a_metric_that_is_not_a_number_survives_the_manifest(store, make):
    artifact = make(store, metrics={"loss": float("nan"), "best": float("-inf")})
    metrics = store.find("sft", artifact.manifest.fingerprint).manifest.metrics
    assert metrics["loss"] != metrics["loss"]
    assert metrics["best"] == float("-inf")


@pytest.mark.parametrize(
    "name", ["../evil", "a/b", ".hidden", "", "a\n", "..", "-rf", "a" * 200, "/etc", "a\\b", "naïve", "x\x00y"]
)
def test_a_name_that_could_leave_the_store_is_refused(store, name):
    with pytest.raises(PipelineError, match="letters, digits"):
        store.find(name, A)
    with pytest.raises(PipelineError, match="letters, digits"), store.work(name, A):
        pass
    assert not store.root.exists()


@pytest.mark.parametrize("fingerprint", ["../../../x", "abc", "A" * 64, "g" * 64, A + "\n"])
def test_a_fingerprint_that_is_not_one_is_refused(store, fingerprint):
    with pytest.raises(PipelineError, match="64 lower-case hex"):
        store.find("sft", fingerprint)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "sub/optimizer.pt", "x.PTH", "a.pkl", "b.ckpt", "c.joblib"])
def test_pickle_files_are_refused_by_name(store, name):
    with pytest.raises(PipelineError, match=rf"pickle files .*{Path(name).name}.*safetensors"), store.work("s", A) as w:
        (w.payload / name).parent.mkdir(exist_ok=True)
        (w.payload / name).write_bytes(b"anything")
        w.commit(**FIELDS)
    assert store.artifacts() == []


def test_pickles_are_refused_by_content(store, tmp_path):
    import pickle
    import zipfile

    with store.work("sft", A) as area:
        (area.payload / "weights.data").write_bytes(pickle.dumps({"a": 1}))
        with zipfile.ZipFile(area.payload / "archive", "w") as archive:  # what torch.save writes
            archive.writestr("archive/data.pkl", pickle.dumps([1]))
        with pytest.raises(PipelineError, match=r"archive, weights\.data"):
            area.commit(**FIELDS)


def test_a_safetensors_file_whose_length_looks_like_a_pickle_is_no_pickle(store):
    header = b"{}".ljust(0x480)  # little-endian length 80 04 00 …: the first bytes of a pickle of protocol 4
    with store.work("sft", A) as area:
        (area.payload / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        assert area.commit(**FIELDS).manifest.files["model.safetensors"].bytes == 0x480 + 8


def test_links_are_refused(store, tmp_path):
    (tmp_path / "secret").write_text("secret")
    with store.work("sft", A) as area:
        (area.payload / "link").symlink_to(tmp_path / "secret")
        with pytest.raises(PipelineError, match="`link` is not a plain file"):
            area.commit(**FIELDS)


def test_an_unknown_field_is_refused_and_named(store):
    with store.work("sft", A) as area, pytest.raises(PipelineError, match="manifest colour: Extra inputs"):
        area.commit(colour="red", **FIELDS)


def test_verify_names_each_kind_of_damage(store, make):
    artifact = make(store, files={"same": b"ok", "flipped": b"abc", "gone": b"x", "shorter": b"12345"})
    (artifact.path / "flipped").write_bytes(b"abd")
    (artifact.path / "gone").unlink()
    (artifact.path / "shorter").write_bytes(b"123")
    (artifact.path / "extra").write_bytes(b"?")
    damage = [problem.found for problem in store.verify(artifact)]
    assert damage[0] == "`extra` is not in the manifest"
    assert damage[1].startswith("`flipped` has sha256 a52d159f262b")  # sha256("abd")
    assert damage[2:] == ["`gone` is missing", "`shorter` has 3 bytes"]


def test_a_manifest_of_a_newer_schema_says_so(store, make):
    artifact = make(store)
    file = artifact.path / "manifest.json"
    file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 2, "new_field": 3'))
    with pytest.raises(PipelineError, match=r"schema version 2; this trueup reads up to 1. Upgrade"):
        store.find("sft", artifact.manifest.fingerprint)


def test_a_manifest_whose_digest_does_not_fit_its_files_is_refused(store, make):
    artifact = make(store)
    file = artifact.path / "manifest.json"
    file.write_text(file.read_text().replace(artifact.manifest.digest, B))
    with pytest.raises(PipelineError, match="digest is not that of the files"):
        store.artifacts()


def test_another_fingerprint_with_the_same_first_digits_is_not_taken_for_this_one(store, make):
    artifact = make(store)
    other = artifact.manifest.fingerprint[:SHORT] + "0" * (64 - SHORT)
    with pytest.raises(PipelineError, match="folder holds sft"):
        store.find("sft", other)


def test_a_url_is_not_a_store():
    with pytest.raises(PipelineError, match=r"local folder.*trueup push"):
        Store("s3://bucket/store")


def test_every_byte_is_flushed_before_the_artifact_appears(store, monkeypatch):
    """A power cut after the rename must find the content on disk: files, then their folders, then the rename."""
    flushed: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real_fsync(descriptor)

    def rename(source, target, **options):
        flushed.append(f"rename {target}")
        real_rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    with store.work("sft", A) as area:
        payload = area.payload
        (payload / "sub").mkdir()
        (payload / "sub" / "x").write_text("x")
        final = area.commit(**FIELDS).path
    shown = flushed.index(f"rename {final}")
    before = flushed[:shown]
    assert before.index(f"{payload}/sub/x") < before.index(f"{payload}/sub") < before.index(f"{payload}")
    assert any(entry.startswith(f"{payload}/.manifest.json.") for entry in before)
    assert before[-1] in (str(store.root), str(payload))
    assert flushed[shown + 1] == str(final.parent)


WORKER = """
import sys, time
from pathlib import Path
from pipeline.artifacts import Store
store, gates, name, fingerprints, mark, hold = Store(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:7]
def until(file):
    end = time.monotonic() + 800
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.002)
def wait():
    (gates / "somebody waits").touch()
    waits.append(1)
waits = []
(gates / f"ready{mark}").touch()
until(gates / "go")
for fingerprint in fingerprints.split(","):
    with store.work(name, fingerprint, waiting=wait) as area:
        if store.find(name, fingerprint):
            print("found, told to wait", len(waits))
            continue
        (area.payload / "who").write_text(mark)
        if hold == "hold":
            until(gates / "somebody waits")
        print("made", area.commit(kind="sft", makes="report").manifest.version)
"""


def _race(store: Store, tmp_path: Path, jobs: list[str], hold: str = "") -> list[str]:
    """Run one process per job (fingerprints to make, joined by commas), all let go at the same moment."""
    gates = tmp_path / "gates"
    gates.mkdir()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(store.root), str(gates), "sft", job, str(n), hold],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for n, job in enumerate(jobs)
    ]
    deadline = time.monotonic() + 800
    while len(list(gates.glob("ready*"))) < len(jobs) and time.monotonic() < deadline:
        time.sleep(0.01)
    (gates / "go").touch()
    outputs = [racer.communicate(timeout=800)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * len(racers)
    return outputs


def test_two_processes_racing_for_one_stage_make_it_once(store, tmp_path):
    assert sorted(_race(store, tmp_path, [A, A], hold="hold")) == ["found, told to wait 1\n", "made 1\n"]
    assert len(store.artifacts()) == 1


def test_processes_committing_at_once_get_distinct_versions(store, tmp_path):
    jobs = [",".join(f"{worker}{turn}" * 32 for turn in range(5)) for worker in range(3)]
    _race(store, tmp_path, jobs)
    assert [a.manifest.version for a in store.artifacts("sft")] == list(range(1, 16))
    assert all(store.verify(a) == [] for a in store.artifacts())


def test_waiting_ends_when_asked_to_stop(store):
    with (
        store.work("sft", A),
        pytest.raises(Interrupted, match="stage sft: stopped while waiting"),
        store.work("sft", A, stopping=lambda: True),
    ):
        pass


def test_hundreds_of_artifacts_are_listed_with_one_look_at_each(store, make, monkeypatch):
    big = make(
        store,
        config={f"key{n}": {"learning_rate": 1e-3, "words": ["a", "b"]} for n in range(60)},
        environment={"packages": {f"package{n}": "1.2.3" for n in range(40)}},
        files={f"file{n}": b"x" for n in range(20)},
    ).manifest
    for n in range(2, 402):
        manifest = big.model_copy(update={"fingerprint": f"{n:012x}" + "0" * 52, "version": n})
        folder = store.root / "sft" / manifest.short
        folder.mkdir()
        (folder / "manifest.json").write_bytes(manifest.to_json())
    looked: list[Path] = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: looked.append(path) or read(path))
    assert len(store.artifacts()) == 401
    assert len(looked) == len(set(looked)) == 401 and {path.name for path in looked} <= {"manifest.json"}


def test_importing_the_store_imports_neither_fsspec_nor_torch(python):
    code = (
        "import sys, pipeline.artifacts, pipeline.artifacts.remote, pipeline.artifacts.lineage;"
        "print(sorted({'fsspec', 's3fs', 'torch', 'numpy', 'rich', 'asyncio'} & set(sys.modules)))"
    )
    assert python(code).stdout == "[]\n"


def test_the_manifest_is_frozen_and_knows_its_refs(store, make):
    manifest: Manifest = make(store).manifest
    assert manifest.ref == "sft@v1"
    with pytest.raises(ValueError, match="frozen"):
        manifest.seed = 3


def test_a_store_that_is_nowhere_is_bad_input(tmp_path):
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    for root in (tmp_path / "one", "~nobody-of-this-name/store"):
        with pytest.raises(PipelineError, match=f"store `{root}` is nowhere: .*; expected a folder") as refused:
            Store(root)
        assert refused.value.exit_code == ExitCode.BAD_INPUT
