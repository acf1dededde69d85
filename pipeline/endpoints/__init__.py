"""Servers with OpenAI's chat completions: their settings, requests, retries, budget, and the cache of their replies.

A judge, a stage that samples and the labelling app ask by this. What a reply means is theirs to say.
"""
