"""A corpus as one memory-mapped array of tokens with the entropy of each, on disk.

A folder holds `tokens.npy` (int32, documents one after another), `starts.npy` (int64, where each begins, and the end),
`entropy.npy` (float32 nats, NaN where nothing is predicted) and `index.json`: what made them, and their SHA-256. Tiers
are not stored: they follow from the entropies and the thresholds of the run that reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from posttrain.errors import DataError

INDEX_FILE = "index.json"
FORMAT = 1
_ARRAYS = ("tokens.npy", "starts.npy", "entropy.npy")
_TOLD = {
    "format": "another version of the format",
    "tokenizer": "another tokenizer",
    "corpus": "another corpus",
    "scorer": "another scoring model, or other entropies",
    "top_k": "another number of top tokens (method.entropy_top_k)",
}


@dataclass
class TokenIndex:
    """An opened index; arrays are memory-mapped and read only."""

    folder: Path
    record: dict[str, Any]
    tokens: numpy.ndarray
    starts: numpy.ndarray
    entropy: numpy.ndarray

    @property
    def num_documents(self) -> int:
        """Documents, without those that were too short."""
        return len(self.starts) - 1

    def document_of(self, position: int) -> int:
        """Document that a flat position belongs to."""
        return int(numpy.searchsorted(self.starts, position, side="right")) - 1

    def document(self, number: int) -> numpy.ndarray:
        """(S,) token ids of a document."""
        return self.tokens[self.starts[number] : self.starts[number + 1]]

    def before(self, position: int) -> list[int]:
        """Token ids of the document before a flat position."""
        return [int(token) for token in self.tokens[self.starts[self.document_of(position)] : position]]

    def following(self, position: int, count: int) -> list[int]:
        """Up to `count` token ids from a flat position on, within its document."""
        end = min(position + count, int(self.starts[self.document_of(position) + 1]))
        return [int(token) for token in self.tokens[position:end]]


def open_index(folder: str | Path, *, expected: dict[str, Any] | None = None) -> TokenIndex:
    """Open a finished index.

    Args:
        folder: as written by `entropy_scoring.score_corpus`.
        expected: entries of `index.json` that must be equal: tokenizer, corpus, scorer, top_k.

    Raises:
        DataError: missing, unfinished, damaged, or made from something else.
    """
    folder = Path(folder)
    record = read_record(folder)
    if record is None:
        raise DataError("there is no token index", where=str(folder), fix="Make it with `posttrain score-tokens`")
    refuse_other(record, expected or {}, folder)
    if record["documents_done"] < record["num_documents"]:
        raise DataError(
            "the token index is not finished",
            where=str(folder),
            got=f"{record['documents_done']} of {record['num_documents']} documents",
            fix="Run `posttrain score-tokens` again; it goes on where it stopped",
        )
    for name, digest in record["files"].items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise DataError(
                "the token index is damaged", where=str(folder / name), fix="Delete the folder and score again"
            )
    tokens, starts, entropy = (numpy.load(folder / name, mmap_mode="r", allow_pickle=False) for name in _ARRAYS)
    return TokenIndex(folder, record, tokens, starts, entropy)


def refuse_other(record: dict[str, Any], expected: dict[str, Any], folder: Path) -> None:
    """DataError if an index was made from something else than expected."""
    for key, value in {"format": FORMAT, **expected}.items():
        if record.get(key) != value:
            raise DataError(
                f"the token index was made from {_TOLD[key]}",
                where=str(folder),
                got=record.get(key),
                allowed=str(value),
                fix="Score again into another folder (method.token_index), or restore what it was made from",
            )


def read_record(folder: Path) -> dict[str, Any] | None:
    """Content of `index.json`; None if there is none."""
    path = folder / INDEX_FILE
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:
        raise DataError("not a token index", where=str(path), fix="Delete the folder and score again") from None


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write `index.json` so that a reader sees the old or the new one, never a part."""
    partial = folder / f"{INDEX_FILE}.partial"
    partial.write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
    os.replace(partial, folder / INDEX_FILE)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finish(folder: Path, record: dict[str, Any]) -> None:
    """Record that every document is scored, and the digests of the arrays."""
    record["files"] = {name: file_digest(folder / name) for name in _ARRAYS}
    write_record(folder, record)


def start(folder: Path, documents: Sequence[Sequence[int]], record: dict[str, Any]) -> None:
    """Write tokens and starts, an empty entropy array, and a record with no document done."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = numpy.zeros(len(documents) + 1, dtype=numpy.int64)
    starts[1:] = numpy.cumsum([len(ids) for ids in documents])
    flat = numpy.fromiter((token for ids in documents for token in ids), dtype=numpy.int32, count=int(starts[-1]))
    numpy.save(folder / "tokens.npy", flat, allow_pickle=False)
    numpy.save(folder / "starts.npy", starts, allow_pickle=False)
    entropy = numpy.full(int(starts[-1]), numpy.nan, dtype=numpy.float32)
    numpy.save(folder / "entropy.npy", entropy, allow_pickle=False)
    write_record(folder, record)


# ---- fingerprints ----


def corpus_digest(texts: Iterable[str]) -> str:
    """SHA-256 of the documents in order."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's vocabulary and of how it cuts a probe text; the chat template does not enter."""
    probe = "The  cat's 1,234.5 dollars\n\tnaïve 漢字 \\boxed{x}"
    facts = {"vocabulary": tokenizer.get_vocab(), "probe": tokenizer(probe)["input_ids"]}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def weights_digest(model: Any) -> str:
    """SHA-256 of every parameter and buffer that is saved, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
