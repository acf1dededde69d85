"""The plan: a recipe's stages in order, each with its fingerprint and whether it must run.

Owns what is decided before anything runs. Imports no torch. Knows nothing of how a stage works or is run.
"""

from pipeline.plan.fingerprint import digest_of
from pipeline.plan.model import FORCED, Plan, PlannedData, PlannedInput, PlannedStage
from pipeline.plan.planning import make_plan, survey

__all__ = ["FORCED", "Plan", "PlannedData", "PlannedInput", "PlannedStage", "digest_of", "make_plan", "survey"]
