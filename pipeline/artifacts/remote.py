"""Push and pull: transfer artifacts between stores through any fsspec URL; an artifact appears only when complete.

A remote has the layout of a store: `<url>/<name>/<fingerprint12>/`. The manifest is sent last, so a folder with a
manifest is complete. Tags are `<url>/.tags/<name>/<tag>`. Every file is hashed at its destination. A killed transfer
leaves the files that arrived; the next one verifies them by hash and resumes. A manifest of a remote cannot make files
outside the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.artifacts.endpoint import UNKNOWN, Endpoint
from pipeline.artifacts.files import payload_files, sha256_of
from pipeline.artifacts.manifest import (
    FINGERPRINT,
    MANIFEST_FILE,
    NAME,
    SHORT,
    FileRecord,
    Manifest,
    check_name,
    parse_manifest,
)
from pipeline.artifacts.payload import refuse_pickles
from pipeline.artifacts.refs import Ref, choose, parse_ref, resolve, tag, unknown_name
from pipeline.artifacts.store import Artifact, Store, WorkArea
from pipeline.artifacts.transfer import Progress, Tally, Transfer
from pipeline.errors import ExitCode, PipelineError, Problem
from pipeline.machine.disk import writing

WORKERS = 4
"""Number of files transferred concurrently."""

Key = tuple[str, str]


def push(
    store: Store,
    refs: Sequence[str],
    url: str,
    *,
    with_ancestors: bool = True,
    progress: Callable[[Progress], None] | None = None,
    workers: int = WORKERS,
) -> Transfer:
    """Copy artifacts to a remote; a tag used as a ref is set there too.

    Args:
        store: source.
        refs: artifacts to copy; none means all.
        url: destination folder.
        with_ancestors: whether to also copy their ancestors, as far as the store has them.
        progress: called after every file.
        workers: number of files transferred concurrently.

    Raises:
        PipelineError: a ref matches nothing, the store's copy is damaged, or the remote cannot be reached or fails.
    """
    endpoint = Endpoint(url)
    chosen = [resolve(store, ref) for ref in refs] if refs else store.artifacts()

    def find(key: Key) -> Manifest | None:
        artifact = store.find(*key)
        return artifact.manifest if artifact else None

    manifests, missing = _with_ancestors([a.manifest for a in chosen], find if with_ancestors else None)
    tally = Tally(sum(m.payload_bytes for m in manifests), progress, missing)
    for manifest in manifests:
        _push_one(Artifact(store.folder(*manifest.key), manifest), endpoint, tally, workers)
    for ref, artifact in zip(map(parse_ref, refs), chosen, strict=False):
        if ref.tag is not None:
            endpoint.write(_tag_path(ref), artifact.manifest.fingerprint.encode())
    return tally.result()


def _push_one(artifact: Artifact, endpoint: Endpoint, tally: Tally, workers: int) -> None:
    manifest = artifact.manifest
    folder = _folder(manifest.key)
    remote = _read_manifest(endpoint, manifest.key, damaged_is_none=True)
    sizes = endpoint.sizes(folder)
    is_complete = all(sizes.get(path) == record.bytes for path, record in manifest.files.items())
    if remote is not None and (is_complete or remote.digest != manifest.digest):
        tally.was_present(manifest, remote)
        return

    def send(item: tuple[str, FileRecord]) -> None:
        path, record = item
        target = f"{folder}/{path}"
        if sizes.get(path) == record.bytes and endpoint.sha256(target, record.bytes) == record.sha256:
            tally.file(kept=True)
            tally.add(manifest.ref, path, kept=record.bytes)
            return
        local = artifact.path / path
        if sha256_of(local) != record.sha256:
            raise _damaged(f"`{path}` in the store", str(artifact.path), "verify it, and run its stage again")
        endpoint.send(local, target)
        if endpoint.sha256(target, record.bytes) != record.sha256:
            raise _damaged(f"`{path}`, as sent,", f"{endpoint.url}/{target}", "push again")
        tally.file(kept=False)
        tally.add(manifest.ref, path, moved=record.bytes)

    _for_each(send, manifest.files.items(), workers)
    endpoint.write(f"{folder}/{MANIFEST_FILE}", (artifact.path / MANIFEST_FILE).read_bytes())
    tally.moved.append(manifest.ref)


def pull(
    url: str,
    refs: Sequence[str],
    store: Store,
    *,
    with_ancestors: bool = True,
    progress: Callable[[Progress], None] | None = None,
    workers: int = WORKERS,
) -> Transfer:
    """Copy artifacts from a remote; a tag used as a ref is set here too.

    An artifact keeps its version number, unless another artifact of that name has it in this store; then it gets the
    next number.

    Args:
        url: source folder.
        refs: artifacts to copy; none means all.
        store: destination.
        with_ancestors: whether to also copy their ancestors, as far as the remote has them.
        progress: called after every block.
        workers: number of files transferred concurrently.

    Raises:
        PipelineError: a ref matches nothing, a manifest is unsafe, a file arrived damaged, or the remote fails.
    """
    endpoint = Endpoint(url)
    wanted = [parse_ref(ref) for ref in refs]
    chosen = [_resolve(endpoint, ref) for ref in wanted] if refs else _everything(endpoint)
    find = (lambda key: _read_manifest(endpoint, key)) if with_ancestors else None
    manifests, missing = _with_ancestors(chosen, find)
    tally = Tally(sum(m.payload_bytes for m in manifests), progress, missing)
    for manifest in manifests:
        with writing(store.root):
            _pull_one(manifest, endpoint, store, tally, workers)
    for ref, manifest in zip(wanted, chosen, strict=False):
        if ref.tag is not None:
            tag(store, f"{manifest.name}@{manifest.fingerprint}", ref.tag)
    return tally.result()


def _pull_one(manifest: Manifest, endpoint: Endpoint, store: Store, tally: Tally, workers: int) -> None:
    local = store.find(*manifest.key)
    if local is None:
        with store.work(*manifest.key) as area:
            local = store.find(*manifest.key)
            if local is None:
                payload = _receive(manifest, endpoint, area, tally, workers)
                tally.moved.append(area.publish(payload, manifest, renumber=False).ref)
                return
    tally.was_present(manifest, local.manifest)


def _receive(manifest: Manifest, endpoint: Endpoint, area: WorkArea, tally: Tally, workers: int) -> Path:
    """Download every file of ``manifest`` into the work area and return the folder of the payload."""
    payload, parts = area.arriving / "payload", area.arriving / "parts"
    payload.mkdir(parents=True, exist_ok=True)
    sizes = endpoint.sizes(_folder(manifest.key))

    def receive(item: tuple[str, FileRecord]) -> None:
        path, record = item
        target = payload / path
        if target.is_file() and target.stat().st_size == record.bytes and sha256_of(target) == record.sha256:
            tally.file(kept=True)
            tally.add(manifest.ref, path, kept=record.bytes)
            return
        part, source = parts / path, f"{_folder(manifest.key)}/{path}"
        if sizes.get(path) not in (record.bytes, UNKNOWN):
            raise _damaged("the file at the remote (its size)", f"{endpoint.url}/{source}", "push it again")
        if part.is_file():
            tally.add(manifest.ref, path, kept=part.stat().st_size)
        _receive_file(source, record, endpoint, part, lambda n: moved(path, n))
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        tally.file(kept=False)

    def moved(path: str, count: int) -> None:
        tally.add(manifest.ref, path, moved=count)

    _for_each(receive, manifest.files.items(), workers)
    for path, file in payload_files(payload).items():
        if path not in manifest.files:
            file.unlink()
    refuse_pickles(payload, payload_files(payload))
    return payload


def _receive_file(
    source: str, record: FileRecord, endpoint: Endpoint, part: Path, moved: Callable[[int], None]
) -> None:
    continued = part.is_file() and part.stat().st_size > 0
    for _ in range(2 if continued else 1):  # a resumed file with a wrong hash is fetched again, once
        endpoint.receive(source, part, record.bytes, moved)
        if part.stat().st_size == record.bytes and sha256_of(part) == record.sha256:
            return
        part.unlink()
    raise _damaged("the file, as it arrived,", f"{endpoint.url}/{source}", "pull again; if it stays, push it again")


def _resolve(endpoint: Endpoint, ref: Ref) -> Manifest:
    """Return the remote's manifest that a ref refers to."""
    manifests = _manifests(endpoint, ref.name)
    if not manifests:
        raise unknown_name(ref.text, ref.name, _names(endpoint), endpoint.url)
    tags: dict[str, str] = {}
    if ref.tag is not None:
        labels = endpoint.children(f".tags/{ref.name}")
        tags = {f"{ref.name}:{label}": _read_tag(endpoint, f".tags/{ref.name}/{label}") for label in labels}
    return choose(ref, manifests, tags)


