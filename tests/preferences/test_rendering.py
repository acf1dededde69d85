"""Markdown, code, tables and formulas are readable in a real browser, and hostile markup does nothing in it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import SIZES, Page

from pipeline.preferences.page_files import page_files

VENDOR = Path(__file__).parents[2] / "pipeline" / "preferences" / "page" / "vendor"
MARKDOWN = (
    r"""# Sorting

Use **merge sort**, *not* `bogosort`:

```python
def merge_sort(values: list[int]) -> list[int]:  # """
    + "a long comment " * 30
    + r"""
    return sorted(values)
```

| algorithm | cost |
|---|---:|
| merge | $O(n \log n)$ |
| bogo | many |

1. first
2. second

$$
T(n) = 2\,T\!\left(\frac{n}{2}\right) + n
$$

It costs 5 $ or 6 $, and \(\sqrt{2}\) is not rational. See [the page](https://example.org/sort).
"""
)
RIGHT_TO_LEFT = "שלום עולם, זה משפט בעברית.\n\n- אחת\n- שתיים"
HOSTILE = r"""
<script>document.title = "stolen"</script>
<img src=x onerror="document.title='stolen'">
<svg onload="document.title='stolen'"><style>body { display: none }</style></svg>
<style>body { display: none }</style>
<iframe src="https://example.org"></iframe>
<form action="https://example.org"><button id="submit">Win</button></form>
<a href="javascript:document.title='stolen'">press</a>
[press](javascript:document.title='stolen') [too](JaVaScRiPt:document.title='stolen')
<javascript:document.title='stolen'>
[data](data:text/html,<script>document.title='stolen'</script>) [view](vbscript:x)
![picture](https://example.org/pixel.png) ![local](x" onerror="document.title='stolen')
[a](https://example.org "x\" onclick=\"document.title='stolen'")
```"><script>document.title='stolen'</script>
<b onclick=x>code</b>
```
$\href{javascript:document.title='stolen'}{x}$ $\htmlStyle{display:none}{y}$ $\includegraphics{https://example.org/a.png}$
$\text{<img src=x onerror=document.title='stolen'>}$ $\def\x{\x\x}\x$ $\rule{99999em}{99999em}$
<math><annotation-xml encoding="text/html"><img src=x onerror="document.title='stolen'"></annotation-xml></math>
"""


@pytest.fixture
def open_with(people: Path, open_app: Callable[..., Any]) -> Callable[..., Any]:
    """Start the app with one pair of these texts."""

    def start(prompt: str, chosen: str, rejected: str, guidelines: str = "", who: str = "ada") -> Any:
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        (people.parent / "answers.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        told = json.dumps(guidelines or "Prefer what is right.")
        recipe = re.sub("guidelines: .*}", lambda _: f"guidelines: {told}}}", people.read_text())
        people.write_text(recipe, encoding="utf-8")
        return open_app(who, url=f"sqlite:///{people.parent / 'l.db'}")

    return start


def _answers(shown: Page, selector: str) -> int:
    return int(shown.page.locator(f"article {selector}").count())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_markdown_code_tables_and_formulas_are_shown_and_a_key_shows_the_raw_text(
    browser: Any, open_with: Callable[..., Any], size: str, scheme: str
) -> None:
    app = open_with("Which is **best**?", MARKDOWN, RIGHT_TO_LEFT, guidelines="Prefer:\n\n- what is *right*\n- $x > 0$")
    shown = Page(browser, size, scheme)
    shown.open(app, "ada")
    for selector in ("h3", "strong", "em", "pre code", "table", "ol", "math"):
        assert _answers(shown, selector) >= 1, selector
    assert _answers(shown, "math") == 3  # that of the table, the block, the inline one; `5 $ or 6 $` is none
    assert _answers(shown, ".formula math[display=block] mfrac") == 1
    assert "5 $ or 6 $" in shown.read("#pair")
    assert shown.page.locator("#prompt strong").inner_text() == "best"
    assert shown.page.locator("#guidelines li").count() == 2 and shown.page.locator("#guidelines math").count() == 1
    link = shown.page.locator("article a").first
    assert (link.get_attribute("target"), link.get_attribute("rel")) == ("_blank", "noopener noreferrer nofollow")
    right = shown.page.locator("article", has_text="שלום")
    assert right.locator("p").evaluate("e => getComputedStyle(e).direction") == "rtl"
    assert right.locator("li").first.evaluate("e => getComputedStyle(e).direction") == "rtl"
    # Long code scrolls in a box of its own, which the keyboard reaches; the page does not.
    assert shown.page.locator("article pre").evaluate("e => e.scrollWidth > e.clientWidth && e.tabIndex === 0")
    assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shown.picture(f"markdown-{size}-{scheme}", full=True)
    shown.press("m")
    assert shown.page.get_attribute("#raw", "aria-pressed") == "true"
    assert "**merge sort**" in shown.read("#pair") and _answers(shown, "strong") == 0
    shown.picture(f"raw-{size}-{scheme}", full=True)
    shown.press("m")
    assert _answers(shown, "strong") == 1
    assert shown.wrong == []
    shown.context.close()


def test_hostile_markup_is_text_and_loads_nothing(browser: Any, open_with: Callable[..., Any]) -> None:
    who = "<img src=x onerror=document.title='stolen'>"
    app = open_with(HOSTILE, HOSTILE + "1", HOSTILE + "2", guidelines=HOSTILE, who=who)
    shown = Page(browser)
    asked: list[str] = []
    shown.page.on("request", lambda request: asked.append(request.url))
    shown.open(app, who)
    for selector in ("img", "svg", "iframe", "form", "object", "#submit", "[onclick]", "[onerror]", "[style]"):
        assert shown.page.locator(f"main {selector}, #guidelines {selector}").count() == 0, selector
    for tag in ("script", "style", "link", "base", "meta"):
        assert shown.page.locator(f"body main {tag}, #guidelines {tag}").count() == 0, tag
    hrefs = shown.page.eval_on_selector_all("main a, #guidelines a", "all => all.map((one) => one.href)")
    assert hrefs and all(href.startswith("https://example.org") for href in hrefs)
    assert "onerror=\"document.title='stolen'\"" in shown.read("#left")  # people read what was written
    for link in shown.page.locator("main a").all():
        link.dispatch_event("focus")
    assert shown.page.title() == f"labels · {who}"
    assert shown.page.is_visible("#pair") and shown.page.is_enabled("#skip")
    assert all(url.startswith(app.address) for url in asked), asked
    assert shown.wrong == []  # no text met the policy either: it was disarmed before
    shown.press("1", "Enter")
    shown.wait(1)


def test_the_policy_stops_a_script_that_is_in_the_page_all_the_same(
    browser: Any, open_with: Callable[..., Any]
) -> None:
    app = open_with("q", "a", "b")
    shown = Page(browser)
    shown.open(app, "ada")
    tried = """(act) => { const body = document.body;
      const acts = {
        markup: () => { body.innerHTML = '<img src=x onerror="document.title=1">'; },
        handler: () => body.setAttribute('onclick', 'document.title=1'),
        timer: () => setTimeout('document.title=1'),
        policy: () => trustedTypes.createPolicy('another', {}),
      };
      try { acts[act](); return ''; } catch (error) { return error.name; } }"""
    for act in ("markup", "handler", "timer", "policy"):
        assert shown.page.evaluate(tried, act) in ("TypeError", "EvalError"), act
    failed = """() => new Promise((done) => { const image = new Image(); image.onerror = () => done(true);
      image.onload = () => done(false); image.src = 'https://example.org/pixel.png'; })"""
    assert shown.page.evaluate(failed) is True
    assert any("Content Security Policy" in told and "pixel.png" in told for told in shown.wrong)
    assert shown.page.title() == "labels · ada"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_a_key_underlines_the_words_that_only_one_answer_has(
    browser: Any, open_with: Callable[..., Any], size: str, scheme: str
) -> None:
    one = "The **quick** brown fox\n\njumps over <b>the</b> lazy dog. 今日は晴れです。"
    other = "The **slow** brown fox\n\njumps over <b>the</b> very lazy dog. 今日は雨です。"
    app = open_with("q", one, other)
    shown = Page(browser, size, scheme)
    shown.open(app, "ada")
    marks = "all => all.map((one) => one.textContent.trim())"
    assert shown.page.locator("mark").count() == 0
    shown.press("d")
    assert shown.page.get_attribute("#compared", "aria-pressed") == "true"
    answer = shown.page.locator("article", has_text="quick")
    assert answer.locator("mark").evaluate_all(marks)[0] == "quick"
    assert answer.locator(".raw").inner_text() == one  # nothing is lost or rendered
    only = shown.page.locator("article", has_text="slow").locator("mark").evaluate_all(marks)
    assert only[:2] == ["slow", "very"] and "雨" in "".join(only[2:]) and "今日" not in "".join(only)
    assert "Underlined" in shown.read("#legend")
    line = "e => getComputedStyle(e).textDecorationLine"
    assert answer.locator("mark").first.evaluate(line) == "underline"  # told without colour, too
    shown.picture(f"differences-{size}-{scheme}")
    shown.press("m")  # one view at a time
    assert shown.page.locator("mark").count() == 0 and shown.read("#legend") == ""
    assert shown.page.get_attribute("#compared", "aria-pressed") == "false"
    shown.press("m", "d", "d")
    assert shown.page.locator("#pair strong").count() == 2
    shown.press("d", "1", "Enter")
    shown.wait(1)
    assert shown.wrong == []


def test_answers_too_long_to_compare_are_shown_and_said_to_be(browser: Any, open_with: Callable[..., Any]) -> None:
    app = open_with("q", "word " * 30_000, "other " * 30_000)
    shown = Page(browser)
    shown.open(app, "ada")
    shown.press("d")
    assert "too long to compare" in shown.read("#legend") and shown.read("#left .raw").startswith(("word", "other"))


FORMULAS = {
    "$$x^2$$ where x is nice\n\n**rest**": (1, "where x is nice", 1),
    "$$ is money, and this never ends\n\nsecond **line**": (0, "$$ is money", 1),
    "so $$\\frac{1}{2}$$ is **half**": (1, "so ", 1),
    "so \\[\\frac{1}{2}\\] is **half**": (1, "so ", 1),
    "- $$x$$ is\n- \\[y\\] and \\(z\\) are **these**": (3, "are these", 1),
    "$$\n\\begin{aligned}a &= b\\\\\nc &= d\\end{aligned}\n$$\n\n**after**": (1, "after", 1),
    "\\\\[ no formula \\\\], `$$x$$`, $5 and $6 **each**": (0, "\\[ no formula \\]", 1),
}


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_shown_wherever_models_write_them_and_end_where_they_end(
    browser: Any, open_with: Callable[..., Any], text: str
) -> None:
    app = open_with("q", text, "other")
    shown = Page(browser)
    shown.open(app, "ada")
    formulas, words, bold = FORMULAS[text]
    answer = shown.page.locator("article", has_text=words)
    assert (answer.locator("math").count(), answer.locator("strong").count()) == (formulas, bold)
    assert shown.wrong == []
    shown.context.close()


def test_texts_that_take_too_long_to_render_are_shown_as_they_are_in_words(
    browser: Any, open_with: Callable[..., Any]
) -> None:
    app = open_with("**q**", "**a**\n" * 3001, "$x$ " * 600 + "$\\begin{matrix}" + "a&" * 1600 + "\\end{matrix}$")
    shown = Page(browser)
    shown.open(app, "ada")
    lines = shown.page.locator("article", has_text="**a**")
    assert "Too long to be rendered: as it was written." in lines.inner_text() and lines.locator("strong").count() == 0
    assert shown.page.locator("article math").count() == 500 and shown.page.locator("article code").count() == 101
    shown.press("m")
    assert "Too long to be rendered" not in shown.read("#pair")
    assert shown.wrong == []


def test_stacked_accents_stay_in_their_answer(browser: Any, open_with: Callable[..., Any]) -> None:
    app = open_with("q", "a" + "\u0301" * 300, "b")
    shown = Page(browser)
    shown.open(app, "ada")
    assert {one.evaluate("e => getComputedStyle(e).overflowY") for one in shown.page.locator(".turn").all()} == {"clip"}


ODD = {
    "lines with dollars": "$$ a\n" * 30_000,
    "one wide formula": "$\\begin{matrix}" + "a&" * 20_000 + "\\end{matrix}$",
    "many short lines": "a\n" * 20_000,
    "nested deeply": "> " * 5000 + "deep",
    "open brackets": "[" * 20000,
    "a formula in braces": "$" + "{" * 5000 + "}" * 5000 + "$",
    "emphasis that does not end": "*a_ " * 20000,
    "backticks": "`" * 30000,
    "very long": "word " * 50_000,
}


@pytest.mark.parametrize("what", ODD)
def test_odd_texts_do_not_stop_the_page(browser: Any, open_with: Callable[..., Any], what: str) -> None:
    app = open_with("q", ODD[what], "short")
    shown = Page(browser)
    shown.open(app, "ada")
    shown.press("2", "Enter")
    shown.wait(1)
    assert shown.wrong == []


def test_the_libraries_are_those_of_the_table_and_the_page_loads_all_of_them() -> None:
    table = re.findall(r"\| `(\S+\.js)` \|.*`([0-9a-f]{64})` \|", (VENDOR / "README.md").read_text(encoding="utf-8"))
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in VENDOR.glob("*.js")}
    assert dict(table) == sums
    index = (VENDOR.parent / "index.html").read_text(encoding="utf-8")
    assert sorted(re.findall(r'src="vendor/(\S+)"', index)) == sorted(sums)
    assert {re.sub(r"-[\d.]+\.min\.js$", "", name) for name in sums} == {
        file.name.removesuffix(".LICENSE") for file in VENDOR.glob("*.LICENSE")
    }
    served = {file.path: file.is_versioned for file in page_files()}
    assert served["/"] is False and all(served[f"/vendor/{name}"] for name in sums)
    assert "/vendor/README.md" not in served
