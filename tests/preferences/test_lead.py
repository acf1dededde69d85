"""The lead's page: its figures are those of the labels, its verdicts decide, and it is as blind as everybody's."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.preferences import lead_figures
from pipeline.preferences.adjudication import Adjudication
from pipeline.preferences.agreement import exported, label_table
from pipeline.preferences.events import LedgerEvent
from pipeline.preferences.items import items_of
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.labels import Batch, State
from pipeline.preferences.lead_figures import FASTEST_CHARS_S, LeadFigures
from pipeline.preferences.ledger import Ledger
from pipeline.preferences.probes import REPEAT, ProbePlan, gold_items

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
SIZES = {"wide": (1280, 800), "phone": (390, 844)}
PICTURES = os.environ.get("TRUEUP_TEST_PICTURES")
MARKUP = "<img src=x onerror=alert(1)><b>bold</b>"
SALT = "6b7f0f2fd2c64b0b8f4c5d3a91e0c7aa"


def _items(count: int, word: str = "question") -> list[Any]:
    rows = (
        {
            "prompt": [{"role": "user", "content": f"{word} {n} {MARKUP}"}],
            "chosen": [{"role": "assistant", "content": f"good {n} {MARKUP}"}],
            "rejected": [{"role": "assistant", "content": f"poor {n} {MARKUP}"}],
        }
        for n in range(count)
    )
    return items_of(rows)[0]


ITEMS = _items(6)
GOLDEN, _ = gold_items(_items(3, "known"), [])


def _label(item: str, who: str, verdict: str, seconds: float = 10.0, **more: Any) -> tuple[str, Any]:
    body = {"item": item, "annotator": who, "verdict": verdict, "strength": 1, "seconds": seconds, "swapped": False}
    return "label", {**body, **more}


def _person(name: str, **more: Any) -> tuple[str, Any]:
    return "annotator", {"name": name, "token": name, **more}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A ledger in which three people said different things of four pairs; grace reads nothing."""
    ledger = Ledger(f"sqlite:///{tmp_path / 'l.db'}", "batch")
    ids = [item.id for item in ITEMS]
    ledger.extend(
        [
            ("batch", {"salt": SALT}),
            *(_person(name) for name in ("ada", "grace", "mary")),
            _person("lin", role="lead"),
            _label(ids[0], "ada", "first"),
            _label(ids[0], "grace", "second", 0.1, swapped=True),
            _label(ids[0], "mary", "first"),
            _label(ids[1], "ada", "first"),
            _label(ids[1], "grace", "tie", 0.1),
            _label(ids[2], "ada", "second"),
            ("skip", {"item": ids[2], "annotator": "mary", "reason": MARKUP}),
            ("flag", {"item": ids[3], "annotator": "grace", "reason": MARKUP}),
            _label(GOLDEN[0].id, "ada", "first"),
            _label(GOLDEN[0].id, "grace", "second", 0.1),
            _label(GOLDEN[1].id, "grace", "second", 0.1),
        ]
    )
    return ledger


def _batch(**how: Any) -> Batch:
    return Batch(ITEMS, per_item=3, probes=ProbePlan(GOLDEN, 0.1), **how)


def test_the_figures_are_those_of_the_labels(ledger: Ledger) -> None:
    told = LeadFigures(_batch(), ledger).overview()
    # Six pairs want three labels each; the flagged one, none.
    assert told["progress"] == {"done": 6, "wanted": 15, "closed": False, "pairs": 6}
    assert told["leads"] == [{"name": "lin", "access": "active"}]
    # Pairs of labels: of the first item one of three is equal, of the second none of one.
    assert told["agreement"]["value"] == pytest.approx(1 / 4) and told["agreement"]["n"] == 2
    ada, grace, mary = told["people"]
    assert (ada["labels"], grace["labels"], grace["flagged"], mary["skipped"]) == (3, 2, 1, 1)
    assert ada["fast"]["value"] == 0 and grace["fast"]["value"] == 1 and grace["median_seconds"] == 0.1
    assert (ada["chose_left"]["value"], ada["chose_left"]["n"]) == (pytest.approx(2 / 3), 3)
    assert (grace["chose_left"]["value"], grace["chose_left"]["n"]) == (1, 1)  # the second answer was on the left
    # Of the first item the others agree for neither ada nor mary; grace has a majority against her.
    assert grace["with_the_rest"]["value"] == 0 and grace["with_the_rest"]["n"] == 2
    assert (ada["gold"]["value"], grace["gold"]["value"], grace["gold"]["n"], mary["gold"]) == (1, 0, 2, None)
    lists = told["lists"]
    assert (lists["disagreements"], lists["flagged"], lists["skipped"], lists["open"]) == (2, 1, 1, 4)
    assert lists["stuck"] == 1  # mary skipped the third pair, and it wants labels of three people