def _everything(endpoint: Endpoint) -> list[Manifest]:
    return [manifest for name in _names(endpoint) for manifest in _manifests(endpoint, name)]


def _names(endpoint: Endpoint) -> list[str]:
    return [name for name in endpoint.children("") if NAME.fullmatch(name)]


def _manifests(endpoint: Endpoint, name: str) -> list[Manifest]:
    texts = (
        (short, endpoint.read(f"{name}/{short}/{MANIFEST_FILE}"))
        for short in endpoint.children(check_name(name))
        if len(short) == SHORT
    )
    return [_checked(endpoint, text, name, short) for short, text in texts if text is not None]


def _read_manifest(endpoint: Endpoint, key: Key, *, damaged_is_none: bool = False) -> Manifest | None:
    text = endpoint.read(f"{_folder(key)}/{MANIFEST_FILE}")
    if text is None:
        return None
    name, fingerprint = key
    try:
        manifest = _checked(endpoint, text, name, fingerprint[:SHORT])
    except PipelineError:
        if damaged_is_none:
            return None
        raise
    if manifest.fingerprint != fingerprint:
        raise PipelineError(
            Problem(f"the folder holds {manifest.fingerprint}", fingerprint, where=f"{endpoint.url}/{_folder(key)}")
        )
    return manifest


