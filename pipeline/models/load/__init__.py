"""Loads models: pretrained files, random weights, deferred weights, adapters, quantised files, kernels."""
