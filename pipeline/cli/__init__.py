"""The `trueup` command: each verb parses its arguments, calls another package and prints the result.

Importing this package imports no torch, no pydantic and no rich: every verb imports what it needs when it is called,
so that `trueup --help` answers at once.
"""

from pipeline.cli import checkpoints, collect, evaluation, jobs, machine, recipes, store
from pipeline.cli.app import app, main

__all__ = ["app", "checkpoints", "collect", "evaluation", "jobs", "machine", "main", "recipes", "store"]
