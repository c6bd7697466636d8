"""Rows to forget, rows to retain and other answers: what goes into one batch together.

The partner of a row follows from (seed, epoch, place of the row), and another answer from (seed, place), so that any
split into micro-batches, any number of processes and a resumed run see the same pairs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from posttrain.data.demonstrations import encode_row, encode_rows
from posttrain.data.rendering import template_inputs
from posttrain.errors import ConfigError, DataError
from posttrain.seam.groups.log import GROUP_IDS
from posttrain.seam.groups.row_index import ROW_INDEX

if TYPE_CHECKING:
    from posttrain.methods.unlearning_paths.config import UnlearnConfig

FORGET, RETAIN, ALTERNATE = 0, 1, 2
PAIRS = "pairs"
IDK_RESPONSES = (
    "I do not know.",
    "I have no information about that.",
    "That is something I cannot tell you.",
    "I am not sure about that.",
    "I am afraid I do not know the answer.",
)


def check_rows(args: UnlearnConfig, forget: Any, retain: Any) -> None:
    """What can be known to be wrong from settings and rows alone.

    Raises:
        ConfigError: rows to retain that are not read, or read and not there. DataError: an empty set, rows in both, or
        a missing column of other answers.
    """
    if retain is not None and not args.retain_weight:
        raise ConfigError(
            "rows to retain are given, and a loss on the rows to forget alone would not read them",
            where="data.retain",
            fix=f"Remove it, or set method.retain_weight above 0 (it is {args.retain_weight})",
        )
    if retain is None and args.retain_weight:
        raise ConfigError(
            "the retain loss has no rows",
            where="data.retain",
            got=None,
            fix=f"Name them, or set method.retain_weight to 0 (it is {args.retain_weight})",
        )
    for name, rows in (("train", forget), ("retain", retain)):
        if rows is not None and not len(rows):
            raise DataError("there are no rows", where=f"data.{name}", fix="Check split, limit and file")
    if args.unlearn_loss == "dpo" and args.alternate_column not in forget.column_names:
        raise DataError(
            "dpo needs an answer to be given instead",
            where="method.alternate_column",
            got=args.alternate_column,
            allowed=f"columns: {', '.join(forget.column_names)}",
            fix="Name its column, or use idkdpo",
        )
    if args.unlearn_loss == "dpo":
        texts = forget[args.alternate_column]
        empty = [row for row, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
        if empty:
            where = f"train row {empty[0]}, column {args.alternate_column!r}"
            told = f"{len(empty)} of {len(forget)} rows"
            raise DataError("the answer to be given instead is empty", where=where, got=told, fix="Write one")
    given = args.idk_responses
    if args.unlearn_loss == "idkdpo" and given is not None and not (given and all(text.strip() for text in given)):
        raise ConfigError("an answer is empty", where="method.idk_responses", got=given)
    if retain is not None and not args.allow_overlap:
        _refuse_overlap(args, forget, retain)


def _refuse_overlap(args: UnlearnConfig, forget: Any, retain: Any) -> None:
    column = args.demonstration_column

    def keys(rows: Any) -> list[str]:
        others = rows[column] if column in rows.column_names else [""] * len(rows)
        return [json.dumps([p, s], sort_keys=True) for p, s in zip(rows["prompt"], others, strict=True)]

    known = set(keys(retain))
    shared = [index for index, key in enumerate(keys(forget)) if key in known]
    if shared:
        shown = ", ".join(str(index) for index in shared[:5])
        raise DataError(
            "rows to forget are among the rows to retain",
            where="data.retain",
            got=f"{len(shared)} of {len(known)} rows; rows to forget {shown}{' ...' * (len(shared) > 5)}",
            fix="Remove them, or set method.allow_overlap: true",
        )


@dataclass
class Partners:
    """Rows of the other kind, and the other answers of every row to forget, as token ids and labels.

    Attributes:
        anchors_forget: whether the rows of the data loader are those to forget.
        others: rows that are drawn; empty where none is read.
        alternates: (ids, labels) by row to forget; empty where none is read.
        seed: of the draws.
    """

    anchors_forget: bool
    others: Sequence[tuple[list[int], list[int]]]
    alternates: Sequence[tuple[list[int], list[int]]]
    seed: int

    def drawn(self, place: int, epoch: int) -> int | None:
        """Number of the partner of a row in an epoch; None where there are no partners."""
        if not self.others:
            return None
        return int(np.random.default_rng([self.seed, epoch, place]).integers(len(self.others)))

    def note(self, batch: dict[str, Any], epoch: int) -> None:
        """Write down who belongs to whom while the batch still has its rows' places."""
        batch[PAIRS] = [(place, self.drawn(place, epoch)) for place in batch[ROW_INDEX]]

    def join(self, batch: dict[str, Any], *, pad_id: int) -> Tensor:
        """Put partners and other answers into the batch, after its own rows.

        Adds `role` (N,): `FORGET`, `RETAIN` or `ALTERNATE`. The k-th other answer belongs to the k-th row to forget.
        A row that has no labels left, because it only fills up an epoch, gets partners without labels.

        Returns:
            (F,) numbers of the rows to forget, in the order of the batch.
        """
        pairs: list[tuple[int, int | None]] = batch.pop(PAIRS)
        batch.pop(GROUP_IDS, None)  # of the batch's own rows alone
        live = (batch["labels"] != -100).any(dim=1).tolist()
        own, other = (FORGET, RETAIN) if self.anchors_forget else (RETAIN, FORGET)
        added: list[tuple[list[int], list[int]]] = []
        roles = [own] * len(pairs)
        for (_, drawn), is_live in zip(pairs, live, strict=True):
            if drawn is not None:
                added.append(_kept(self.others[drawn], is_live))
                roles.append(other)
        forgotten = [place if self.anchors_forget else int(drawn or 0) for place, drawn in pairs]
        if self.alternates:
            added += [_kept(self.alternates[row], alive) for row, alive in zip(forgotten, live, strict=True)]
            roles += [ALTERNATE] * len(forgotten)
        _append(batch, added, pad_id=pad_id)
        batch["role"] = torch.tensor(roles, device=batch["labels"].device)
        return torch.tensor(forgotten)


