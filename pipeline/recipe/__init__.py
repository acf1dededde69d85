"""The recipe: one YAML file that says everything about a chain.

Owns reading it, checking all of it at once, and the types it becomes. Knows nothing of the store or of running.
"""

from pipeline.recipe.schema import Compute, DataSource, Recipe, StageSpec

__all__ = ["Compute", "DataSource", "Recipe", "StageSpec"]
