"""Refs, the names of artifacts (`sft`, `sft@v3`, `sft@9f31c0`, `sft:champion`), and tags.

Owns the syntax of refs and the file of tags. Knows nothing of an artifact's content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.artifacts.files import write_durably
from pipeline.artifacts.manifest import NAME_RULE, SHORT, Manifest, check_name
from pipeline.artifacts.store import Artifact, Store
from pipeline.errors import PipelineError, Problem, listed, nearest

TAGS_FILE = ".tags.json"
_REF = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*)"
    r"(?:@v(?P<version>[1-9][0-9]*)|@(?P<prefix>[0-9a-f]{4,64})|:(?P<tag>[A-Za-z0-9][A-Za-z0-9_.-]*))?"
)
_FORMS = "`name`, `name@v3`, `name@9f31c0` (four or more hex digits of the fingerprint) or `name:tag`"


@dataclass(frozen=True)
class Ref:
    """A parsed ref; at most one of version, prefix and tag is set, none means the newest version.

    Attributes:
        text: the ref as written.
        name: name of the stage.
        version: version number after ``@v``.
        prefix: prefix of the fingerprint after ``@``.
        tag: tag after ``:``.
    """

    text: str
    name: str
    version: int | None = None
    prefix: str | None = None
    tag: str | None = None


def parse_ref(text: str) -> Ref:
    """Parse a ref.

    Raises:
        PipelineError: the text has none of the four forms.
    """
    match = _REF.fullmatch(text)
    if match is None:
        raise PipelineError(Problem(found=f"ref `{text}`", expected=_FORMS, remedy=f"a name is {NAME_RULE}"))
    version = match["version"]
    return Ref(text, match["name"], int(version) if version else None, match["prefix"], match["tag"])


def choose(ref: Ref, manifests: Sequence[Manifest], tags: Mapping[str, str]) -> Manifest:
    """Return the manifest that a ref refers to.

    Args:
        ref: the ref.
        manifests: all manifests of its name; not empty.
        tags: fingerprint by ``name:tag``.

    Raises:
        PipelineError: no manifest matches, or several do.
    """
    if ref.tag is not None:
        return _tagged(ref, manifests, tags)
    if ref.version is None and ref.prefix is None:
        return max(manifests, key=lambda manifest: (manifest.version, manifest.created))
    if ref.version is not None:
        hits = [manifest for manifest in manifests if manifest.version == ref.version]
    else:
        hits = [manifest for manifest in manifests if manifest.fingerprint.startswith(ref.prefix or "")]
    if len(hits) == 1:
        return hits[0]
    known = listed(f"v{m.version} ({m.short})" for m in sorted(hits or manifests, key=lambda m: m.version))
    if hits:
        raise PipelineError(
            Problem(f"`{ref.text}` means {len(hits)} artifacts", known, f"write `{ref.name}@` and more hex digits")
        )
    raise PipelineError(Problem(f"no artifact `{ref.text}`", f"`{ref.name}` has {known}"))


def _tagged(ref: Ref, manifests: Sequence[Manifest], tags: Mapping[str, str]) -> Manifest:
    fingerprint = tags.get(ref.text)
    if fingerprint is None:
        known = [label for label in tags if label.startswith(f"{ref.name}:")]
        raise PipelineError(
            Problem(
                found=f"no tag `{ref.text}`",
                expected=f"one of {listed(known)}" if known else f"`{ref.name}` has no tags",
                remedy=nearest(ref.text, known) or f"set it with `trueup tag {ref.name} {ref.tag}`",
            )
        )
    for manifest in manifests:
        if manifest.fingerprint == fingerprint:
            return manifest
    raise PipelineError(
        Problem(
            found=f"tag `{ref.text}` points to {fingerprint[:SHORT]}",
            expected="an artifact that exists",
            remedy="pull it again, or set the tag anew",
        )
    )


def resolve(store: Store, ref: str) -> Artifact:
    """Return the artifact that a ref refers to.

    Raises:
        PipelineError: the syntax is wrong, no artifact matches, or several do.
    """
    wanted = parse_ref(ref)
    artifacts = store.artifacts(wanted.name)
    if not artifacts:
        raise unknown_name(ref, wanted.name, store.names(), str(store.root))
    chosen = choose(wanted, [artifact.manifest for artifact in artifacts], tags(store))
    return next(artifact for artifact in artifacts if artifact.manifest is chosen)


def unknown_name(ref: str, name: str, known: Sequence[str], where: str) -> PipelineError:
    """Return the error for a ref whose name has no artifacts."""
    if not known:
        return PipelineError(
            Problem(f"no artifact `{ref}`", "nothing is stored here yet", "run a recipe or pull first", where)
        )
    return PipelineError(Problem(f"no artifact `{ref}`", f"stored are {listed(known)}", nearest(name, known), where))


def tags(store: Store) -> dict[str, str]:
    """Return the fingerprints of all tags, by ``name:tag``."""
    file = store.root / TAGS_FILE
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        data = None
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise PipelineError(Problem("the tags cannot be read", "one JSON object of strings", "repair it", str(file)))
    return data


def tag(store: Store, ref: str, label: str) -> Artifact:
    """Give the artifact of ``ref`` the tag ``label``, which is removed from any other artifact of that name.

    `gc` never removes a tagged artifact nor its ancestors.
    """
    check_name(label, "tag")
    with store.lock():
        artifact = resolve(store, ref)
        _write(store, {**tags(store), f"{artifact.manifest.name}:{label}": artifact.manifest.fingerprint})
    return artifact


def untag(store: Store, ref: str) -> None:
    """Remove the tag ``name:tag``.

    Raises:
        PipelineError: there is no such tag.
    """
    with store.lock():
        remaining = tags(store)
        if remaining.pop(ref, None) is None:
            raise PipelineError(
                Problem(
                    f"no tag `{ref}`", f"tags are {listed(remaining)}" if remaining else "", nearest(ref, remaining)
                )
            )
        _write(store, remaining)


def _write(store: Store, labels: Mapping[str, str]) -> None:
    write_durably(store.root / TAGS_FILE, (json.dumps(labels, indent=1, sort_keys=True) + "\n").encode())
