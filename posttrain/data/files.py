"""Find the files of a data set: a file, a folder or the Hub; loading scripts are never run.

Files here are read by `posttrain.data.readers`, anew each time: no cache can give rows that a file had before. Only
what the Hub has as parquet, and kinds of files that are not ours, are left to the library `datasets`.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import DatasetDict, DownloadManager, load_dataset, load_dataset_builder, load_from_disk

from posttrain.data.readers import LocalFile
from posttrain.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

# Files in a folder that `save_to_disk` wrote.
_SAVED = ("state.json", "dataset_dict.json")
# A malformed, truncated or encrypted file, an unknown split or configuration, a folder of scripts; the text of the
# libraries names it.
UNREADABLE = (OSError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")
# Settings that a folder's README.md may give its configuration, of those that change what is read.
_SETTINGS = {"csv": {"sep", "delimiter"}, "json": {"field"}, "parquet": set[str]()}
_ROWS_AT_ONCE = 1000
# Where a stream begins.
PLACE = {"file": 0, "row": 0, "offset": 0}
# Larger files of a stream are told apart by this many blocks, evenly spaced.
_WHOLE_BYTES, _BLOCKS, _BLOCK_BYTES = 4 << 30, 1000, 1 << 20


@dataclass(frozen=True)
class FileSet:
    """The files of one split, all of one kind, in the order in which their rows count.

    Attributes:
        parts: of a split such as "train[:10%]+test" the whole splits that it names; `files` is then empty.
        split: as it was written.
        unread: names of files of rows in the folder that belong to none of its splits.
    """

    files: tuple[LocalFile, ...]
    parts: dict[str, FileSet] | None = None
    split: str = "train"
    unread: tuple[str, ...] = ()

    def batches(self) -> Iterator[tuple[LocalFile, int, dict[str, Any], int]]:
        """(file, number of the first row in it, columns, rows): lists of cells, or Arrow arrays of parquet.

        Raises:
            DataError: a file cannot be read, or has other columns than the first.
        """
        known: _Columns | None = None
        for file in self.files:
            found = _Columns(file)
            start = 0
            for columns, count in self._of(file):
                found.add(columns)
                yield file, start, columns, count
                start += count
            if start and known is not None:
                known.compare(found)
            known = known or (found if start else None)

    def notes(self) -> list[str]:
        """What a user should know of files that are not read."""
        more = f" and {len(self.unread) - 3} more" * (len(self.unread) > 3)
        told = "the folder has files of rows that belong to no split and are not read: "
        return [told + ", ".join(self.unread[:3]) + more] if self.unread else []

    @staticmethod
    def _of(file: LocalFile) -> Iterator[tuple[dict[str, Any], int]]:
        if file.kind == "parquet":
            for batch in file.batches():
                yield dict(zip(batch.schema.names, batch.columns, strict=True)), batch.num_rows
            return
        rows: list[dict[str, Any]] = []
        for row, _ in file.rows():
            rows.append(row)
            if len(rows) == _ROWS_AT_ONCE:
                yield _transposed(rows), len(rows)
                rows = []
        if rows:
            yield _transposed(rows), len(rows)


def _transposed(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    first = rows[0].keys()
    if all(row.keys() == first for row in rows):
        return {name: [row[name] for row in rows] for name in first}
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


class _Columns:
    """Names of a file's columns."""

    def __init__(self, file: LocalFile):
        self.file, self.names = file, dict[str, None]()

    def add(self, columns: Any) -> None:
        self.names.update(dict.fromkeys(columns))

    def compare(self, other: _Columns) -> None:
        """Refuse a file with other columns: its rows would have empty cells where the others have text."""
        lacking = [name for name in self.names if name not in other.names]
        further = [name for name in other.names if name not in self.names]
        if lacking or further:
            parts = [f"lacks column {', '.join(map(repr, lacking))}"] if lacking else []
            parts += [f"has column {', '.join(map(repr, further))} beside them"] if further else []
            raise other.file.fault(
                f"the file has other columns than {self.file.label}: it {' and '.join(parts)}",
                fix="Give all files of the folder the same columns, or name one file",
            )


