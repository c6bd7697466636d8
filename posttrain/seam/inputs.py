"""What a trainer refuses of its inputs before it is built."""

from __future__ import annotations

from typing import Any

from posttrain.data.names import refuse_taken_names
from posttrain.models.template_clock import guard_clock


def check_inputs(dataset: Any, processing_class: Any) -> None:
    """Refuse columns whose names are taken, and from now on templates that read the clock.

    Args:
        dataset, processing_class: of a trainer that learns from completions.

    Raises:
        DataError: a column whose name means something to the libraries below.
    """
    refuse_taken_names(dataset, processing_class)
    guard_clock()