def _checked(endpoint: Endpoint, text: bytes, name: str, short: str) -> Manifest:
    """Parse a remote manifest and check that its name and fingerprint match its folder."""
    location = f"{endpoint.url}/{name}/{short}/{MANIFEST_FILE}"
    manifest = parse_manifest(text, location)
    if (manifest.name, manifest.short) != (name, short):
        raise PipelineError(Problem(f"the manifest is that of {manifest.name}/{manifest.short}", where=location))
    return manifest


def _read_tag(endpoint: Endpoint, path: str) -> str:
    text = (endpoint.read(path) or b"").decode("ascii", "replace").strip()
    return text if FINGERPRINT.fullmatch(text) else ""


def _with_ancestors(
    chosen: Iterable[Manifest], find: Callable[[Key], Manifest | None] | None
) -> tuple[list[Manifest], tuple[str, ...]]:
    """Return the manifests with their ancestors, each after its ancestors, and the refs of missing ancestors."""
    ordered: list[Manifest] = []
    seen: set[Key] = set()  # marked before descending: a forged remote may contain a cycle
    missing: dict[str, None] = {}

    def visit(manifest: Manifest) -> None:
        seen.add(manifest.key)
        for record in manifest.parents if find is not None else []:
            if record.key is None or record.key in seen or find is None:
                continue
            parent = find(record.key)
            if parent is None:
                missing[f"{record.name}@{record.fingerprint[:SHORT]}"] = None
            else:
                visit(parent)
        ordered.append(manifest)

    for manifest in chosen:
        if manifest.key not in seen:
            visit(manifest)
    return ordered, tuple(missing)


def _for_each(work: Callable[[tuple[str, FileRecord]], None], items: Iterable[tuple[str, FileRecord]], n: int) -> None:
    """Call ``work`` for each item, ``n`` at a time; the first error cancels the calls that have not started."""
    with ThreadPoolExecutor(max_workers=n) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _folder(key: Key) -> str:
    return f"{key[0]}/{key[1][:SHORT]}"


def _tag_path(ref: Ref) -> str:
    return f".tags/{ref.name}/{ref.tag}"


def _damaged(what: str, location: str, remedy: str) -> PipelineError:
    return PipelineError(
        Problem(f"{what} is damaged", "the sha256 of its manifest", remedy, location), exit_code=ExitCode.FAILED
    )