class StoredRows:
    """Rows of files, read from any of them on; takes the place of a `datasets.IterableDataset` of local files."""

    def __init__(self, files: FileSet):
        self.files = files.files
        self._found = [_state(file.path) for file in self.files]
        self._start = self._place = PLACE

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """From the first row on, or from where `load_state_dict` says.

        Raises:
            DataError: a row cannot be read, or a file is not the one it was.
        """
        place, self._start = self._start, PLACE
        known: list[str] | None = None
        for number in range(place["file"], len(self.files)):
            file, offset, row = self.files[number], place["offset"], place["row"]
            if _state(file.path) != self._found[number]:
                fix = "Run the recipe again: a run that continues compares the rows"
                raise file.fault("the file was changed while it is read", fix=fix)
            for count, (cells, after) in enumerate(file.rows(offset=offset, row=row), row + 1):
                if known is not None and file.kind != "json" and known != list(cells):
                    fix = "Give all files of the folder the same columns, or name one file"
                    raise file.fault("the file has other columns than those before", got=", ".join(cells), fix=fix)
                known = list(cells) if file.kind != "json" else None
                self._place = {"file": number, "row": count, "offset": after}
                yield cells
            place = PLACE

    def state_dict(self) -> dict[str, int]:
        """Where the row after the last one given begins, as JSON."""
        return dict(self._place)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin there in the next iteration."""
        self._start = {name: int(state[name]) for name in PLACE}


def _state(path: Path) -> tuple[int, int]:
    """What changes when a file is written anew."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def find_rows(
    path: str, *, name: str | None = None, split: str = "train", revision: str | None = None
) -> FileSet | Dataset:
    """Where the rows of one split are.

    Args:
        path: a file with an ending of `READERS`, also packed (`PACKED`), a folder written by `save_to_disk`, a folder
            of such files, or a Hub id.
        name: configuration of a Hub data set.
        split: split of the data set; a single file has only "train".
        revision: branch, tag or commit of a Hub data set.

    Returns:
        The files; or the data set, where its rows are not in files of ours.

    Raises:
        DataError: if there is no such file, data set, configuration or split, or it cannot be read.
    """
    local = _existing(path)
    try:
        if local.is_file():
            return _chosen(split, {"train": FileSet(tuple(_members(local, _kind(local), path)))}, path)
        if local.is_dir() and any((local / file).is_file() for file in _SAVED):
            stored = load_from_disk(str(local))
            if not isinstance(stored, DatasetDict):
                return stored
            if split not in stored:
                raise _no_split(path, split, list(stored))
            return stored[split]
        found = _built(local, path, name, split, revision)
        return load_dataset(_place(local, path), name, split=split, revision=revision) if found is None else found
    except UNREADABLE as error:
        raise unreadable(error, path) from error
    except Exception as error:  # datasets has errors of many kinds, with a cause that tells
        if type(error).__module__.split(".")[0] not in ("datasets", "pyarrow", "huggingface_hub", "yaml"):
            raise
        raise unreadable(error, path) from error


def read_stream(path: str, *, name: str | None = None, split: str = "train", revision: str | None = None) -> Any:
    """One split, to be iterated in the order in which it is stored; arguments as in `find_rows`.

    Returns:
        `StoredRows`, or a `datasets.IterableDataset` where the Hub has it as parquet or in files that are not ours.

    Raises:
        DataError: as there, or a folder written by `save_to_disk`, whose rows lie ready to be read at any place.
    """
    local = _existing(path)
    if local.is_dir() and any((local / file).is_file() for file in _SAVED):
        raise DataError(
            "the rows of this folder need no stream: they are mapped into memory as they are read",
            where="path",
            got=path,
            fix="Remove streaming",
        )
    try:
        found: FileSet | None
        if local.is_file():
            found = _chosen(split, {"train": FileSet(tuple(_members(local, _kind(local), path)))}, path)
        else:
            found = _built(local, path, name, split, revision)
        if found is not None and found.parts is not None:
            raise _no_split(path, split, list(found.parts))
        if found is not None:
            return StoredRows(found)
        return load_dataset(_place(local, path), name, revision=revision, split=split, streaming=True)
    except UNREADABLE as error:
        raise unreadable(error, path) from error


def local_files(path: str) -> dict[str, str]:
    """Name below the folder -> bytes and SHA-256, of every file of a local path; empty for the Hub."""
    local = Path(path).expanduser()
    if local.is_file():
        return {local.name: _content(local)}
    found = sorted(file for file in local.rglob("*") if file.is_file()) if local.is_dir() else []
    return {file.relative_to(local).as_posix(): _content(file) for file in found}


