"""The artifact store: the outputs of stages, their provenance, and their transfer between stores."""

from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.store import Artifact, Store, WorkArea

__all__ = ["Artifact", "Manifest", "Store", "WorkArea"]
