"""What GRPO and RLOO share."""
