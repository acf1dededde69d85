"""The kind `ppo`: proximal policy optimisation."""
