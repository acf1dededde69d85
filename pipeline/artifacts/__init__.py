"""The store of artifacts: what stages wrote, where it came from, and how it travels."""

from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.store import Artifact, Store, WorkArea

__all__ = ["Artifact", "Manifest", "Store", "WorkArea"]
