"""Shows what the labels say of the people who gave them: agreement, accuracy, side, speed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.cli.display.labels import tau_line
from pipeline.cli.terminal import Column, print_json, print_line, print_table
from pipeline.errors import counted
from pipeline.evaluation.stats.annotators import (
    against_the_rest,
    annotator_pairs,
    dawid_skene,
    krippendorff_alpha,
    raw_agreement,
)
from pipeline.evaluation.stats.anomalies import Anomaly, anomalies
from pipeline.evaluation.stats.estimate import Estimate
from pipeline.plain_data import JsonObject
from pipeline.preferences.agreement import LabelTable, label_table
from pipeline.preferences.labels import VERDICTS, Answer, Batch, State
from pipeline.preferences.probe_results import ProbeResults, probe_results
from pipeline.preferences.probes import is_probe
from pipeline.preferences.rankings import Implied, implied, shown_first, tau_b
from pipeline.preferences.stored_items import ids_of

_PEOPLE = (
    Column("person", style="bold"),
    Column("labels", right=True),
    Column("seconds", right=True),
    Column("accuracy", right=True),
    Column("chose left", right=True),
    Column("with the rest", right=True),
    Column("look at"),
)
_PAIRS = (
    Column("person", style="bold"),
    Column("and", style="bold"),
    Column("pairs", right=True),
    Column("same", right=True),
    Column("kappa", right=True),
)


def statistics(batch: Batch, state: State, *, as_json: bool) -> None:
    """Print how people agree, over all and two by two, and what each one's labels look like.

    The accuracy is Dawid and Skene's estimate: how often a person gives the verdict that all labels together make most
    likely. `chose left` is near 50 % for whoever looks at the answers and not at their side. Of rankings, the figures
    are those of each two answers; `chose first` is the share of preferences for the answer shown further up.
    """
    pairs, labels = implied(batch.items, state), _labels(batch, state)
    table = label_table(pairs.items, pairs.state)
    strength_NA = np.where(table.strength_NA == -9, -1, table.strength_NA + 3)
    probes = probe_results(batch.probes, state)
    left = {name: _left(own) for name, own in state.answers.items()}
    measured: JsonObject = {
        "labels": sum(len(own) for own in labels.values()),
        "skipped": sum(one["skipped"] for one in left.values()),
        "flagged": sum(one["flagged"] for one in left.values()),
        "agreement": _plain(raw_agreement(table.verdict_NA, seed=0, cluster_N=pairs.group_N)),
        "krippendorff_alpha": krippendorff_alpha(table.verdict_NA),
        "krippendorff_alpha_ordinal": krippendorff_alpha(strength_NA, "ordinal"),
        "people": {
            name: {**one, **left[name], **_probes(probes.get(name))}
            for name, one in _people(table, pairs, labels).items()
        },
        "pairs": [
            {"first": table.annotators[one.first], "second": table.annotators[one.second], "items": one.items}
            | {"same": one.same, "kappa": one.kappa}
            for one in annotator_pairs(table.verdict_NA)
        ],
    }
    if batch.is_ranked:
        measured["kendall_tau_b"] = _plain(tau_b(batch.items, state))
    if as_json:
        print_json({**measured, "event": state.number})
        return
    _show(measured, batch)


def _left(answers: Mapping[str, Answer]) -> dict[str, int]:
    """Return how many pairs a person skipped and flagged, without probes."""
    kinds = Counter(one.kind for item, one in answers.items() if not is_probe(item))
    return {"skipped": kinds["skip"], "flagged": kinds["flag"]}


def _labels(batch: Batch, state: State) -> dict[str, list[Answer]]:
    """Return the labels of the batch by person, in the order in which they were given."""
    known = frozenset(batch.ids)
    said = {
        name: [one for item, one in own.items() if one.kind == "label" and item in known]
        for name, own in state.answers.items()
    }
    return {name: own for name, own in said.items() if own}


def _orders(pairs: Implied, table: LabelTable) -> list[list[int]]:
    """Return the rows that each annotator labelled, in the order in which they did."""
    place = {item: row for row, item in enumerate(ids_of(pairs.items))}
    return [
        [place[item] for item, one in pairs.state.answers[name].items() if one.kind == "label" and item in place]
        for name in table.annotators
    ]


def _tested(table: LabelTable, pairs: Implied) -> list[Anomaly]:
    """Return the tests of each annotator; of each ranking they take two answers, drawn by chance.

    The tests want labels that are independent of each other. The comparisons of one ranking are not.
    """
    orders = _orders(pairs, table)
    if pairs.group_N is None:
        return anomalies(table.strength_NA, table.left_NA, orders, missing=-9, seed=0)
    rng = np.random.default_rng(0)
    _, start_G, count_G = np.unique(pairs.group_N, return_index=True, return_counts=True)
    drawn_G = start_G + (rng.random(len(start_G)) * count_G).astype(int)  # pairs of one group follow each other
    row_of = {row: place for place, row in enumerate(drawn_G.tolist())}
    kept = [[row_of[row] for row in order if row in row_of] for order in orders]
    return anomalies(table.strength_NA[drawn_G], table.left_NA[drawn_G], kept, missing=-9, seed=0)


def _people(table: LabelTable, pairs: Implied, labels: Mapping[str, Sequence[Answer]]) -> JsonObject:
    labelled_NA = table.verdict_NA >= 0
    rest = against_the_rest(table.verdict_NA, cluster_N=pairs.group_N) if labelled_NA.any() else []
    used_NA = table.verdict_NA[labelled_NA.any(1)]
    accuracy_A = dawid_skene(used_NA, range(len(VERDICTS))).accuracy_A if (labelled_NA.sum(1) > 1).any() else None
    tested = _tested(table, pairs)
    people: JsonObject = {}
    for column, name in enumerate(table.annotators):
        people[name] = {
            "labels": len(labels[name]),
            "median_seconds": _median(table.seconds_NA[:, column]),
            "chose_left": _plain(shown_first(labels[name])),
            "with_the_rest": _plain(rest[column]),
            "accuracy": None if accuracy_A is None else float(accuracy_A[column]),
            "anomaly": {"votes": tested[column].votes, "p": tested[column].p, "side_p": tested[column].side_p},
            "look_at": _reasons(tested[column]),
        }
    return people


def _probes(results: ProbeResults | None) -> JsonObject:
    """Return what gold items and repeats say of a person; nothing for a person who labelled none."""
    if results is None:
        return {}
    sides = {"left": results.same_left, "right": results.same_right}
    return {"gold": _plain(results.accuracy), "consistency": _plain(results.consistency), "same_side_twice": sides}


def _reasons(anomaly: Anomaly) -> list[str]:
    """Return why somebody should look at a person's labels."""
    reasons = {"unlike the rest": anomaly.is_unlike_the_rest, "one side": anomaly.is_one_sided}
    return [reason for reason, holds in reasons.items() if holds]