def partners(args: UnlearnConfig, tokenizer: Any, forget: Dataset, retain: Dataset | None) -> Partners:
    """Encode what is drawn beside the rows of the data loader; the rows have passed `check_rows`."""
    anchors_forget = args.anchor == "forget"
    drawn = retain if anchors_forget else forget
    others = [] if drawn is None else _encoded(drawn, tokenizer, args)
    return Partners(anchors_forget, others, other_answers(args, tokenizer, forget), args.unlearn_seed)


def other_answers(args: UnlearnConfig, tokenizer: Any, forget: Any) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of the answer that is to be given instead, by row to forget; empty where the loss reads none.

    Raises:
        DataError: prompt and answer are too long; names the row.
    """
    found: list[tuple[list[int], list[int]]] = []
    if args.unlearn_loss not in ("dpo", "idkdpo"):
        return found
    for place, row in enumerate(forget):
        text = row[args.alternate_column] if args.unlearn_loss == "dpo" else _idk(args, place)
        inputs = template_inputs(row, args.chat_template_kwargs)
        given, learnt = encode_row(tokenizer, row["prompt"], text, column=args.alternate_column, **inputs)
        if args.max_length is not None and len(given) + len(learnt) > args.max_length:
            raise DataError(
                "prompt and the answer to be given instead are longer than a row may be",
                where=f"train row {place}",
                got=f"{len(given)} + {len(learnt)} tokens",
                allowed=f"at most {args.max_length} (trainer.max_length)",
                fix="Raise trainer.max_length, or shorten the answer",
            )
        found.append((given + learnt, [-100] * len(given) + learnt))
    return found


def _idk(args: UnlearnConfig, place: int) -> str:
    known = list(args.idk_responses or IDK_RESPONSES)
    return known[int(np.random.default_rng([args.unlearn_seed, place]).integers(len(known)))]


def _encoded(rows: Dataset, tokenizer: Any, args: UnlearnConfig) -> list[tuple[list[int], list[int]]]:
    found = encode_rows(
        rows,
        tokenizer,
        column=args.demonstration_column,
        max_length=args.max_length,
        variables=args.chat_template_kwargs,
    )
    return list(zip(found["input_ids"], found["labels"], strict=True))


def _kept(row: tuple[list[int], list[int]], is_live: bool) -> tuple[list[int], list[int]]:
    ids, labels = row
    return ids, labels if is_live else [-100] * len(labels)


def _append(batch: dict[str, Any], rows: Sequence[tuple[list[int], list[int]]], *, pad_id: int) -> None:
    """Add rows to a padded batch, and widen it where they are longer."""
    width = max([batch["input_ids"].size(1), *(len(ids) for ids, _ in rows)])
    columns = {
        "input_ids": (pad_id, [ids for ids, _ in rows]),
        "labels": (-100, [labels for _, labels in rows]),
        "attention_mask": (0, [[1] * len(ids) for ids, _ in rows]),
    }
    for name, (fill, values) in columns.items():
        own = batch[name]
        own = torch.nn.functional.pad(own, (0, width - own.size(1)), value=fill)
        more = [torch.tensor([*value, *[fill] * (width - len(value))]) for value in values]
        batch[name] = torch.cat([own, torch.stack(more).to(own)]) if more else own
