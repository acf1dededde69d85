"""Generates text: decoding loops, the choice of the next token, chat sessions."""