def test_a_label_is_fast_when_it_took_less_than_scanning_takes(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "p" * 999}]}
    row |= {"chosen": [{"role": "assistant", "content": "c" * 540}], "rejected": [{"role": "x", "content": "r" * 60}]}
    (item,) = items_of([row])[0]
    assert FASTEST_CHARS_S == 60  # 600 characters take ten seconds
    ledger = Ledger(f"sqlite:///{tmp_path / 'l.db'}", "b")
    seconds = {"ada": 9.9, "grace": 10.1, "mary": 0.0}  # 0 is a label of a program, which tells no time
    ledger.extend([*map(_person, seconds), *(_label(item.id, who, "first", s) for who, s in seconds.items())])
    told = {one["name"]: one["fast"] for one in LeadFigures(Batch([item], 3), ledger).overview()["people"]}
    assert told["ada"]["value"] == 1 and told["grace"]["value"] == 0 and told["mary"] is None


def test_speed_leaves_out_pauses(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = LeadFigures(_batch(), ledger)
    day = 1_800_000_000 // 3600 * 3600
    # Three labels 60 s apart, an hour's pause, one more: two gaps of work, 60 labels an hour.
    at = [day, day + 60, day + 120, day + 3720]
    bodies = [_label(item.id, "joan", "first")[1] for item in ITEMS[:4]]
    figures._take(
        [LedgerEvent(100 + n, t, "label", body, "") for n, (t, body) in enumerate(zip(at, bodies, strict=True))]
    )
    monkeypatch.setattr(lead_figures.time, "time", lambda: day + 3800.0)
    told = figures.overview()
    assert told["people"][2]["name"] == "joan" and told["people"][2]["per_hour"] == pytest.approx(60)
    assert told["hours"]["labels"]["joan"] == [0] * 22 + [3, 1]


def test_figures_rest_after_they_were_computed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computing takes 2 s of this clock, so the figures rest for 9 times 2 s, and are told as they were meanwhile."""
    figures, clock = LeadFigures(_batch(), ledger), [100.0]
    monkeypatch.setattr(lead_figures.time, "monotonic", lambda: clock[0])
    real = figures._times

    def slow() -> Any:
        clock[0] += 2.0
        return real()

    figures._times = slow  # type: ignore[method-assign]
    before = figures.overview()
    ledger.extend([_label(ITEMS[4].id, "ada", "first")])
    after = before["event"] + 1
    clock[0] += 16.9
    assert figures.overview(after)["event"] == before["event"]
    clock[0] += 1.2
    assert figures.overview(after)["event"] == after


def test_figures_of_a_moment_ago_are_told_while_new_ones_are_computed(ledger: Ledger) -> None:
    figures, ready = LeadFigures(_batch(), ledger), threading.Event()
    before = figures.overview()
    real = figures._compute

    def slow() -> Any:
        ready.wait(timeout=800)
        return real()

    figures._compute = slow  # type: ignore[method-assign]
    ledger.extend([_label(ITEMS[4].id, "ada", "first")])
    after = before["event"] + 1
    assert figures.overview(after, wait_s=0)["event"] == before["event"]
    ready.set()
    assert figures.overview(after, wait_s=800)["event"] == after
    assert figures.overview(after, wait_s=800)["progress"]["done"] == before["progress"]["done"] + 1


def test_the_verdict_of_a_lead_decides_and_is_no_label(ledger: Ledger) -> None:
    queue = LabelQueue(_batch(), ledger)
    desk, figures = Adjudication(queue), LeadFigures(queue.batch, ledger)
    contested = ITEMS[0].id

    def state() -> State:
        return State().take(ledger.events())

    (row,) = exported(ITEMS[:1], state())[0]
    assert row["chosen"] == list(ITEMS[0].responses[0])  # two of three
    shown = desk.shown("lin", contested)
    side = "left" if "poor" in shown["left"][0]["content"] else "right"
    before = label_table(ITEMS, state()).verdict_NA.tolist()
    desk.adjudicate("lin", shown["item"], side, 3, "the second is right")
    (row,) = exported(ITEMS[:1], state())[0]
    assert row["chosen"] == list(ITEMS[0].responses[1]) and row["margin"] == 3
    assert label_table(ITEMS, state()).verdict_NA.tolist() == before
    assert figures.overview(after=queue.last_event(), wait_s=800)["lists"]["adjudicated"] == 1
    (item,) = figures.listing("adjudicated", 0, 9)[1]
    assert (
        item.final is not None and item.final.lead == "lin" and desk.side("lin", item.item, item.final.verdict) == side
    )
    number = queue.last_event()
    desk.adjudicate("lin", shown["item"], side, 3, "the second is right")  # sent twice
    assert queue.last_event() == number
    desk.adjudicate("lin", shown["item"], "tie", 1, "")
    assert exported(ITEMS[:1], state()) == ([], {"tie": 1})
    desk.adjudicate("lin", shown["item"], None, 1, "")
    (row,) = exported(ITEMS[:1], state())[0]
    assert row["chosen"] == list(ITEMS[0].responses[0])


def test_a_verdict_ends_the_need_for_labels_and_lifts_a_flag(ledger: Ledger) -> None:
    queue = LabelQueue(_batch(), ledger)
    desk = Adjudication(queue)
    flagged, untouched = ITEMS[3].id, ITEMS[5].id
    handed = {queue._state.item_of("ada", one["item"]): one["item"] for one in queue.next("ada", 9)}
    wanted = queue.progress()["wanted"]
    for item in (flagged, untouched):
        desk.adjudicate("lin", desk.shown("lin", item)["item"], "left", 2, "")
    assert queue.progress()["wanted"] == wanted - 3  # the flagged pair needed none
    rows, without = exported([ITEMS[3], ITEMS[5]], State().take(ledger.events()))
    assert len(rows) == 2 and not without
    if untouched in handed:
        with pytest.raises(Exception, match="the lead has decided this pair"):
            queue.label("ada", handed[untouched], "left", 1, 1.0)
    desk.drop("lin", desk.shown("lin", untouched)["item"], "unclear")
    assert ledger.events()[-1].body == {"item": untouched, "reason": "unclear", "by": "lin"}
    assert exported([ITEMS[5]], State().take(ledger.events()))[1] == {"dropped": 1}


def test_a_lead_is_as_blind_as_everybody(in_process: Callable[..., Any]) -> None:
    """Ids and sides are the lead's own: neither is that of a person or of the data, and no reply says more."""
    items = _items(60)
    app = in_process(Batch(items, per_item=2))
    app.queue.ledger.extend([_label(item.id, who, "first") for item in items for who in ("x", "y")])
    app.queue.ledger.extend([_label(item.id, "z", "second") for item in items])
    app.invite("lin", "lead")
    app.invite("kim", "lead")
    seen = {}
    for who in ("lin", "kim"):
        pages = [app.ask("lead/items", who, name="disagreements", offset=n) for n in range(0, 60, 10)]
        seen[who] = [one for page in pages for one in page["items"]]
        assert len(seen[who]) == 60
    lin, kim = seen["lin"], seen["kim"]
    assert not {one["item"] for one in lin} & {one["item"] for one in kim}
    assert not {one["item"] for one in lin} & {item.id for item in items}
    for one in (lin, kim):
        assert 12 < sum("poor" in shown["left"][0]["content"] for shown in one) < 48
    assert 12 < sum(a["left"] == b["left"] for a, b in zip(lin, kim, strict=True)) < 48
    assert app.ask("lead/adjudicate", "lin", 409, item=kim[0]["item"], choice="left")["error"].startswith("this pair")


def test_lists_are_shown_in_pages_with_what_people_said(in_process: Callable[..., Any]) -> None:
    items = _items(25)
    app = in_process(Batch(items, per_item=2))
    app.invite("lin", "lead")
    said = [_label(item.id, who, verdict) for item in items for who, verdict in (("x", "first"), ("y", "second"))]
    said[0][1].update(comment="hard to say", edit="a better one", seconds=None, swapped=None)  # imported, say
    app.queue.ledger.extend([*said, ("skip", {"item": items[0].id, "annotator": "z", "reason": "long"})])
    flag = {"item": REPEAT + items[0].id, "annotator": "x", "reason": "a name", "flag": "personal data"}
    app.queue.ledger.extend([("flag", flag)])  # when the pair was shown again
    pages = [app.ask("lead/items", "lin", name="disagreements", offset=n) for n in (0, 10, 20, 30)]
    assert [len(page["items"]) for page in pages] == [10, 10, 5, 0] and {page["total"] for page in pages} == {25}
    first = pages[0]["items"][0]
    assert {label["name"]: label["choice"] for label in first["labels"]}.keys() == {"x", "y"}
    good = "left" if "good" in first["left"][0]["content"] else "right"
    assert [label["choice"] == good for label in first["labels"]] == [True, False]
    assert first["skips"] == [{"name": "z", "reason": "long"}] and first["final"] is None
    assert first["flags"] == [{"name": "x", "reason": "personal data: a name"}]
    assert set(first["labels"][0]) == {"name", "choice", "strength", "seconds", "comment", "edit"}
    assert first["labels"][0]["comment"] == "hard to say" and first["labels"][0]["edit"] == "a better one"
    assert set(first) == {"item", "prompt", "left", "right", "labels", "skips", "flags", "missing", "final"}
    for body in ({"name": "nothing"}, {"name": "open", "offset": -1}, {}, {"name": "open", "more": 1}):
        app.ask("lead/items", "lin", 422, **body)


def _open(browser: Any, app: Any, size: str = "wide", scheme: str = "light") -> tuple[Any, list[str]]:
    width, height = SIZES[size]
    page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
    page.set_default_timeout(120_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("dialog", lambda dialog: wrong.append("a script of the data ran"))
    page.goto(f"{app.address}/lead#{app.tokens['lin']}")
    page.wait_for_selector("#item:not([hidden])")
    return page, wrong


@pytest.fixture
def app(in_process: Callable[..., Any]) -> Any:
    """An app with two disagreements, a flag and a skip, and names, reasons and texts that are markup."""
    started = in_process(_batch(), f"{MARKUP} guidelines")
    ids = [item.id for item in ITEMS]
    started.invite("lin", "lead")
    for who in ("ada", MARKUP):
        started.invite(who)
    started.queue.ledger.extend(
        [
            *(_label(ids[n], "ada", "first") for n in range(3)),
            *(_label(ids[n], MARKUP, "second", 0.1) for n in range(2)),
            ("skip", {"item": ids[2], "annotator": MARKUP, "reason": MARKUP}),
            ("flag", {"item": ids[3], "annotator": MARKUP, "reason": MARKUP}),
        ]
    )
    return started


def test_a_lead_decides_with_keys_and_looks_after_people(browser: Any, app: Any) -> None:
    page, wrong = _open(browser, app)
    expect = sync_api.expect
    tab = page.locator("[data-list=disagreements]")
    expect(tab).to_have_text("Disagreements 2")
    tab.press("Enter")
    expect(page.locator("#panel")).to_be_focused()
    page.keyboard.press("j")
    expect(page.locator("#place")).to_have_text(re.compile("^2 of 2"))
    page.keyboard.press("k")
    good = "1" if "good" in page.inner_text("#left") else "2"
    for key in (good, good, "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#message")).to_have_text("The verdict is saved.")
    expect(tab).to_have_text("Disagreements 1")
    (final,) = [event.body for event in app.queue.ledger.events() if event.kind == "adjudicate"]
    assert (final["verdict"], final["strength"], final["annotator"]) == ("first", 2, "lin")
    page.click("[data-list=adjudicated]")
    page.click("#withdraw")
    expect(tab).to_have_text("Disagreements 2")
    page.fill("#name", "newcomer")
    page.press("#name", "Enter")
    page.wait_for_selector("#link[open]")
    link = page.input_value("#address")
    assert app.ask("hello", link.partition("#")[2])["annotator"] == "newcomer" and link.startswith(f"{app.address}/#")
    page.click("#link button[value=ok]")
    expect(page.locator("#address")).to_have_value("")
    assert link.partition("#")[2] not in page.content()
    row = page.locator("#people tbody tr").filter(has_text="newcomer")
    row.get_by_role("button", name="Pause").click()
    expect(row).to_contain_text("paused")
    assert app.queue.people()["newcomer"].access == "paused"
    row.get_by_role("button", name="Revoke").click()
    page.click("#sure-ok")
    expect(row).to_contain_text("revoked")
    page.click("#close")
    page.click("#sure-ok")
    expect(page.locator("#close")).to_have_text("Open the batch again")
    page.click("#close")
    expect(page.locator("#close")).to_have_text("Close the batch")
    page.click("[data-list=open]")
    page.click("#drop")
    page.click("#sure-ok")
    expect(page.locator("#message")).to_have_text("The pair is dropped.")
    assert len(State().take(app.queue.ledger.events()).dropped) == 1
    assert wrong == []


def test_what_people_wrote_is_text(browser: Any, app: Any) -> None:
    page, wrong = _open(browser, app)
    assert (
        MARKUP in page.inner_text("#left")
        and MARKUP in page.inner_text("#people")
        and MARKUP in page.inner_text("#labels")
    )
    page.click("[data-list=flagged]")
    sync_api.expect(page.locator("#labels")).to_contain_text(f"flagged it: {MARKUP}")
    assert page.locator("img, #work b:has-text('bold'):not(:has-text('<'))").count() == 0
    assert wrong == []


CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (c) => 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2];
  const ground = (e) => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor; if (!c.endsWith(', 0)')) return c; } return 'rgb(255, 255, 255)'; };
  return [...document.querySelectorAll('#work *')].filter((e) => e.checkVisibility() && !e.closest(':disabled')
      && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())).map((e) => {
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(rgb(ground(e)))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 80)]; }).filter(([ratio]) => ratio < 4.5); }"""
NAMELESS = """() => [...document.querySelectorAll('button, input, [role=region], svg')].filter((e) =>
  e.checkVisibility() && !e.textContent.trim() && !e.ariaLabel && !e.labels?.length
  && !e.hasAttribute('aria-labelledby'))
  .map((e) => e.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_and_can_be_read(browser: Any, app: Any, size: str, scheme: str) -> None:
    page, wrong = _open(browser, app, size, scheme)
    page.click("[data-choice=left]")
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"lead-{size}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(CONTRAST) == []  # WCAG 2.2, 1.4.3
    assert page.evaluate(NAMELESS) == []
    assert wrong == []


def test_a_link_of_another_role_says_where_it_belongs(browser: Any, app: Any) -> None:
    page, _ = _open(browser, app)
    for path, told in ((f"lead#{app.tokens['ada']}", "for the lead"), (f"#{app.tokens['lin']}", "opens /lead")):
        page.goto("about:blank")
        page.goto(f"{app.address}/{path}")
        sync_api.expect(page.locator("#message")).to_contain_text(told)
        assert not page.is_visible("#work")


@pytest.mark.slow
def test_the_status_counts_verdicts_apart(people: Path, call: Any) -> None:
    store = people.parent / "store"
    line = (people, "labels", "--store", store)
    waiting = json.loads(call("labels", "status", *line, "--json", cwd=people.parent).stdout)
    rows = [json.loads(text) for text in (people.parent / "answers.jsonl").read_text().splitlines()]
    turns = [
        {"prompt": [{"role": "user", "content": row["prompt"]}]}
        | {key: [{"role": "assistant", "content": row[key]}] for key in ("chosen", "rejected")}
        for row in rows
    ]
    queue = LabelQueue(Batch(items_of(turns)[0]), Ledger(f"sqlite:///{store / '.labels' / 'ledger.db'}", "labels"))
    desk = Adjudication(queue)
    for item in queue.batch.items:
        desk.adjudicate("lin", desk.shown("lin", item.id)["item"], "left", 1, "")
    told = json.loads(call("labels", "status", *line, "--json", cwd=people.parent).stdout)
    assert (waiting["adjudicated"], told["adjudicated"], told["labels"], told["wanted"]) == (0, 6, 0, 0)
    assert "6 pairs adjudicated by a lead" in call("labels", "status", *line, cwd=people.parent).stdout
    done = call("run", people, "--store", store, cwd=people.parent)
    assert done.returncode == 0 and "6 preferences from 0 labels" in done.stdout + done.stderr
    (manifest,) = (json.loads(file.read_text()) for file in (store / "labels").glob("*/manifest.json"))
    assert manifest["metrics"]["adjudicated"] == 6 and manifest["metrics"]["labels"] == 0


def test_a_server_that_cannot_just_now_stops_no_figures(browser: Any, app: Any) -> None:
    page = browser.new_context().new_page()
    told = [503, 429, 502]

    def refuse(route: Any) -> None:
        if told:
            status = told.pop(0)
            route.fulfill(status=status, body=json.dumps({"error": f"nothing is saved just now ({status})"}))
        else:
            route.continue_()

    page.clock.install()
    page.route("**/api/lead/hello", refuse)
    page.goto(f"{app.address}/lead#{app.tokens['lin']}")
    message = sync_api.expect(page.locator("#message"), "what is said")
    for status in list(told):  # a message of its own for each reply, so that none is taken for the next
        message.to_have_text(f"Nothing is saved just now ({status}). It is tried again in 15 s.")
        page.clock.fast_forward(15_500)
    page.wait_for_selector("#work:not([hidden])")
    message.to_have_text("")
    told[:] = [503]
    page.route("**/api/lead/overview", refuse)
    page.clock.fast_forward(15_500)
    message.to_contain_text("Nothing is saved just now (503). The figures are those of a moment ago.")
    page.clock.fast_forward(15_500)
    message.to_have_text("")
    page.context.close()
