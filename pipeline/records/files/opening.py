"""Opens data files: decompresses them, skips a byte order mark, and rejects files that are not data.

Owns compression, text encodings, and the raw row. Compression is detected by the first bytes.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import re
import shlex
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

from pipeline.errors import PipelineError, Problem
from pipeline.plain_data import JsonObject
from pipeline.recipe.paths import COMPRESSIONS, suffix_of

MAX_ROW_BYTES = 64 * 2**20
"""A longer line or field is a bad row, because such a file is rarely what its name says."""

SHOWN_OF_LONG_ROW = 200
POINTERS = {
    b"version https://git-lfs.github.com/spec/": ("file is a Git LFS pointer", "git lfs pull"),
    b"# xet version": ("file is a Git Xet pointer", "fetch the file from where it is kept"),
}
ANNEX = re.compile(rb"[\w./-]*annex/objects/[^\n]+\s*\Z")
PAGE = re.compile(rb"<(!doctype html|html)", re.IGNORECASE)
MARKUP = re.compile(rb"<(!doctype|html|head|body|!--|\?xml)", re.IGNORECASE)
"""`PAGE` matches a web page in a `.txt` file, which may hold other markup; `MARKUP` matches any page in other files."""

ARCHIVE = "unpack it and name what it holds"
EXPORT = "write it anew as one of the files that `docs/data.md` lists"
KINDS = {
    b"PK\x03\x04": ("a zip archive or a workbook (.xlsx)", f"{ARCHIVE}, or save the sheet as CSV"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", ARCHIVE),
    b"Rar!\x1a\x07": ("a RAR archive", ARCHIVE),
    b"\x04\x22\x4d\x18": ("compressed with lz4", ARCHIVE),
    b"\x5d\x00\x00": ("compressed with the old LZMA", ARCHIVE),
    b"PAR1": ("a Parquet file", "give it a name that ends in .parquet"),
    b"ARROW1": ("an Arrow file", EXPORT),
    b"SQLite format 3": ("a SQLite database", EXPORT),
    b"\xd0\xcf\x11\xe0": ("a workbook (.xls) or an old document", "save the sheet as CSV"),
    b"%PDF-": ("a PDF", "extract its text"),
    b"\x89PNG": ("a picture", "leave it out of `path`"),
    b"\xff\xd8\xff": ("a picture", "leave it out of `path`"),
    b"\x80\x04\x95": ("a pickle", EXPORT),
    b"\x93NUMPY": ("an array of NumPy", EXPORT),
}
"""First bytes of files that are not data, to what the file is and the remedy."""
ZSTD = b"\x28\xb5\x2f\xfd"
UNPACK = {".gz": "gzip -dc", ".bz2": "bzip2 -dc", ".xz": "xz -dc", ".zst": "zstd -dc"}


class RawRow(NamedTuple):
    """One row as read from its file, before its columns are interpreted.

    Attributes:
        number: 1-based line the row starts at; for Parquet and hub data the 1-based row.
        value: the columns, or None when the row cannot be read.
        fault: why it cannot be read, e.g. ``is not JSON: …``; empty for a readable row.
        raw: text of an unreadable row.
    """

    number: int
    value: JsonObject | None
    fault: str = ""
    raw: str = ""


def shown(path: Path) -> str:
    """Return a path for messages: relative to the current directory if it is inside it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def place(name: str, number: int) -> str:
    """Return ``file:line``, or ``file row N`` where rows have no lines."""
    return f"{name} row {number}" if _is_by_row(name) else f"{name}:{number}"


@lru_cache(maxsize=64)
def _is_by_row(name: str) -> bool:
    """Return whether the rows of a file or hub data set are numbered by row, not by line."""
    return name.startswith("hub:") or ".parquet" in Path(name).name


def open_bytes(path: Path) -> io.BufferedReader:
    """Open a file for reading, decompressed; the reader can peek."""
    with path.open("rb") as handle:
        start = handle.read(6)
    opened: Any
    if start.startswith(b"\x1f\x8b"):
        opened = gzip.GzipFile(path)
    elif start.startswith(b"BZh"):
        opened = bz2.BZ2File(path)
    elif start == b"\xfd7zXZ\x00":
        opened = lzma.LZMAFile(path)  # noqa: SIM115
    elif start.startswith(ZSTD):
        with _zstd_stream(path) as stream:
            opened = io.BufferedReader(io.BytesIO(stream.read()))
    else:
        opened = path.open("rb")
    return cast(io.BufferedReader, opened)


def _zstd_stream(path: Path) -> Any:
    """Open a zstd file as a stream of pyarrow; `with` closes it."""
    import pyarrow  # slow to load; only zstd files need it

    return pyarrow.input_stream(str(path), compression="zstd")


