"""Preferences of people: what they are shown, what they said, and how far they agree.

Owns the ledger of labels, who is given which pair, and the labelling app. Knows nothing of stages and training.
"""

from __future__ import annotations

from importlib.util import find_spec

from pipeline.errors import PipelineError, Problem


def need(*modules: str) -> None:
    """Check that libraries of the extra `collect` are installed.

    Raises:
        PipelineError: one is not.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise PipelineError(Problem(f"{', '.join(missing)} is not installed", "", "pip install 'trueup[collect]'"))
