"""Expands the short forms of `reward:`: one name, one mapping, or a list of them with weights.

    reward: rm                                        a reward model
    reward: {function: rewards.py:polite}             a Python function
    reward:                                           several, added up
      - {model: rm, weight: 1.0}
      - {function: rewards.py:short, weight: 0.2}

They are expanded to the fields of a configuration (`pipeline/rl/rewards/fields.py`): names of models, names of
functions, and one weight for each, models first. Every part keeps its file and line. `watch:` has the same forms
without weights.
"""

from __future__ import annotations

from pipeline.errors import Problem, listed, nearest
from pipeline.recipe.checking import shown
from pipeline.recipe.document import Node

KEYS = ("model", "function", "weight")


def unfold_rewards(body: Node, stage: str, key: str = "reward") -> tuple[Node, list[Problem]]:
    """Return a stage's body with `reward` (or `watch`) expanded, and its problems."""
    if key not in body.mapping or f"{key}_functions" in body.mapping or f"{key}_weights" in body.mapping:
        return body, []
    node = body.mapping[key]
    entries = node.value_list() or [node]
    problems: list[Problem] = []
    models: list[tuple[Node, Node]] = []
    functions: list[tuple[Node, Node]] = []
    for entry in entries:
        if isinstance(entry.value, str):
            models.append((entry, Node(1.0, entry.place)))
            continue
        entry_problems = _problems_of(entry, stage, key)
        problems += entry_problems
        if not entry_problems:
            weight = entry.mapping.get("weight", Node(1.0, entry.place))
            if "model" in entry.mapping:
                models.append((entry.mapping["model"], weight))
            else:
                functions.append((entry.mapping["function"], weight))
    fields = dict(body.mapping)
    fields[key] = Node([name for name, _ in models], node.place)
    if functions:
        fields[f"{key}_functions"] = Node([name for name, _ in functions], node.place)
    if key == "reward":
        fields["reward_weights"] = Node([weight for _, weight in (*models, *functions)], node.place)
    return Node(fields, body.place), problems


def _problems_of(entry: Node, stage: str, key: str) -> list[Problem]:
    expected = "a reward model's name, {model: NAME} or {function: FILE.py:NAME}"
    expected += ", each with an optional weight" if key == "reward" else ""
    keys = KEYS if key == "reward" else KEYS[:2]
    if not isinstance(entry.value, dict):
        return [Problem(f"{key} is {shown(entry.plain())}", expected, where=entry.place, stage=stage)]
    problems = [
        Problem(
            f"unknown key `{name}` in {key}", f"one of {listed(keys)}", nearest(str(name), keys), child.place, stage
        )
        for name, child in entry.mapping.items()
        if name not in keys
    ]
    if ("model" in entry.mapping) == ("function" in entry.mapping):
        statement = f"{key} names both a model and a function" if "model" in entry.mapping else f"{key} names nothing"
        problems.append(Problem(statement, expected, "one entry of a list for each", entry.place, stage))
    return problems
