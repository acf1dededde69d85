"""The labelling app under load: `make bench-collect`.

    python benchmarks/collect.py                         # SQLite, and PostgreSQL where its programs are installed
    python benchmarks/collect.py --database sqlite --seconds 10

The ledger holds 100,000 events when the app starts. Fifty people label over HTTP, each on a connection of their own:

paced     ten labels a second together: the time from a label to the reply with the next pair, at the 95th percentile
flat out  as fast as they can: labels a second
lead      the lead's page: the time until its figures of the 100,000 events are there; and again after more labels
killed    the server gets a SIGKILL meanwhile and is started again: every label that was acknowledged is there once
mixed     labels, next pairs, labels taken back, skips, flags, pages, and a lead's figures, lists and verdicts, until
          100,000 requests were answered in all: how many with a status of 500 and above

Prints one JSON line for each figure, with its bar. People and server share the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from collect_people import App, Lead, Person, Visitor  # noqa: E402

from pipeline.preferences.items import items_of  # noqa: E402
from pipeline.preferences.labels import State  # noqa: E402
from pipeline.preferences.ledger import Ledger  # noqa: E402
from pipeline.records.shapes.conversion import shaped  # noqa: E402


class Size(NamedTuple):
    """What is measured: how many people, events at the start, and pairs; seconds of each part; requests in all."""

    people: int = 50
    events: int = 100_000
    pairs: int = 100_000
    seconds: float = 30.0
    requests: int = 100_000


BARS = {"paced_p95_ms": "≤ 100", "flat_out_per_s": "≥ 150", "lost": "0", "doubled": "0", "server_errors": "0"}
BARS |= {f"{figure}_s": "≤ 2" for figure in ("status", "agreement", "export", "lead", "lead_again")}
RECIPE = """
name: bench
data: {answers: {path: answers.jsonl}}
stages: {labels: {kind: collect, data: answers, overlap: 0.15}}
"""


def show(database: str, figure: str, value: float, **more: Any) -> None:
    """Print one figure."""
    line = {"database": database, "figure": figure, "value": round(value, 3), "bar": BARS.get(figure, ""), **more}
    print(json.dumps(line, ensure_ascii=False), flush=True)


def make_world(folder: Path, url: str, size: Size) -> None:
    """Write the recipe, its pairs, and a ledger of events."""
    rows = [
        {"prompt": f"question {n}", "chosen": f"one answer to {n}", "rejected": f"another answer to {n}"}
        for n in range(size.pairs)
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bench.yaml").write_text(RECIPE)
    items, _ = items_of(shaped(row, "preference", "preference") for row in rows)
    rng = random.Random(0)
    events: list[Any] = [("batch", {"salt": "0" * 32})]
    for n in range((size.events - 1) // 2):
        item, who = items[n % len(items)].id, f"earlier {n % 7}"
        verdict = rng.choice(["first", "second", "tie"])
        body = {"item": item, "annotator": who, "verdict": verdict, "strength": 1, "seconds": 3.0, "swapped": False}
        events += [("lease", {"annotator": who, "items": [item], "until": 0.0}), ("label", body)]
    Ledger(url, "labels").extend(events)


def work(app: App, every: float, seconds: float) -> list[Person]:
    """Let everybody label for some seconds."""
    until = time.perf_counter() + seconds
    people = [Person(app, name, every, until) for name in app.tokens]
    for person in people:
        person.start()
    for person in people:
        person.join()
    return people


def open_lead(app: App) -> float:
    """Return the seconds until the lead's page has its figures."""
    started = time.perf_counter()
    reply = app.ask(app.connect(), app.lead, "/api/lead/overview", {})
    if reply.status != 200 or not json.loads(reply.text)["event"]:
        sys.exit(f"the lead's page has no figures: {reply.status}")
    return time.perf_counter() - started


def mix(app: App, requests: int) -> list[Visitor]:
    """Let everybody do what the page can do until the app has answered a number of requests."""
    people = [Visitor(app, name, requests) for name in app.tokens]
    everybody: list[threading.Thread] = [*people, Lead(app, requests)]
    for person in everybody:
        person.start()
    for person in everybody:
        person.join()
    return people


