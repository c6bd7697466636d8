"""How many training rows an epoch can use: rows leave where batches and groups do not divide their number."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from posttrain.console import warn_once
from posttrain.errors import DataError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowUse:
    """Rows of an epoch.

    Args:
        what: "training rows", "demonstrations".
        rows: there are.
        used: in one epoch.
        unit: what takes how many at once.
        is_shuffled: whether every epoch has an order of its own.
    """

    what: str
    rows: int
    used: int
    unit: str
    is_shuffled: bool = True

    @classmethod
    def of_whole(cls, what: str, rows: int, size: int, *, unit: str, is_shuffled: bool) -> RowUse:
        """Of an order that is cut into whole pieces of `size`; what is left at the end of an epoch is left out."""
        return cls(what, rows, rows // size * size, unit, is_shuffled)

    @property
    def sentence(self) -> str | None:
        """For the user; None where every row is used."""
        rest = self.rows - self.used
        if not rest:
            return None
        left = f"the {rest} left over {'is' if rest == 1 else 'are'} others in every epoch"
        if not self.is_shuffled:
            left = f"the last {rest} {'is' if rest == 1 else 'are'} never used, since the order stays the same"
        return f"an epoch uses {self.used} of {self.rows} {self.what}: {self.unit}, and {left}"

    def record(self) -> dict[str, Any]:
        """For `run.json`."""
        return {name: value for name, value in asdict(self).items() if name != "what"}


def prompt_use(rows: int, *, prompts: int, num_generations: int, is_shuffled: bool) -> RowUse:
    """Of a policy run whose generation batch holds `prompts` prompts."""
    unit = f"a generation batch takes {prompts} prompts of {num_generations} completions each"
    return RowUse.of_whole("training rows", rows, prompts, unit=unit, is_shuffled=is_shuffled)


def batch_use(rows: int, *, size: int, drops_last: bool, is_shuffled: bool) -> RowUse:
    """Of a supervised run whose micro-batch of all ranks holds `size` rows."""
    unit = f"trainer.dataloader_drop_last leaves out what does not fill a batch of {size} rows"
    return RowUse.of_whole("training rows", rows, size if drops_last else 1, unit=unit, is_shuffled=is_shuffled)


def demonstration_use(rows: int, *, size: int, is_shuffled: bool) -> RowUse:
    """Of the supervised steps of a method that alternates; each takes `size` demonstrations."""
    unit = f"a supervised step takes {size}"
    return RowUse.of_whole("demonstrations", rows, size, unit=unit, is_shuffled=is_shuffled)


class CountedRows:
    """The side of every trainer that says how many rows it uses."""

    args: Any
    train_dataset: Any

    def row_use(self) -> list[RowUse]:
        """Rows of an epoch; empty for streams, and where shares of groups decide what is drawn."""
        if not hasattr(self.train_dataset, "__len__"):
            return []
        args = self.args
        return [
            batch_use(
                len(self.train_dataset),
                size=args.per_device_train_batch_size * args.world_size,
                drops_last=args.dataloader_drop_last,
                is_shuffled=args.train_sampling_strategy != "sequential",
            )
        ]

    def tell_row_use(self) -> None:
        """Warn of rows that an epoch leaves out; not where `posttrain check` has told it.

        Raises:
            DataError: there is no row to train on.
        """
        if hasattr(self.train_dataset, "__len__") and len(self.train_dataset) == 0:
            raise DataError(
                "no training row is left, so no step would be made",
                where="train_dataset",
                fix="Give rows, or raise the limits of length that left them out",
            )
        for use in self.row_use():
            if use.sentence is not None:
                warn_once(_logger, use.sentence)


def report_left_out(before: Any, after: Any, *, name: str, is_packed: bool) -> Any:
    """`after`, with a warning of rows that upstream's preparation dropped; packed rows cannot be counted."""
    if not is_packed and hasattr(before, "__len__") and hasattr(after, "__len__") and len(after) < len(before):
        lost = len(before) - len(after)
        warn_once(_logger, f"left out {lost} of {len(before)} {name} rows: none of their tokens would be trained")
    return after
