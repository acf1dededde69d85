"""Proximal policy optimisation for language models: rollouts, advantages, losses, guards, and the trainer.

`settings.py` has the fields of the recipe, `trainer.py` the algorithm in reading order; the other modules are its
parts. The package knows nothing of recipes or of the store: the `ppo` stage builds it from a stage's configuration.
"""
