"""Silence of the libraries while findings are collected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no chatter of the libraries between the findings."""
    level, bars, data_bars = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        datasets.is_progress_bar_enabled(),
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if data_bars:
            datasets.enable_progress_bar()
