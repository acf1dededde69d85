"""Writes the table of the installed trainers' fields: `python -m pipeline.trainer_fields`."""

from pipeline.trainer_fields.installed import build_table, render
from pipeline.trainer_fields.table import TABLE

TABLE.write_text(render(build_table()), encoding="utf-8")
