"""The kind `sft`: instruction tuning."""
