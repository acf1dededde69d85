"""Human preferences: the pairs shown to annotators, their labels, and the agreement between annotators.

Owns the ledger of labels, the assignment of pairs, and the labelling app. Knows nothing of stages and training.
"""

from __future__ import annotations

from importlib.util import find_spec

from pipeline.errors import PipelineError, Problem, agreeing


def need(*modules: str) -> None:
    """Check that libraries of the extra `collect` are installed.

    Raises:
        PipelineError: a library is missing.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise PipelineError(
            Problem(
                f"{', '.join(missing)} {agreeing(len(missing), 'is', 'are')} not installed",
                "",
                "pip install 'trueup[collect]'",
            )
        )
