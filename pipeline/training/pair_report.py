"""Report on held-out pairs: scores both answers of each pair and writes the reward card.

Owns the scores by row in `held_out_scores.jsonl` and what the card takes from the rows. Knows nothing of what scores:
a scorer is a function of token ids, so a reward model and the log-probabilities of a policy have the same report.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from pipeline.errors import counted
from pipeline.evaluation.reward_card.card import build_card, write_card
from pipeline.models.prompted_response import PromptedResponse
from pipeline.plain_data import Row
from pipeline.stage import StageContext
from pipeline.training.data.encoding import EncodedRow, EncodedRows
from pipeline.training.report_columns import ReportColumns

SIDES = ("chosen", "rejected")

Scorer = Callable[[Sequence[PromptedResponse]], list[float]]
"""Returns one finite score per response, in their order; it is called once for each side of the pairs."""


def full_sequences(encoded: EncodedRows, rows: Sequence[Row]) -> list[EncodedRow]:
    """Return encoded pairs with the prompt's tokens before those of each response, each with its row.

    Args:
        encoded: pairs as `encode_pairs` returns them.
        rows: the rows that were encoded.
    """
    return [
        {
            "chosen_ids": [*one["prompt_ids"], *one["chosen_ids"]],
            "rejected_ids": [*one["prompt_ids"], *one["rejected_ids"]],
            "row": rows[i],
            "prompt_tokens": len(one["prompt_ids"]),
        }
        for i, one in zip(encoded.kept, encoded.rows, strict=True)
    ]


def report_on_pairs(
    ctx: StageContext, held_out: Sequence[EncodedRow], scorer: Scorer, columns: ReportColumns
) -> dict[str, float]:
    """Score held-out pairs, and write `held_out_scores.jsonl` and the reward card into the stage's artifact.

    Args:
        ctx: the stage's context.
        held_out: pairs as `full_sequences` returns them; at least one.
        scorer: scores responses.
        columns: columns that the report reads.

    Returns:
        The card's headline figures, for the manifest.

    Raises:
        PipelineError: a score is not finite.
    """
    ctx.phase(f"scoring {counted(len(held_out), 'held-out pair')}")
    chosen = [PromptedResponse(row["chosen_ids"], row["prompt_tokens"]) for row in held_out]
    rejected = [PromptedResponse(row["rejected_ids"], row["prompt_tokens"]) for row in held_out]
    scores = {"chosen": scorer(chosen), "rejected": scorer(rejected)}
    rows = [row["row"] for row in held_out]
    gold = _gold_of(rows)
    with (ctx.out / "held_out_scores.jsonl").open("w", encoding="utf-8") as file:
        for i, row in enumerate(rows):
            shown = {"prompt": row["prompt"], **{side: row[side] for side in SIDES}}
            shown |= {f"{side}_score": round(scores[side][i], 6) for side in SIDES}
            file.write(json.dumps(shown, ensure_ascii=False, sort_keys=True) + "\n")
    card = build_card(
        chosen=scores["chosen"],
        rejected=scores["rejected"],
        chosen_lengths=[len(one.response_ids) for one in chosen],
        rejected_lengths=[len(one.response_ids) for one in rejected],
        groups=columns.groups(rows),
        properties=columns.properties(rows),
        gold_chosen=gold.get("chosen"),
        gold_rejected=gold.get("rejected"),
        seed=ctx.seed,
    )
    return write_card(card, ctx.out)


def _gold_of(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Return the true scores (`gold_chosen`, `gold_rejected`) by side; empty unless every row has both."""
    if not all(row.get(f"gold_{side}") is not None for row in rows for side in SIDES):
        return {}
    return {side: [float(row[f"gold_{side}"]) for row in rows] for side in SIDES}
