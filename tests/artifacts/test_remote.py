"""Push and pull against a real S3 server and plain folders: interrupted, damaged, forged."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

from pipeline.artifacts import Store
from pipeline.artifacts.manifest import FileRecord, InputRecord, payload_digest
from pipeline.artifacts.refs import resolve, tag
from pipeline.artifacts.remote import Progress, pull, push
from pipeline.errors import ExitCode, PipelineError

FILES = {f"part{n}.safetensors": bytes([n]) * 2000 for n in range(5)} | {"config.json": b"{}", "empty.txt": b""}

PUSH_KILLED = """
import os, signal, sys
from pipeline.artifacts import Store
from pipeline.artifacts.remote import push
seen = 0
def progress(progress):
    global seen
    seen += 1
    if seen == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
push(Store(sys.argv[1]), ["sft"], sys.argv[2], progress=progress, workers=1)
"""

PULL_KILLED = """
import os, signal, sys
from pipeline.artifacts import Store, endpoint
from pipeline.artifacts.remote import pull
endpoint.BLOCK_BYTES = 2**20
seen = 0
def progress(progress):
    global seen
    seen += 1
    if seen == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
pull(sys.argv[2], ["sft"], Store(sys.argv[1]), progress=progress, workers=1)
"""


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store(tmp_path / "other")


def test_a_chain_goes_to_s3_and_comes_back_the_same(store, other, make, s3):
    base = make(store, "base", files={"a/b/c.txt": b"deep"})
    sft = make(store, "sft", files=FILES, parents=(base,))
    tag(store, "sft", "champion")
    seen: list[Progress] = []
    sent = push(store, ["sft:champion"], f"{s3.url}/team/store", progress=seen.append)
    total = 4 + 10_002
    assert (sent.moved, sent.files, sent.bytes) == (("base@v1", "sft@v1"), 8, total)
    assert seen[-1].done_bytes == seen[-1].total_bytes == total
    assert s3.puts()[-2:] == [f"team/store/sft/{sft.manifest.short}/manifest.json", "team/store/.tags/sft/champion"]

    got = pull(f"{s3.url}/team/store", ["sft:champion"], other)
    assert (got.moved, got.bytes) == (("base@v1", "sft@v1"), total)
    arrived = resolve(other, "sft:champion")
    assert arrived.manifest == sft.manifest
    assert {path: (arrived.path / path).read_bytes() for path in FILES} == FILES
    assert (resolve(other, "base").path / "a/b/c.txt").read_bytes() == b"deep"
    assert all(other.verify(artifact) == [] for artifact in other.artifacts())

    uploads = len(s3.puts())
    again = push(store, ["sft"], f"{s3.url}/team/store")
    assert (again.moved, again.present, again.bytes) == ((), ("base@v1", "sft@v1"), 0)
    assert len(s3.puts()) == uploads
    assert pull(f"{s3.url}/team/store", [], other).present == ("base@v1", "sft@v1")


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "FSSPEC_S3_ENDPOINT_URL"])
def test_the_environment_says_where_the_service_is(s3, python, monkeypatch, variable):
    s3.boto().put_object(Bucket=s3.url.removeprefix("s3://"), Key="store/sft/x", Body=b"")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    code = "import sys; from pipeline.artifacts.endpoint import Endpoint; print(Endpoint(sys.argv[1]).children(''))"
    done = python(code, f"{s3.url}/store", **{variable: s3.endpoint})
    assert done.stdout == "['sft']\n", done.stderr


@pytest.mark.parametrize("files_sent", [1, 3, 7])
def test_a_push_killed_on_the_way_is_invisible_and_goes_on_where_it_was(store, other, make, s3, python, files_sent):
    sft = make(store, "sft", files=FILES).manifest
    assert python(PUSH_KILLED, store.root, s3.url, files_sent).returncode == -signal.SIGKILL
    before = s3.puts()
    assert len(before) == files_sent
    with pytest.raises(PipelineError, match="no artifact `sft`"):
        pull(s3.url, ["sft"], other)

    done = push(store, ["sft"], s3.url)
    assert (done.files_kept, done.files) == (files_sent, 7 - files_sent)
    sent = Counter(s3.puts())
    assert sent == {f"sft/{sft.short}/{path}": 1 for path in [*FILES, "manifest.json"]}  # nothing went twice
    pull(s3.url, ["sft"], other)
    assert other.verify(resolve(other, "sft")) == []


def test_a_pull_killed_within_a_file_goes_on_from_the_last_block(store, other, make, s3, python):
    block = 2**20
    big = bytes(range(256)) * (5 * block // 256 + 3)
    make(store, "sft", files={"a.safetensors": b"first", "b.safetensors": big})
    push(store, ["sft"], s3.url)
    # progress comes after `a` whole (one block), then after each block of `b`: the fourth call is 3 blocks into it
    assert python(PULL_KILLED, other.root, s3.url, 4).returncode == -signal.SIGKILL
    assert other.artifacts() == []

    done = pull(s3.url, ["sft"], other)
    assert done.files_kept == 1
    assert done.bytes == len(big) - 3 * block
    artifact = resolve(other, "sft")
    assert other.verify(artifact) == []
    assert (artifact.path / "b.safetensors").read_bytes() == big
    assert not list(other.root.glob(".work/sft-*"))


def test_a_damaged_part_of_an_earlier_pull_is_fetched_anew(store, other, make, s3, python):
    big = b"x" * (3 * 2**20)
    make(store, "sft", files={"model.safetensors": big})
    push(store, ["sft"], s3.url)
    assert python(PULL_KILLED, other.root, s3.url, 2).returncode == -signal.SIGKILL
    (part,) = other.root.glob(".work/sft-*/arriving/parts/*")
    assert part.stat().st_size == 2 * 2**20
    part.write_bytes(b"y" + part.read_bytes()[1:])
    assert pull(s3.url, ["sft"], other).moved == ("sft@v1",)
    assert (resolve(other, "sft").path / "model.safetensors").read_bytes() == big


def test_a_pull_killed_at_every_instant_is_invisible_or_whole(store, tmp_path, make, killed_at):
    """Through a plain folder: the same code as for S3, and many more instants in the same time."""
    make(store, "sft", files={"m.safetensors": b"m" * 100, "sub/c.json": b"{}"})
    push(store, ["sft"], str(tmp_path / "remote"))
    for instant in range(1, 1000):
        other = Store(tmp_path / f"other{instant}")
        killed = killed_at(instant, other.root, lambda other=other: pull(str(tmp_path / "remote"), ["sft"], other))
        assert all(other.verify(artifact) == [] for artifact in other.artifacts())
        pull(str(tmp_path / "remote"), ["sft"], other)
        assert [artifact.ref for artifact in other.artifacts()] == ["sft@v1"]
        assert all(other.verify(artifact) == [] for artifact in other.artifacts())
        if not killed:
            break
    assert 30 < instant < 999


def test_a_file_that_arrives_damaged_is_refused_until_it_is_right(store, other, make, s3):
    sft = make(store, "sft", files=FILES).manifest
    push(store, ["sft"], s3.url)
    key = f"sft/{sft.short}/part2.safetensors"
    s3.boto().put_object(Bucket=s3.url.removeprefix("s3://"), Key=key, Body=b"\x02" * 1999 + b"\x03")
    with pytest.raises(PipelineError, match=r"part2\.safetensors: the file, as it arrived, is damaged") as raised:
        pull(s3.url, ["sft"], other)
    assert raised.value.exit_code == ExitCode.FAILED
    assert other.artifacts() == []
    s3.boto().put_object(Bucket=s3.url.removeprefix("s3://"), Key=key, Body=FILES["part2.safetensors"])
    pull(s3.url, ["sft"], other)
    assert other.verify(resolve(other, "sft")) == []


def test_a_file_cut_short_or_lost_at_the_remote_is_refused_and_pushed_again(store, other, make, s3):
    sft = make(store, "sft", files=FILES).manifest
    push(store, ["sft"], s3.url)
    bucket, folder = s3.url.removeprefix("s3://"), f"sft/{sft.short}"
    s3.boto().put_object(Bucket=bucket, Key=f"{folder}/part1.safetensors", Body=b"\x01" * 5)
    with pytest.raises(PipelineError, match=r"part1\.safetensors: the file at the remote \(its size\) is damaged"):
        pull(s3.url, ["sft"], other)
    s3.boto().delete_object(Bucket=bucket, Key=f"{folder}/part3.safetensors")
    with pytest.raises(PipelineError, match=r"part[13]\.safetensors"):
        pull(s3.url, ["sft"], other)
    assert push(store, ["sft"], s3.url).files == 2
    pull(s3.url, ["sft"], other)
    assert other.verify(resolve(other, "sft")) == []


def test_a_file_left_by_a_cut_off_push_is_checked_by_hash_not_by_size(store, make, s3):
    sft = make(store, "sft", files=FILES).manifest
    bucket, key = s3.url.removeprefix("s3://"), f"sft/{sft.short}/part4.safetensors"
    s3.boto().put_object(Bucket=bucket, Key=key, Body=b"?" * 2000)
    assert push(store, ["sft"], s3.url).files_kept == 0
    assert s3.boto().get_object(Bucket=bucket, Key=key)["Body"].read() == FILES["part4.safetensors"]


def test_a_damaged_artifact_is_not_pushed(store, make, tmp_path):
    sft = make(store, "sft", files=FILES)
    (sft.path / "config.json").write_bytes(b"[]")
    with pytest.raises(PipelineError, match=r"`config\.json` in the store is damaged"):
        push(store, ["sft"], str(tmp_path / "remote"))
    assert not list((tmp_path / "remote").rglob("manifest.json"))


def test_what_is_there_with_other_bytes_is_left_and_told(store, other, make, tmp_path):
    make(store, "sft", "1", files={"x": b"mine"})
    make(other, "sft", "1", files={"x": b"theirs"})  # one fingerprint, two results: a run that is not reproducible
    remote = str(tmp_path / "remote")
    push(store, ["sft"], remote)
    assert push(other, ["sft"], remote).different == ("sft@v1",)
    assert pull(remote, ["sft"], other).different == ("sft@v1",)
    assert (resolve(other, "sft").path / "x").read_bytes() == b"theirs"
    assert next(Path(remote).glob("sft/*/x")).read_bytes() == b"mine"


def test_a_version_number_taken_here_is_replaced_by_the_next(store, other, make, tmp_path):
    make(store, "sft", "mine")
    make(other, "sft", "theirs")
    push(other, ["sft"], str(tmp_path / "remote"))
    assert pull(str(tmp_path / "remote"), ["sft"], store).moved == ("sft@v2",)
    assert [artifact.ref for artifact in store.artifacts()] == ["sft@v1", "sft@v2"]


def test_ancestors_can_be_left_behind_and_are_then_named(store, other, make, tmp_path):
    base = make(store, "base")
    make(store, "sft", parents=(base,))
    push(store, ["sft"], str(tmp_path / "remote"), with_ancestors=False)
    assert pull(str(tmp_path / "remote"), ["sft"], other).missing == (f"base@{base.manifest.short}",)
    assert [artifact.ref for artifact in other.artifacts()] == ["sft@v1"]


def test_a_ref_unknown_at_the_remote_names_the_nearest(store, other, make, tmp_path):
    make(store, "sft")
    push(store, [], str(tmp_path / "remote"))
    with pytest.raises(PipelineError, match=r"no artifact `sfft`; stored are sft. Did you mean `sft`\?"):
        pull(str(tmp_path / "remote"), ["sfft"], other)
    with pytest.raises(PipelineError, match="no tag `sft:best`"):
        pull(str(tmp_path / "remote"), ["sft:best"], other)


def forge(remote: Path, *, path: str = "x", content: bytes = b"evil", **changes: object) -> None:
    """Write an artifact no push would have made; its hashes are right, so that only what is forged can be refused."""
    record = FileRecord(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    manifest = {
        "name": "sft",
        "kind": "sft",
        "makes": "model",
        "version": 1,
        "fingerprint": "f" * 64,
        "digest": payload_digest({path: record}),
        "created": "2026-01-01T00:00:00+00:00",
        "files": {path: record.model_dump()},
        **changes,
    }
    folder = remote / "sft" / ("f" * 12)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if path != "manifest.json" and not path.startswith("/"):
        target = Path(f"{folder}/{path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


@pytest.mark.parametrize(
    "path",
    ["../../x", "../../../../../x", "a/../../x", "/etc/hostname", "a//x", "./x", "a\\..\\x", "\n", "manifest.json"],
)
def test_a_manifest_that_leads_outside_is_refused_and_nothing_is_written(other, tmp_path, path):
    remote = tmp_path / "deep" / "remote" / "folder"
    forge(remote, path=path)
    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(PipelineError, match=r"is not a path inside the artifact|may not be part of the payload"):
        pull(str(remote), ["sft"], other)
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == before


def test_pickles_are_refused_by_name_and_by_content_on_arrival(other, tmp_path):
    import pickle

    forge(tmp_path / "one", path="pytorch_model.bin")
    with pytest.raises(PipelineError, match="only safetensors and plain data"):
        pull(str(tmp_path / "one"), ["sft"], other)
    forge(tmp_path / "two", path="weights.data", content=pickle.dumps({"a": 1}))
    with pytest.raises(PipelineError, match=r"pickle files in the payload: weights\.data"):
        pull(str(tmp_path / "two"), ["sft"], other)
    assert other.artifacts() == []


def test_a_manifest_in_the_wrong_place_or_with_a_bad_name_is_refused(other, tmp_path):
    forge(tmp_path / "one", name="dpo")
    with pytest.raises(PipelineError, match="the manifest is that of dpo/ffffffffffff"):
        pull(str(tmp_path / "one"), ["sft"], other)
    forge(tmp_path / "two", name="../../sft")
    with pytest.raises(PipelineError, match=r"`\.\./\.\./sft` is not a name"):
        pull(str(tmp_path / "two"), ["sft"], other)
    assert not other.root.exists()


def test_a_forged_circle_of_ancestors_ends(other, tmp_path):
    itself = InputRecord(field="model", ref="sft", name="sft", kind="sft", fingerprint="f" * 64)
    outside = InputRecord(field="model", ref="x", name="../../x", kind="sft", fingerprint="f" * 64)
    forge(tmp_path / "remote", inputs=[itself.model_dump(), outside.model_dump()])
    assert pull(str(tmp_path / "remote"), ["sft"], other).moved == ("sft@v1",)


def test_a_cut_off_manifest_at_the_remote_is_told_and_written_anew(store, other, make, tmp_path):
    make(store, "sft")
    push(store, ["sft"], str(tmp_path / "remote"))
    manifest = next((tmp_path / "remote").rglob("manifest.json"))
    manifest.write_bytes(manifest.read_bytes()[:100])
    with pytest.raises(PipelineError, match=r"sft/[0-9a-f]{12}/manifest\.json: manifest: Invalid JSON"):
        pull(str(tmp_path / "remote"), ["sft"], other)
    push(store, ["sft"], str(tmp_path / "remote"))
    assert pull(str(tmp_path / "remote"), ["sft"], other).moved == ("sft@v1",)


def test_a_missing_package_is_one_line_that_names_the_extra(python):
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from pipeline.artifacts.remote import pull; from pipeline.artifacts import Store\n"
        "try: pull('s3://bucket/x', ['sft'], Store('nowhere'))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    expected = (
        "PipelineError s3://bucket/x: s3:// needs a package that is not installed. Run `pip install 'trueup[s3]'`\n"
    )
    assert python(code).stdout == expected


def test_an_unknown_protocol_is_one_line(other):
    with pytest.raises(PipelineError, match="nosuch://place: Protocol not known: nosuch") as raised:
        pull("nosuch://place", ["sft"], other)
    assert len(str(raised.value).splitlines()) == 1


def test_a_missing_bucket_is_one_line(store, make, s3):
    make(store, "sft")
    with pytest.raises(PipelineError, match="bucket") as raised:
        push(store, ["sft"], "s3://no-such-bucket/store")
    assert len(str(raised.value).splitlines()) == 1
    assert "no-such-bucket" not in [bucket["Name"] for bucket in s3.boto().list_buckets()["Buckets"]]


def test_a_service_that_is_not_there_is_one_line(s3, python):
    code = (
        "from pipeline.artifacts.remote import pull; from pipeline.artifacts import Store\n"
        "try: pull('s3://bucket/x', ['sft'], Store('nowhere'))\n"
        "except Exception as error: print(type(error).__name__, int(error.exit_code), error)"
    )
    said = python(code, AWS_ENDPOINT_URL="http://127.0.0.1:9").stdout
    assert said.startswith("PipelineError 1 s3://bucket/x/")
    assert "Could not connect" in said or "EndpointConnectionError" in said
    assert len(said.splitlines()) == 1


def test_a_password_in_a_url_is_not_shown(other):
    with pytest.raises(PipelineError) as raised:
        pull("nosuch://me:secret@place/x", ["sft"], other)
    assert "secret" not in str(raised.value)


def test_a_remote_folder_can_be_copied_by_hand(store, other, make, tmp_path):
    """A remote has a store's own layout: a folder copied to another place, or a USB stick, is a remote."""
    make(store, "sft", files=FILES)
    shutil.copytree(store.root, tmp_path / "stick")
    assert pull((tmp_path / "stick").as_uri(), ["sft"], other).moved == ("sft@v1",)
