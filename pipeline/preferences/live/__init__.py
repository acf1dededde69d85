"""Live dialogues: a person talks with two blinded models at once and chooses an answer at each turn.

Owns what a dialogue is (`dialogues.py`), what a person may do in one (`conversations.py`), when the models answer
(`answering.py`) and the HTTP API of the page (`api.py`). Knows nothing of how a model is loaded and sampled.

References: Bai et al. 2022, arXiv:2204.05862, section 2 (dialogues of people with two models, a choice at each turn);
Chiang et al. 2024, arXiv:2403.04132, section 3 (two anonymous models answer side by side).
"""
