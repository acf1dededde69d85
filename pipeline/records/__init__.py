"""Reads data sources, checks every row, converts rows to the shape a stage takes, and hashes their content.

Owns file formats, row formats, the held-out split and the content digest. Knows nothing of recipes beyond the fields of
a `Source`, nothing of tokenizers, and imports no torch.
"""

from pipeline.records.digests import DataDigest, digest
from pipeline.records.loading import LoadedRows, load
from pipeline.records.sources import Source

__all__ = ["DataDigest", "LoadedRows", "Source", "digest", "load"]