def measure(database: str, folder: Path, url: str, size: Size) -> None:
    """Measure the app on one database."""
    make_world(folder, url, size)
    app, seconds = App(folder, url, size.people), size.seconds
    show(database, "start_s", app.start(), events=size.events, pairs=size.pairs)
    show(database, "lead_s", open_lead(app))
    paced = work(app, size.people / 10, seconds)
    times = sorted(ms for person in paced for ms in person.milliseconds)
    p95 = times[int(len(times) * 0.95)]
    show(database, "paced_p95_ms", p95, median=round(statistics.median(times), 2), labels=len(times))
    started = time.perf_counter()
    show(database, "lead_again_s", open_lead(app))
    started = time.perf_counter()
    fast = work(app, 0.0, seconds)
    labels = sum(len(person.acknowledged) for person in fast)
    show(database, "flat_out_per_s", labels / (time.perf_counter() - started), labels=labels)
    killer = threading.Timer(seconds / 3, lambda: (app.stop(signal.SIGKILL), app.start()))
    killer.start()
    killed = work(app, 0.02, seconds)
    killer.join()
    mixed = mix(app, size.requests)
    show(database, "server_errors", sum(app.statuses[status] for status in app.statuses if status >= 500))
    statuses = {str(status): count for status, count in sorted(app.statuses.items())}
    show(database, "requests", app.statuses.total(), statuses=statuses)
    show(database, "peak_memory_mib", app.peak_memory_mib())
    app.stop()
    groups = (paced, fast, killed, mixed)
    acknowledged = Counter(request for group in groups for one in group for request in one.acknowledged)
    ledger = Ledger(url, "labels")
    events = ledger.events()
    written = Counter(event.body["request"] for event in events if event.kind == "label" and "request" in event.body)
    show(database, "lost", len(acknowledged.keys() - written.keys()), sent=acknowledged.total())
    show(database, "doubled", sum(count > 1 for count in written.values()), failed=sum(one.failed for one in killed))
    show(database, "chain", len(ledger.problems()), events=len(events))
    given = State().take(events)
    show(database, "labels", sum(len(own) for own in given.answers.values()))
    for verb in ("status", "agreement", "export"):
        started = time.perf_counter()
        more = ["--out", "export.jsonl"] if verb == "export" else []
        line = [sys.executable, "-m", "pipeline.cli", "labels", verb, "bench.yaml", "labels", *more]
        around = {**os.environ, "TRUEUP_LEDGER": url, "PYTHONPATH": str(ROOT)}
        subprocess.run(line, cwd=folder, env=around, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        show(database, f"{verb}_s", time.perf_counter() - started, events=len(events))


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[str | None]:
    """Run a PostgreSQL server of our own and yield its URL; None where its programs are not installed."""
    programs = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), Path(shutil.which("initdb") or "x").parent]
    initdb = next((place / "initdb" for place in programs if (place / "initdb").is_file()), None)
    if initdb is None:
        yield None
        return
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    if user:
        shutil.chown(folder, "postgres", "postgres")
    data = folder / "data"
    make = [initdb, "--pgdata", data, "--username", "trueup", "--auth", "trust", "--encoding", "UTF8"]
    subprocess.run(make, check=True, capture_output=True, cwd=folder, **user)
    port = random.SystemRandom().randrange(20_000, 32_000)
    run = [initdb.with_name("postgres"), "-D", data, "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1"]
    server = subprocess.Popen(run, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user)
    try:
        import psycopg

        while True:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(host="127.0.0.1", port=port, user="trueup", dbname="postgres").close()
                break
            if server.poll() is not None:
                sys.exit("PostgreSQL did not start")
            time.sleep(0.1)
        yield f"postgresql+psycopg://trueup@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def main() -> None:
    """Measure on each database."""
    parser = argparse.ArgumentParser(description="Measure the labelling app under load.")
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="both")
    for name, value in Size()._asdict().items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    asked = parser.parse_args()
    size = Size(asked.people, asked.events, asked.pairs, asked.seconds, asked.requests)
    with tempfile.TemporaryDirectory(prefix="trueup-bench-") as made:
        if asked.database in ("sqlite", "both"):
            folder = Path(made, "sqlite")
            folder.mkdir()
            measure("sqlite", folder, f"sqlite:///{folder / 'ledger.db'}", size)
        if asked.database in ("postgresql", "both"):
            place, folder = Path(made, "server"), Path(made, "postgresql")
            place.mkdir()
            folder.mkdir()
            Path(made).chmod(0o755)
            with postgresql(place) as url:
                if url is None:
                    print(json.dumps({"database": "postgresql", "skipped": "PostgreSQL is not installed"}))
                else:
                    measure("postgresql", folder, url, size)


if __name__ == "__main__":
    main()
