"""The recipe: one YAML file that describes a chain of stages.

Owns reading it, checking all of it at once, and its types. Knows nothing of the store or of running stages.
"""

from pipeline.recipe.code import CodeSource, find_code, load_function
from pipeline.recipe.data_source import DataSource
from pipeline.recipe.groups import once_per_group
from pipeline.recipe.json_schema import json_schema
from pipeline.recipe.loading import by_line, inspect, load
from pipeline.recipe.schema import Compute, Recipe, StageSpec

__all__ = [
    "CodeSource",
    "Compute",
    "DataSource",
    "Recipe",
    "StageSpec",
    "by_line",
    "find_code",
    "inspect",
    "json_schema",
    "load",
    "load_function",
    "once_per_group",
]
