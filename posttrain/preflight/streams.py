"""Every row of the streams that a run would draw from, read and encoded once before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from posttrain.config.run_config import RunConfig
from posttrain.config.verdict import template_variables
from posttrain.errors import DataError, PosttrainError
from posttrain.preflight.data import Rows, rows_text
from posttrain.preflight.report import CheckReport
from posttrain.seam.supervised.stream_rows import EncodedStreams

_TOLD_EVERY = 5.0  # seconds
Say = Callable[[str], None]


def read_all(cfg: RunConfig, rows: Rows | None, tokenizer: Any, report: CheckReport, *, say: Say | None) -> None:
    """Add to a report how many rows every stream has, or which of them would stop the run.

    Args:
        cfg: the run. rows: of training; nothing is done where they are no streams. tokenizer: of the run, if there is
            one. say: told now and then how far it is; None = nothing is read.
    """
    if say is None or rows is None or rows.streams is None or tokenizer is None:
        return
    for finding in stream_findings(cfg, rows.streams, tokenizer, say=say):
        if isinstance(finding, str):
            report.facts.append(finding)
        else:
            report.errors.append(finding)


def stream_findings(cfg: RunConfig, streams: Any, tokenizer: Any, *, say: Say) -> Iterator[PosttrainError | str]:
    """What is wrong with the rows of each stream; of one without faults the number of rows, as text.

    Args:
        cfg: the run. streams: `RowStreams`. tokenizer: of the run. say: as in `read_all`.
    """
    streams.max_prompt_length = cfg.data.max_prompt_length
    column = str(cfg.method.demonstration_column)
    encoder = EncodedStreams(
        streams, tokenizer, column=column, max_length=cfg.trainer.max_length, variables=template_variables(cfg)
    )
    for group, stream in enumerate(streams.streams):
        faults: dict[int, DataError] = {}
        place, told = -1, time.monotonic()
        try:
            for place, row in stream.every():
                try:
                    if isinstance(row, DataError):
                        raise row
                    encoder.encoded(row, where=streams.where(streams.number(group, place)))
                except DataError as error:
                    faults[place] = error
                if time.monotonic() - told > _TOLD_EVERY:
                    say(f"{stream.name}: {place + 1} rows read")
                    told = time.monotonic()
        except DataError as error:  # the rest cannot be read
            yield error
        if faults:
            first = faults[min(faults)]
            what = f"{len(faults)} of {place + 1} rows would stop the run ({rows_text(faults)}): {first.what}"
            yield DataError(what, where=cfg.where("data", "train"), got=stream.name, fix=first.fix)
        else:
            yield f"{stream.name}: all {place + 1} rows can be trained"
