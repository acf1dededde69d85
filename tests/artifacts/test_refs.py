"""Refs: four ways to name an artifact, and what is said when one fits nothing or too much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts.manifest import Manifest, payload_digest
from pipeline.artifacts.refs import choose, parse_ref, resolve, tag, tags, untag
from pipeline.errors import PipelineError


def manifest(name: str, fingerprint: str, version: int) -> Manifest:
    return Manifest(
        name=name,
        kind="sft",
        makes="model",
        version=version,
        fingerprint=fingerprint,
        digest=payload_digest({}),
        created="2026-01-01T00:00:00+00:00",
    )


def test_each_form_finds_its_artifact(store, make):
    first, second = make(store, "sft", "1"), make(store, "sft", "2")
    make(store, "sft-long", "3")
    assert resolve(store, "sft") == second
    assert resolve(store, "sft@v1") == first
    assert resolve(store, f"sft@{first.manifest.fingerprint[:4]}") == first
    assert resolve(store, f"sft@{first.manifest.fingerprint}") == first
    assert tag(store, "sft@v1", "champion") == first
    assert resolve(store, "sft:champion") == first


def test_a_tag_moves_and_goes(store, make):
    first, second = make(store, "sft", "1"), make(store, "sft", "2")
    tag(store, "sft@v1", "champion")
    tag(store, "sft", "champion")
    assert tags(store) == {"sft:champion": second.manifest.fingerprint}
    tag(store, f"sft@{first.manifest.short}", "old")
    untag(store, "sft:champion")
    assert tags(store) == {"sft:old": first.manifest.fingerprint}
    with pytest.raises(PipelineError, match=r"no tag `sft:olt`; tags are sft:old. Did you mean `sft:old`\?"):
        untag(store, "sft:olt")


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("sfft", r"no artifact `sfft`; stored are dpo, sft. Did you mean `sft`\?"),
        ("sft@v3", r"no artifact `sft@v3`; `sft` has v1 \([0-9a-f]{12}\), v2"),
        ("sft@0000", r"no artifact `sft@0000`"),
        ("sft:best", r"no tag `sft:best`; `sft` has no tags. Set it with `trueup tag sft best`"),
        ("dpo:champoin", r"one of dpo:champion. Did you mean `dpo:champion`\?"),
        ("../sft", r"ref `\.\./sft`"),
        ("sft@abc", "four or more hex digits"),
        ("sft@", "ref `sft@`"),
        ("sft@v0", "ref `sft@v0`"),
        ("sft:../x", "ref"),
        ("", "ref ``"),
        ("sft\n", "ref"),
    ],
)
def test_a_ref_that_fits_nothing_says_what_would(store, make, ref, message):
    make(store, "sft", "1")
    make(store, "sft", "2")
    make(store, "dpo", "1")
    tag(store, "dpo", "champion")
    with pytest.raises(PipelineError, match=message):
        resolve(store, ref)


def test_an_empty_store_says_so(store):
    with pytest.raises(PipelineError, match="nothing is stored here yet"):
        resolve(store, "sft")


def test_a_prefix_of_two_fingerprints_is_ambiguous():
    both = [manifest("sft", "abcd1" + "0" * 59, 1), manifest("sft", "abcd2" + "0" * 59, 2)]
    with pytest.raises(PipelineError, match="`sft@abcd` means 2 artifacts"):
        choose(parse_ref("sft@abcd"), both, {})
    assert choose(parse_ref("sft@abcd2"), both, {}) is both[1]


def test_a_tag_to_a_removed_artifact_says_so(store, make):
    make(store, "sft", "0")
    tag(store, "sft", "champion")
    gone = resolve(store, "sft")
    make(store, "sft", "1")
    store.remove(gone)
    with pytest.raises(PipelineError, match=f"tag `sft:champion` points to {gone.manifest.short}"):
        resolve(store, "sft:champion")


def test_a_tag_must_be_a_name(store, make):
    make(store)
    with pytest.raises(PipelineError, match=r"tag `\.\./x`"):
        tag(store, "sft", "../x")


@given(st.sets(st.text("0123456789abcdef", min_size=64, max_size=64), min_size=1, max_size=8))
def test_every_artifact_is_found_by_its_version_its_fingerprint_and_its_shortest_unique_prefix(fingerprints):
    manifests = [manifest("m", fingerprint, n) for n, fingerprint in enumerate(sorted(fingerprints), start=1)]
    for wanted in manifests:
        assert choose(parse_ref(f"m@v{wanted.version}"), manifests, {}) is wanted
        assert choose(parse_ref(f"m@{wanted.fingerprint}"), manifests, {}) is wanted
        length = next(n for n in range(4, 65) if sum(f.startswith(wanted.fingerprint[:n]) for f in fingerprints) == 1)
        assert choose(parse_ref(f"m@{wanted.fingerprint[:length]}"), manifests, {}) is wanted
    assert choose(parse_ref("m"), manifests, {}) is manifests[-1]
