"""Judges of pairs of responses: a server that speaks OpenAI's chat completions, and what every judge shares.

Owns pairs, prompts, verdicts, the cache of replies, and a judge's figures. Knows nothing of stages.
"""
