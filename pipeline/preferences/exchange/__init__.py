"""Labels in the formats of other tools: `export.py` writes, `reading.py` reads, `importing.py` finds the pairs."""
