"""The kind `grpo`: group relative policy optimisation."""