def _content(file: Path) -> str:
    """Size and hash: of the whole file, or of blocks all over one that takes too long to read."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        if size <= _WHOLE_BYTES:
            return f"{size} {hashlib.file_digest(handle, 'sha256').hexdigest()}"
        digest = hashlib.sha256()
        for block in range(_BLOCKS + 1):
            handle.seek(block * (size - _BLOCK_BYTES) // _BLOCKS)
            digest.update(handle.read(_BLOCK_BYTES))
    return f"{size} {digest.hexdigest()} of {_BLOCKS + 1} blocks"


def _existing(path: str) -> Path:
    """The path; refused where it was meant as a file or folder and there is none."""
    local = Path(path).expanduser()
    if not local.exists() and looks_local(path):
        raise DataError("no such file or folder", where="path", got=path, fix="Paths start from the working folder")
    return local


def _place(local: Path, path: str) -> str:
    return str(local) if local.is_dir() else path


def _kind(file: Path) -> str:
    plain = file.with_suffix("") if file.suffix in PACKED else file
    if plain.suffix not in READERS:
        allowed = f"files ending in {', '.join(READERS)}, also packed ({', '.join(PACKED)})"
        fix = "Write the cells between commas, as .csv" if plain.suffix == ".tsv" else None
        raise DataError("cannot be read", where="path", got=str(file), allowed=allowed, fix=fix)
    return READERS[plain.suffix]


def _members(file: Path, kind: str, label: str, **settings: Any) -> Iterator[LocalFile]:
    """The file itself, or the files in a zip archive, by name."""
    if not zipfile.is_zipfile(file):
        yield LocalFile(file, kind, label, **settings)
        return
    with zipfile.ZipFile(file) as archive:
        names = sorted(name for name in archive.namelist() if Path(name).suffix in READERS and "__MACOSX" not in name)
    if not names:
        raise DataError(
            "the archive has no file of rows", where=label, allowed=f"files ending in {', '.join(READERS)}"
        )
    for name in names:
        yield LocalFile(file, READERS[Path(name).suffix], f"{label}/{name}", member=name, **settings)


def _built(local: Path, path: str, name: str | None, split: str, revision: str | None) -> FileSet | None:
    """The files that `datasets` finds for a split of a folder or Hub data set; None where it must read them itself."""
    builder = load_dataset_builder(_place(local, path), name, revision=revision)
    kind, is_here = str(builder.name), local.is_dir()
    if kind not in _SETTINGS or (kind == "parquet" and not is_here):
        return None
    settings = _settings(builder.config, kind, path)
    splits = {}
    unread = _unread(local, builder.config.data_files or {}) if is_here else ()
    for key, files in (builder.config.data_files or {}).items():
        if str(key) not in _named(split):
            splits[str(key)] = FileSet(())
            continue
        labels = [f"{path}/{Path(str(file)).name}" for file in files]
        here = files if is_here else DownloadManager(dataset_name=builder.dataset_name).download(list(files))
        splits[str(key)] = FileSet(
            tuple(
                member
                for file, label in zip(here, labels, strict=True)
                for member in _members(Path(str(file)), kind, label, **settings)
            )
        )
    return replace(_chosen(split, splits, path), unread=unread)


def _unread(folder: Path, splits: Mapping[Any, Sequence[Any]]) -> tuple[str, ...]:
    """Files of rows that no split has, as `datasets` reads one kind alone; none where a README.md chooses.

    Raises:
        DataError: a split has a file of no kind that is read here, such as rows.jsonl.bak.
    """
    if (folder / "README.md").is_file():
        return ()
    used = {Path(str(file)).resolve() for files in splits.values() for file in files}
    for file in sorted(used):
        if {*file.suffixes[:-1]} & READERS.keys():  # rows.jsonl.bak, which `datasets` takes for rows
            _kind(file)
    found = (file for file in folder.rglob("*") if file.is_file() and {*file.suffixes[-2:]} & READERS.keys())
    names = (file.relative_to(folder) for file in found if file.resolve() not in used)
    return tuple(sorted(str(name) for name in names if not any(part.startswith((".", "_")) for part in name.parts)))


def _named(split: str) -> list[str]:
    """Splits that "train", "train[:10%]" or "train+test" names."""
    return [part.split("[")[0].strip() for part in split.split("+")]


def _chosen(split: str, splits: dict[str, FileSet], path: str) -> FileSet:
    """The files of a split, or of the parts that it is made of."""
    if split in splits:
        return splits[split]
    names = _named(split)
    if names == [split] or any(name not in splits for name in names):
        raise _no_split(path, split, list(splits))
    return FileSet((), {name: splits[name] for name in names}, split)


def _settings(config: Any, kind: str, path: str) -> dict[str, Any]:
    """Separator or key that the README.md of a data set names; other settings of its reader are refused."""
    usual = type(config)()
    ignored = {"name", "version", "data_dir", "data_files", "description", "features", *_SETTINGS[kind]}
    changed = [key for key, value in vars(config).items() if key not in ignored and value != getattr(usual, key, None)]
    if changed:
        raise DataError(
            "the README.md of the data set gives its reader settings that are not known here",
            where=path,
            got=", ".join(changed),
            allowed=", ".join(sorted(_SETTINGS[kind])) or None,
            fix="Name a file, or write the rows as JSON Lines or parquet",
        )
    if kind == "csv":
        return {"separator": config.delimiter or config.sep}
    return {"field": config.field} if kind == "json" and config.field is not None else {}


def _no_split(path: str, split: str, known: list[str]) -> DataError:
    fix = "Name a whole split; limit takes its first rows" if re.search(r"[\[+]", split) else None
    return DataError("no such split", where=path, got=split, allowed=f"one of: {', '.join(known)}", fix=fix)


def unreadable(error: Exception, where: str) -> DataError:
    """The error that tells a user why something cannot be read; `where` is the path or the place in it."""
    reason = " ".join(str(error.__cause__ or error).split())[:300].rstrip(".")
    return DataError(f"cannot be read: {reason}", where=where)


def looks_local(path: str) -> bool:
    """Whether a path that does not exist was meant as a file or folder and not as a Hub id (name or owner/name)."""
    plain = Path(path).with_suffix("") if Path(path).suffix in PACKED else Path(path)
    return path.startswith((".", "/", "~")) or plain.suffix in READERS or path.count("/") > 1
