"""The files of the page, read once: the app serves these and no other file.

Prompts, answers and guidelines are rendered as Markdown in the browser (`page/rendering.js`), not here. The browser
needs the plain text anyway, to show it raw, to compare words and to edit. A formula becomes MathML, for which KaTeX is
the most complete library; it is written in JavaScript. Text that a library failed to disarm meets the
Content-Security-Policy of the page, which runs no script of a text, whichever side rendered it.
`page/vendor/README.md` lists the libraries.
"""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


class PageFile(NamedTuple):
    """A file of the page.

    Attributes:
        path: path of its address: `/` for `index.html`, the name of other pages without `.html`.
        content: what it contains.
        media_type: media type by its name.
        is_versioned: whether its name contains its version, so that browsers may keep it.
    """

    path: str
    content: bytes
    media_type: str
    is_versioned: bool


def page_files(start: str = "index.html") -> list[PageFile]:
    """Return the files of the pages and the libraries they load; ``start`` is the page at `/`."""
    page = files("pipeline.preferences") / "page"
    folders = (("/", page), ("/vendor/", page / "vendor"))
    return [
        PageFile(
            "/" if file.name == start else folder + file.name.removesuffix(".html"),
            file.read_bytes(),
            TYPES[suffix],
            folder == "/vendor/",
        )
        for folder, directory in folders
        for file in sorted(directory.iterdir(), key=lambda one: one.name)
        if (suffix := "." + file.name.rpartition(".")[2]) in TYPES
    ]
