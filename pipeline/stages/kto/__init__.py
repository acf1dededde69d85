"""The kind `kto`: Kahneman-Tversky optimisation."""
