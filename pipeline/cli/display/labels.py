"""Shows labels: their number, the agreement of annotators, and the verification of the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipeline.cli.terminal import print_json, print_line
from pipeline.errors import agreeing, counted
from pipeline.evaluation.stats.annotators import krippendorff_alpha, raw_agreement
from pipeline.evaluation.stats.estimate import Estimate
from pipeline.preferences.agreement import label_table
from pipeline.preferences.anchors import Notes
from pipeline.preferences.assignment import Assignment
from pipeline.preferences.labels import Batch, State
from pipeline.preferences.ledger import Ledger
from pipeline.preferences.probes import is_probe, repeated
from pipeline.preferences.rankings import implied, tau_b


def status(batch: Batch, state: State, *, as_json: bool) -> None:
    """Print the number of labels, in total and by annotator, and the pairs that nobody there can complete."""
    assignment = Assignment(batch, state)
    done, full = assignment.progress()
    stuck = assignment.stuck()
    imported = [name for name, own in state.answers.items() if own and name not in state.people]
    invited = [name for name, person in state.people.items() if person.role == "annotator"]
    people = {name: _counts(state, name) for name in (*invited, *imported)}
    if as_json:
        totals = {"labels": done, "wanted": full, "pairs": len(batch.items), "annotators": people}
        left = [{"item": one.item, "missing": one.missing, "people": one.people} for one in stuck]
        more = {
            "closed": state.is_closed,
            "flags": _flags(state),
            "dropped": sorted(state.dropped),
            "adjudicated": len(state.adjudicated),
            "stuck": left,
        }
        print_json({**totals, **more, "event": state.number, "head": state.head})
        return
    closed = ", closed" if state.is_closed else ""
    print_line(
        f"{done} of {counted(full, 'label')} of {counted(len(batch.items), batch.noun)}{closed}, event {state.number}"
    )
    for name, counts in sorted(people.items()):
        access = state.people[name].access if name in state.people else "imported"
        note = "" if access == "active" else f" ({access})"
        print_line(f"  {name}{note}: " + ", ".join(f"{count} {word}" for word, count in counts.items()))
    for flag in _flags(state):
        kind = flag["kind"] or "wrong"
        print_line(f"{flag['item']} is flagged as {kind} by {flag['annotator']}: {flag['reason'] or 'no reason given'}")
    if state.dropped:
        print_line(f"{counted(len(state.dropped), batch.noun)} dropped")
    if state.adjudicated:
        print_line(f"{counted(len(state.adjudicated), batch.noun)} adjudicated by a lead")
    if stuck:
        wants = agreeing(len(stuck), "wants", "want")
        print_line(
            f"{counted(len(stuck), batch.noun)} {wants} labels that nobody here can give: add people, or see `labels "
            "drop --stuck` and `labels close`"
        )


def _flags(state: State) -> list[dict[str, str | None]]:
    """Return the flags of a batch, sorted by item."""
    answers = ((item, who, one) for item, given in sorted(state.given.items()) for who, one in given.items())
    return [
        {
            "item": repeated(item),
            "annotator": who,
            "kind": one.details.flag if one.details else None,
            "reason": one.reason,
        }
        for item, who, one in answers
        if one.kind == "flag"
    ]


def _counts(state: State, annotator: str) -> dict[str, int]:
    answers = state.answers.get(annotator, {})
    kinds = Counter(answer.kind for item, answer in answers.items() if not is_probe(item))
    counts = {"labels": kinds["label"], "skipped": kinds["skip"], "flagged": kinds["flag"]}
    probes = sum(map(is_probe, answers))
    return {**counts, "probes": probes} if probes else counts


def agreed(batch: Batch, state: State, *, as_json: bool) -> None:
    """Print the agreement of annotators on the pairs that several of them labelled, or that their rankings imply."""
    pairs = implied(batch.items, state)
    verdict_NA = label_table(pairs.items, pairs.state, only_shared=not batch.is_ranked).verdict_NA
    rate = raw_agreement(verdict_NA, seed=0, cluster_N=pairs.group_N)
    tau = tau_b(batch.items, state) if batch.is_ranked else None
    alpha = krippendorff_alpha(verdict_NA)
    per_item = (verdict_NA >= 0).sum(1)
    compared = int((per_item * (per_item - 1) // 2).sum())
    if as_json:
        told = {
            "pairs": rate.n if rate else 0,
            "compared": compared,
            "same": round(rate.value * compared) if rate else 0,
        }
        ranked = {"kendall_tau_b": tau.model_dump() if tau else None} if batch.is_ranked else {}
        print_json({**told, "interval": [rate.low, rate.high] if rate else None, "krippendorff_alpha": alpha, **ranked})
        return
    if rate is None:
        print_line(
            f"no {batch.noun} has two labels: set `overlap` or `labels_per_item` of the stage to measure agreement"
        )
        return
    share = f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}]"
    each = ", each two answers of a ranking" if batch.is_ranked else ""
    print_line(f"{share} of {counted(compared, 'comparison')} agree, on {counted(rate.n, batch.noun)}{each}")
    said = "has no value: all labels are equal" if alpha is None else f"{alpha:.3f}"
    print_line(f"Krippendorff's alpha (nominal): {said}")
    if batch.is_ranked:
        print_line(tau_line(tau))


def tau_line(tau: Estimate | None) -> str:
    """Return what is said of the agreement of rankings."""
    if tau is None:
        return "Kendall's tau-b has no value: no group has two rankings that are not all one tie"
    told = f"{tau.value:.3f} [{tau.low:.3f}, {tau.high:.3f}]"
    return f"Kendall's tau-b: {told} between two rankings of a group, on {counted(tau.n, 'group')}"


def verified(ledger: Ledger, problems: Sequence[str], notes: Notes, *, as_json: bool) -> None:
    """Print the problems of the ledger's hash chain, or that there are none, and what it could not be compared with.

    Args:
        ledger: the ledger.
        problems: what is wrong with its events.
        notes: heads that were noted outside the ledger, with which it was compared.
        as_json: whether to print JSON for programs.
    """
    anchors = len(notes.anchors)
    last, count = ledger.last(), ledger.count()
    if as_json:
        told = {"events": count, "head": last.hash if last else "", "anchors": anchors}
        beside = {"elsewhere": list(notes.elsewhere), "unreadable": list(notes.unreadable)}
        print_json({**told, "problems": list(problems), **beside})
        return
    for problem in problems:
        print_line(problem)
    if not problems:
        print_line(
            f"{counted(count, 'event')}, each follows the one before it"
            + (f"; head {last.hash[:12]}" if last else "")
            + (
                f"; {counted(anchors, 'note')} of earlier heads {agreeing(anchors, 'agrees', 'agree')}"
                if anchors
                else ""
            )
        )
    if count and not anchors:
        print_line("no earlier head is noted outside the ledger: an end that was cut off would not show")
    for number in notes.unreadable:
        print_line(f"line {number} of anchors.jsonl is no note of a head: nothing was compared with it")
    for name in notes.elsewhere:
        print_line(f"notes of a batch of this name in another ledger, {name}, were not compared")
