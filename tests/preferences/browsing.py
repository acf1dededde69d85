"""A real browser, and a page of the labelling app in it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
sync_api.expect.set_options(timeout=120_000)  # no test depends on speed
SIZES = {"wide": (1280, 800), "phone": (390, 844)}
PICTURES = os.environ.get("TRUEUP_TEST_PICTURES")
"""A folder to leave pictures of the page in, for people to look at."""

AXE = next((Path(__file__).parent / "axe").glob("axe-*.min.js"))
_RUN = """async () => (await axe.run(document, {resultTypes: ['violations']})).violations
  .map((one) => `${one.id}: ${one.nodes.map((node) => node.html).join(' ').slice(0, 300)}`)"""


class Page:
    """A page of the app, and what went wrong in it."""

    def __init__(self, browser: Any, size: str = "wide", scheme: str = "light") -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.app: Any = None
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)

    def open(self, app: Any, who: str) -> None:
        self.page.goto(f"{app.address}/#{app.tokens[who]}")
        self.page.wait_for_selector("#work:not([hidden])")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def wait(self, done: int) -> None:
        """Wait until the server counts so many labels."""
        sync_api.expect(self.page.locator("#progress")).to_have_text(re.compile(f"^{done} of "), timeout=120_000)

    def read(self, part: str) -> str:
        return str(self.page.inner_text(part))

    def picture(self, name: str, *, full: bool = False) -> None:
        """Leave a picture for people to look at, if they asked for some."""
        if PICTURES:
            self.page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=full)

    def load_axe(self) -> None:
        """Have axe-core in every page that is opened from now on."""
        self.context.add_init_script(path=AXE)

    def violations(self) -> list[str]:
        """Return what axe-core objects to in the page as it is."""
        return list(self.page.evaluate(_RUN))

    def better(self) -> str:
        """Return the key of the answer that is right."""
        return "1" if "right" in self.read("#left") else "2"
