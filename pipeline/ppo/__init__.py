"""Proximal policy optimisation for language models: rollouts, advantages, losses, guards, and the trainer.

`settings.py` has the words, `trainer.py` the whole algorithm in reading order; the others are its parts. It knows
nothing of recipes or of the store: `pipeline/stages/ppo.py` builds it from a stage's configuration.
"""
