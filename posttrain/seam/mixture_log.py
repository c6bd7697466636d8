"""What training has taken of each source of a mixture so far: `mixture/<source>_rows` and `_tokens`, and their shares.

Totals over the whole run, interruptions included, and over all ranks. Supervised methods count the rows they train and
their trained tokens; policy methods count prompts drawn and tokens generated for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from datasets import Dataset

from posttrain.data.mixture import SOURCE_COLUMN
from posttrain.errors import SupportError
from posttrain.seam.row_numbers import row_spans


class MixtureLog:
    """Counts by source. `sources` holds the source of every training row, `names` each source once, in order.

    Every rank must call `count_batches` or `count_rollouts` at the same steps: both sum over ranks.
    """

    def __init__(self, sources: list[str]):
        self.sources = sources
        self.names = sorted(set(sources))
        self._place = {name: place for place, name in enumerate(self.names)}

    @classmethod
    def of(cls, dataset: Any, *, packing: bool = False) -> MixtureLog | None:
        """For a mixture's rows; None for any other data set.

        Raises:
            SupportError: packed rows, which hold tokens of several sources.
        """
        if not isinstance(dataset, Dataset) or SOURCE_COLUMN not in dataset.column_names:
            return None
        if packing:
            raise SupportError(
                "a packed row holds several sources, whose shares could not be told",
                where="trainer.packing",
                got=True,
                fix="Set it to false, or train on one source",
            )
        return cls(list(dataset[SOURCE_COLUMN]))

    def count_batches(self, trainer: Any, batches: Iterable[dict[str, Any]]) -> None:
        """Add the numbered micro-batches of an optimizer step; rows without a trained token are left out."""
        found = []
        for batch in batches:
            flat = batch["labels"].reshape(-1) != -100
            for place, span in row_spans(batch):
                trained = int(flat[span].sum())
                found.append((self.sources[place], float(trained > 0), trained))
        self._add(trainer, found)

    def count_rollouts(self, trainer: Any, rows: Iterable[dict[str, Any]], lengths: Iterable[int]) -> None:
        """Add the rows of a generation batch, each of which is one completion of its prompt, with their lengths.

        A method that makes its own prompts may have rows without a source; they are not counted.
        """
        share = 1.0 / trainer.num_generations
        pairs = zip(rows, lengths, strict=True)
        self._add(trainer, [(row[SOURCE_COLUMN], share, int(n)) for row, n in pairs if SOURCE_COLUMN in row])

    def _add(self, trainer: Any, found: Iterable[tuple[str, float, int]]) -> None:
        device = trainer.accelerator.device
        local = torch.zeros(len(self.names), 2, dtype=torch.float64 if device.type == "cpu" else torch.float32)
        for name, rows, tokens in found:
            local[self._place[name]] += torch.tensor([rows, tokens], dtype=local.dtype)
        added = trainer.accelerator.reduce(local.to(device), reduction="sum").tolist()
        for quantity, place in (("rows", 0), ("tokens", 1)):
            totals = [
                trainer.tally(f"mixture/{name}_{quantity}", numbers[place])
                for name, numbers in zip(self.names, added, strict=True)
            ]
            whole = sum(totals)
            for name, total in zip(self.names, totals, strict=True):
                share = total / whole if whole else 0.0
                trainer.show(f"mixture/{name}_{quantity}_fraction", share)
