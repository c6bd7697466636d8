"""Sentences that a user reads once: from `posttrain check`, or else from the trainer that finds the same."""

from __future__ import annotations

import logging

_TOLD: set[str] = set()


def mark_told(sentence: str) -> None:
    """Note that the user has been shown this."""
    _TOLD.add(sentence)


def warn_once(logger: logging.Logger, sentence: str) -> None:
    """Log a warning that this process has not shown before."""
    if sentence not in _TOLD:
        _TOLD.add(sentence)
        logger.warning(sentence)
