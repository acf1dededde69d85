"""Samples responses: episodes, and the engines that generate them."""
