"""The kind `dpo`: direct preference optimisation."""
