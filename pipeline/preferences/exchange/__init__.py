"""Labels in the formats of other tools: `export.py` writes them, `reading.py` reads them, `importing.py` finds their pairs."""
