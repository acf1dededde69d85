"""The `trueup` command: verbs that parse, call and print; what they call lives in the rows below.

Importing this package imports no torch, no pydantic and no rich: every verb imports what it needs when it is called,
so that `trueup --help` answers at once.
"""

from pipeline.cli import checkpoints, collect, evaluation, jobs, machine, recipes, store
from pipeline.cli.app import app, main

__all__ = ["app", "checkpoints", "collect", "evaluation", "jobs", "machine", "main", "recipes", "store"]