def _median(seconds_N: NDArray[np.float64]) -> float | None:
    """Return the median of the times that are known; None without any."""
    known_N = seconds_N[~np.isnan(seconds_N)]
    return float(np.median(known_N)) if len(known_N) else None


def _plain(estimate: Estimate | None) -> JsonObject | None:
    return estimate.model_dump() if estimate is not None else None


def _show(measured: JsonObject, batch: Batch) -> None:
    noun = batch.noun
    beside = "".join(f", {measured[key]:,} {key}" for key in ("skipped", "flagged") if measured[key])
    if not measured["labels"]:
        print_line(f"nobody has labelled a {noun} yet{beside}")
        return
    agreement, alpha, ordinal = (
        measured[key] for key in ("agreement", "krippendorff_alpha", "krippendorff_alpha_ordinal")
    )
    people = counted(len(measured["people"]), "person", "people")
    print_line(f"{counted(measured['labels'], 'label')} of {people}{beside}")
    if batch.is_live:
        print_line("nobody else sees a person's dialogue: there is no agreement between people")
    elif agreement is None:
        print_line(f"no {noun} has two labels: set `overlap` or `labels_per_item` of the stage to measure agreement")
    else:
        print_line(f"equal verdicts: {_share(agreement)} of comparisons, on {counted(agreement['n'], noun)}")
        said = [
            f"{figure:.3f} ({level})"
            for level, figure in (("nominal", alpha), ("ordinal", ordinal))
            if figure is not None
        ]
        print_line(f"Krippendorff's alpha: {', '.join(said) or 'has no value: all labels are equal'}")
    if "kendall_tau_b" in measured:
        tau = measured["kendall_tau_b"]
        print_line(tau_line(Estimate.model_validate(tau) if tau else None))
        print_line("figures of people are those of each two answers of a ranking; the tests take one such pair of each")
    columns, figures = list(_PEOPLE), ["chose_left", "with_the_rest"]
    if "kendall_tau_b" in measured:
        columns[4] = Column("chose first", right=True)
    for key, title in (("gold", "gold"), ("consistency", "repeats")):
        if any(one.get(key) for one in measured["people"].values()):
            columns.insert(-1, Column(title, right=True))
            figures.append(key)
    counts = [key for key in ("skipped", "flagged") if measured[key]]
    columns[2:2] = [Column(key, right=True) for key in counts]
    rows = [
        [
            name,
            f"{one['labels']:,}",
            *(f"{one[key]:,}" for key in counts),
            "–" if one["median_seconds"] is None else f"{one['median_seconds']:.1f}",
            "–" if one["accuracy"] is None else f"{one['accuracy']:.0%}",
            *(_share(one.get(key)) for key in figures),
            ", ".join(one["look_at"]),
        ]
        for name, one in measured["people"].items()
    ]
    print_table(columns, rows)
    if measured["pairs"]:
        print_table(_PAIRS, [_pair_row(one) for one in measured["pairs"]])


def _pair_row(pair: JsonObject) -> list[str]:
    kappa = "–" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
    return [pair["first"], pair["second"], f"{pair['items']:,}", f"{pair['same']:.0%}", kappa]


def _share(estimate: JsonObject | None) -> str:
    if estimate is None:
        return "–"
    return f"{estimate['value']:.0%} [{estimate['low']:.0%}, {estimate['high']:.0%}]"