def _start_of(path: Path) -> bytes:
    """Return the first bytes of a file, decompressed."""
    with path.open("rb") as handle:
        is_zstd = handle.read(len(ZSTD)) == ZSTD
    if is_zstd:  # `open_bytes` would decompress all of it
        with _zstd_stream(path) as stream:
            return bytes(stream.read(SHOWN_OF_LONG_ROW))
    with open_bytes(path) as handle:
        return handle.read(SHOWN_OF_LONG_ROW)


def refuse_other(path: Path) -> None:
    """Reject pointers (Git LFS, Xet, git-annex), web pages, and files that are not what their suffix says.

    Raises:
        PipelineError: the file is one of these.
    """
    start = _start_of(path)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    pointer = next((POINTERS[known] for known in POINTERS if text.startswith(known)), None)
    if pointer is None and ANNEX.match(text) and len(start) < SHOWN_OF_LONG_ROW:
        pointer = ("file is a pointer of git-annex", f"git annex get {shlex.quote(path.name)}")
    if pointer is not None:
        raise PipelineError(Problem(pointer[0], "the data itself", pointer[1], shown(path)))
    suffix = suffix_of(path.name)
    if (PAGE if suffix == ".txt" else MARKUP).match(text):
        raise PipelineError(Problem("file is a web page", "the data itself", "fetch the file again", shown(path)))
    kind = next((KINDS[known] for known in KINDS if start.startswith(known)), None)
    if kind is not None and suffix != ".parquet":
        expected = f"what its name says, {suffix}"
        raise PipelineError(Problem(f"file is {kind[0]}", expected, kind[1], shown(path)))


def skip_bom(path: Path, handle: io.BufferedReader) -> bytes:
    """Skip a UTF-8 byte order mark; return the bytes that follow, without consuming them.

    Raises:
        PipelineError: the file is UTF-16 or UTF-32.
    """
    ahead = handle.peek(4)
    four = ahead[:4] if len(ahead) > 3 else b""
    if four in (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"):
        raise PipelineError(Problem("file is UTF-32", "UTF-8", converted(path, "UTF-32"), shown(path)))
    if four.count(0) == 3 and (four[0] or four[3]):
        remedy = converted(path, "UTF-32LE" if four[0] else "UTF-32BE")
        raise PipelineError(Problem("file is UTF-32", "UTF-8", remedy, shown(path)))
    if ahead[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise PipelineError(Problem("file is UTF-16", "UTF-8", converted(path, "UTF-16"), shown(path)))
    zeros = tuple(byte == 0 for byte in ahead[:2])
    if len(zeros) == 2 and any(zeros) and not all(zeros):
        remedy = converted(path, "UTF-16BE" if zeros[0] else "UTF-16LE")
        raise PipelineError(Problem("file is UTF-16", "UTF-8", remedy, shown(path)))
    if ahead.startswith(b"\xef\xbb\xbf"):
        handle.read(3)
        ahead = handle.peek(1)
    return ahead


def converted(path: Path, encoding: str) -> str:
    """Return the shell command that writes a UTF-8 copy beside a file."""
    stem, _, suffix = unpacked_name(path).rpartition(".")
    return f"{piped(path, f'iconv -f {encoding} -t UTF-8')} > {shlex.quote(f'{stem}.utf8.{suffix}')}"


def unpacked_name(path: Path) -> str:
    """Return the name of a file without its compression suffix."""
    packed = next((one for one in COMPRESSIONS if path.name.lower().endswith(one)), "")
    return path.name[: len(path.name) - len(packed)]


def piped(path: Path, command: str) -> str:
    """Return a shell command applied to a file, which is decompressed first if it is compressed."""
    packed = path.name[len(unpacked_name(path)) :].lower()
    name = shlex.quote(path.name)
    return f"{UNPACK[packed]} {name} | {command}" if packed else f"{command} {name}"


def encoding_hint(path: Path, content: bytes) -> str:
    """Return the advice to convert a file whose bytes decode in another encoding than UTF-8; empty if none fits."""
    for encoding in ("GB18030", "CP1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding == "CP1252" or any("\u4e00" <= letter <= "\u9fff" for letter in text):
            return f". If the file is {encoding}: `{converted(path, encoding)}`"
    return ""


def oversized(number: int, start: bytes, rest: Iterable[bytes]) -> RawRow:
    """Return a row that is too long to read as unreadable, with its first characters and the hash of its content."""
    content = hashlib.sha256(start)
    size_bytes = len(start)
    for more in rest:
        content.update(more)
        size_bytes += len(more)
    fault = f"is {size_bytes / 2**20:,.0f} MiB long; expected at most {MAX_ROW_BYTES / 2**20:,.0f} MiB"
    head = start[:SHOWN_OF_LONG_ROW].decode("utf-8", "backslashreplace")
    return RawRow(number, None, fault, f"{head}… ({size_bytes} bytes, sha256 {content.hexdigest()})")


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8, that is, holds no lone surrogate."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
