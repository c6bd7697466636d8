"""Losses as functions of log-probabilities: per token, not reduced; every normaliser lives in `reductions.py`."""
