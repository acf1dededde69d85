"""The verb `evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.options import JsonOption, RemoteCodeOption, StoreOption, complete_ref, open_store
from pipeline.cli.reports import Evaluation, evaluation_recipe
from pipeline.cli.verbs.run import run_and_print
from pipeline.plan import make_plan
from pipeline.stages import load_all


def evaluate(
    refs: Annotated[
        list[str],
        typer.Argument(metavar="REF", help="Checkpoints: refs, folders or hub ids.", autocompletion=complete_ref),
    ],
    baseline: Annotated[
        str, typer.Option("--baseline", metavar="REF", help="What they are compared with.", autocompletion=complete_ref)
    ],
    data: Annotated[list[str], typer.Option("--data", metavar="FILE", help="Prompts to ask; repeatable.")],
    reward: Annotated[
        str | None,
        typer.Option("--reward", metavar="REF", help="Reward model to judge.", autocompletion=complete_ref),
    ] = None,
    gold: Annotated[
        str | None, typer.Option("--gold", metavar="FILE.py:NAME", help="Python function that scores answers.")
    ] = None,
    correct: Annotated[
        str | None, typer.Option("--correct", metavar="FILE.py:NAME", help="Python function that says which are right.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Ask a sample of N prompts, every task with its share.")
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="Of sampling.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", help="Longest answer.")] = 128,
    seed: Annotated[int, typer.Option("--seed", help="Of sampling and the intervals.")] = 0,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the report.")] = "evaluation",
    trust_remote_code: RemoteCodeOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare checkpoints on prompts; the report is an artifact.

    With --limit it is on a sample, which it says, and `trueup compare` goes on taking the one on all prompts.
    """
    load_all()
    asked = Evaluation(
        name=name,
        models=tuple(dict.fromkeys([baseline, *refs])),
        baseline=baseline,
        data=tuple(data),
        reward=reward,
        gold=gold,
        correct=correct,
        limit=limit,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        trust_remote_code=trust_remote_code,
    )
    artifact_store = open_store(store)
    with evaluation_recipe(asked) as recipe:
        run_and_print(make_plan(recipe, artifact_store), artifact_store, None, as_json=as_json)
