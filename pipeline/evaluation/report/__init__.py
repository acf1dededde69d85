"""The report of an evaluation: its records, page, tables and figures."""
