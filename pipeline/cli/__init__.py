"""The `trueup` command: each verb parses its arguments, calls another package and prints the result.

Importing this package imports no torch, no pydantic, no rich and no verb: the module of a verb is imported when the
verb is called, so that `trueup --help` answers at once. `pipeline.cli.command_table` lists the verbs and their modules.
"""

from pipeline.cli.app import app, main

__all__ = ["app", "main"]
