"""Labels in the formats of other tools: `export.py` writes them, `importing.py` reads them."""
