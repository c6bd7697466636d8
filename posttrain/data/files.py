"""Read a data set from a file, a folder or the Hub; loading scripts are never run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

# Files in a folder that `save_to_disk` wrote.
_SAVED = ("state.json", "dataset_dict.json")
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
    except (OSError, ValueError, TypeError) as error:
        # TypeError and ValueError: a malformed file, an unknown split or configuration; the text of datasets names it.
        raise _unreadable(error, path) from error


def read_stream(path: str, *, name: str | None = None, split: str = "train", revision: str | None = None) -> Any:
    """One split as a `datasets.IterableDataset`, in the order in which it is stored; arguments as in `read_dataset`.

    Raises:
        DataError: as there, or a folder written by `save_to_disk`, whose rows lie ready to be read at any place.
    """
    from datasets import load_dataset

    local = _existing(path)
    if local.is_dir() and any((local / file).is_file() for file in _SAVED):
        raise DataError(
            "the rows of this folder need no stream: they are mapped into memory as they are read",
            where="path",
            got=path,
            fix="Remove streaming",
        )
    try:
        if local.is_file():
            return load_dataset(_reader(local), data_files=str(local), split=split, streaming=True)
        place = str(local) if local.is_dir() else path
        return load_dataset(place, name, split=split, revision=revision, streaming=True)
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(error, path) from error


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


def _unreadable(error: Exception, path: str) -> DataError:
    reason = " ".join(str(error.__cause__ or error).split())[:300].rstrip(".")
    return DataError(f"cannot be read: {reason}", where=path)


def looks_local(path: str) -> bool:
    """Whether a path that does not exist was meant as a file or folder and not as a Hub id (name or owner/name)."""
    return path.startswith((".", "/", "~")) or Path(path).suffix in READERS or path.count("/") > 1
