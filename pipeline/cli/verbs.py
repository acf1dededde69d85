"""Imports the modules of all verbs, which add themselves to the application when they are imported."""

from pipeline.cli import checkpoints, collect, evaluation, jobs, machine, recipes, store
from pipeline.cli.app import app, run

__all__ = ["app", "checkpoints", "collect", "evaluation", "jobs", "machine", "recipes", "run", "store"]
