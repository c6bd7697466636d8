"""Read a data set from a file, a folder or the Hub; loading scripts are never run."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

# Files in a folder that `save_to_disk` wrote.
_SAVED = ("state.json", "dataset_dict.json")
# A malformed, truncated or encrypted file, an unknown split or configuration, a folder of scripts; the text of the
# libraries names it.
UNREADABLE = (OSError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def read_dataset(path: str, *, name: str | None = None, split: str = "train", revision: str | None = None) -> Dataset:
    """One split of a data set.

    Args:
        path: a file with an ending of `READERS`, a folder written by `save_to_disk`, a folder of such files, or a
            Hub id.
        name: configuration of a Hub data set.
        split: split of the data set; a single file has only "train".
        revision: branch, tag or commit of a Hub data set.

    Raises:
        DataError: if there is no such file, data set, configuration or split, or it cannot be read.
    """
    from datasets import DatasetDict, load_dataset, load_from_disk

    local = _existing(path)
    try:
        if local.is_file():
            return load_dataset(_reader(local), data_files=str(local), split=split)
        if local.is_dir() and any((local / file).is_file() for file in _SAVED):
            stored = load_from_disk(str(local))
            if not isinstance(stored, DatasetDict):
                return stored
            if split not in stored:
                raise DataError("no such split", where=path, got=split, allowed=f"one of: {', '.join(stored)}")
            return stored[split]
        return load_dataset(str(local) if local.is_dir() else path, name, split=split, revision=revision)
    except UNREADABLE as error:
        raise unreadable(error, path) from error


def read_stream(path: str, *, name: str | None = None, split: str = "train", revision: str | None = None) -> Any:
    """One split as a `datasets.IterableDataset`, in the order in which it is stored; arguments as in `read_dataset`.

    Raises:
        DataError: as there, or a folder written by `save_to_disk`, whose rows lie ready to be read at any place.
    """
    from datasets import Features, load_dataset

    local = _existing(path)
    if local.is_dir() and any((local / file).is_file() for file in _SAVED):
        raise DataError(
            "the rows of this folder need no stream: they are mapped into memory as they are read",
            where="path",
            got=path,
            fix="Remove streaming",
        )
    given: dict[str, Any] = {"path": str(local) if local.is_dir() else path, "name": name, "revision": revision}
    if local.is_file():
        given = {"path": _reader(local), "data_files": str(local)}
    try:
        found = load_dataset(**given, split=split, streaming=True)
        if found.info.builder_name != "csv":
            return found
        # pandas would infer the types of every 10,000 rows anew; those of the first hold for all, as in memory.
        first = next(found.with_format("arrow").iter(batch_size=1), None)
        if first is None:
            return found
        return found.cast(Features.from_arrow_schema(first.schema))
    except UNREADABLE as error:
        raise unreadable(error, path) from error


def local_files(path: str) -> dict[str, int]:
    """Name below the folder -> bytes, of every file of a local path; empty for the Hub."""
    local = Path(path).expanduser()
    if local.is_file():
        return {local.name: local.stat().st_size}
    found = sorted(file for file in local.rglob("*") if file.is_file()) if local.is_dir() else []
    return {file.relative_to(local).as_posix(): file.stat().st_size for file in found}


def _existing(path: str) -> Path:
    """The path; refused where it was meant as a file or folder and there is none."""
    local = Path(path).expanduser()
    if not local.exists() and looks_local(path):
        raise DataError("no such file or folder", where="path", got=path, fix="Paths start from the working folder")
    return local


def _reader(file: Path) -> str:
    if file.suffix not in READERS:
        raise DataError("cannot be read", where="path", got=str(file), allowed=f"files ending in {', '.join(READERS)}")
    return READERS[file.suffix]


def unreadable(error: Exception, where: str) -> DataError:
    """The error that tells a user why something cannot be read; `where` is the path or the place in it."""
    reason = " ".join(str(error.__cause__ or error).split())[:300].rstrip(".")
    return DataError(f"cannot be read: {reason}", where=where)


def looks_local(path: str) -> bool:
    """Whether a path that does not exist was meant as a file or folder and not as a Hub id (name or owner/name)."""
    return path.startswith((".", "/", "~")) or Path(path).suffix in READERS or path.count("/") > 1
