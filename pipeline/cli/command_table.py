"""The table of the verbs: the name, topic, module and summary of each.

Owns what `trueup --help` and the completion of verbs need, so that both answer without importing a verb's module.
Knows nothing of options and of what a verb does.
"""

from __future__ import annotations

from typing import NamedTuple

RECIPES, PEOPLE, STORE, MODELS, MACHINE = "Recipes", "Preferences", "Store", "Checkpoints", "Set-up"


class VerbEntry(NamedTuple):
    """One verb of the command.

    Attributes:
        name: what a user types.
        topic: heading under which `--help` lists the verb.
        module: module of `pipeline.cli.verbs` with the function of the verb; it is imported when the verb is called.
        summary: first line of the function's docstring; a test compares the two.
        is_hidden: whether `--help` and the reference leave it out.
    """

    name: str
    topic: str
    module: str
    summary: str
    is_hidden: bool = False

    @property
    def function(self) -> str:
        """Name of the verb's function in its module."""
        return self.name.replace("-", "_")


_ENTRIES = (
    VerbEntry("run", RECIPES, "run", "Run what a recipe still misses; resumes what was cut off."),
    VerbEntry(
        "plan",
        RECIPES,
        "plan",
        "Show what would run and why, and what each stage needs: memory, hours, cost; runs nothing.",
    ),
    VerbEntry("check", RECIPES, "check", "Validate a recipe and its data; tells every problem at once."),
    VerbEntry("new", RECIPES, "new", "Write a starter recipe, or copy an example with its data."),
    VerbEntry("schema", RECIPES, "schema", "Print the JSON schema of recipes, for editors."),
    VerbEntry(
        "cancel", RECIPES, "jobs", "Cancel the Slurm jobs of a recipe; what they did is kept, and `run` resumes it."
    ),
    VerbEntry("stage-job", RECIPES, "jobs", "Run one stage inside a job of a cluster.", is_hidden=True),
    VerbEntry("chat", MODELS, "checkpoints", "Talk to a checkpoint; /help inside lists what it understands."),
    VerbEntry("generate", MODELS, "checkpoints", "Answer one prompt with a checkpoint."),
    VerbEntry("evaluate", MODELS, "evaluate", "Compare checkpoints on prompts; the report is an artifact."),
    VerbEntry("compare", MODELS, "compare", "Compare two models of a report, or two reports, with intervals."),
    VerbEntry("ls", STORE, "store", "List artifacts."),
    VerbEntry("show", STORE, "inspection", "Show all that is known of an artifact, or a report's table."),
    VerbEntry("lineage", STORE, "inspection", "Show what an artifact was made from, down to the data."),
    VerbEntry("diff", STORE, "inspection", "Show how two artifacts differ in settings, data and results."),
    VerbEntry("tag", STORE, "store", "Give an artifact a tag, remove one, or list them."),
    VerbEntry("push", STORE, "transfers", "Copy artifacts, and what they were made from, elsewhere."),
    VerbEntry("pull", STORE, "transfers", "Copy artifacts from elsewhere into the store."),
    VerbEntry("verify", STORE, "store", "Hash every file again; exit 1 when one is damaged."),
    VerbEntry("gc", STORE, "store", "Remove artifacts that nothing needs any more; asks first."),
    VerbEntry(
        "collect",
        PEOPLE,
        "collect",
        "Open the labelling app of a stage until Ctrl-C; every annotator has a link of their own.",
    ),
    VerbEntry(
        "labels",
        PEOPLE,
        "collect",
        "Show how far a collection is and how people agree; export, import, verify labels; drop pairs, close; people.",
    ),
    VerbEntry("doctor", MACHINE, "machine", "Check the environment; exit 1 when something needed is missing."),
    VerbEntry("docs", MACHINE, "machine", "Write the reference of all verbs as Markdown.", is_hidden=True),
)
"""Topics and verbs are in the order in which a new user needs them."""

VERBS = {entry.name: entry for entry in _ENTRIES}


def verbs_by_topic() -> dict[str, list[VerbEntry]]:
    """Return the verbs that are not hidden, by topic."""
    topics: dict[str, list[VerbEntry]] = {}
    for entry in VERBS.values():
        if not entry.is_hidden:
            topics.setdefault(entry.topic, []).append(entry)
    return topics
