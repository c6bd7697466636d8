"""Checkpoints that are whole or not there: staged beside their place, hashed, flushed to the disk, then renamed.

A checkpoint is written into `<run>/_staging/checkpoint-<step>`. When every rank is done, rank 0 writes
`posttrain_complete.json` there, with size and SHA-256 of every file, flushes all of it and renames the folder to
`<run>/checkpoint-<step>`. A process that is killed at any moment leaves either no new checkpoint or a whole one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

from posttrain.errors import PosttrainError, ResumeError
from posttrain.seam.checkpoint.state import COMPLETE_FILE, write_json

# The Hub's uploads leave out names that begin with "_".
STAGING = "_staging"
STATE_FILE = "trainer_state.json"  # of transformers 5.17
_VERIFIED: set[tuple[str, int]] = set()  # folders whose hashes this process has compared, so that it does so once
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG}


class CheckpointError(PosttrainError):
    """A checkpoint could not be written. The earlier ones are untouched."""


def seal(folder: Path, *, step: int) -> None:
    """Write the manifest of a checkpoint whose files are all there, and flush everything to the disk."""
    files = _files(folder)
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashlib and fsync leave other threads running
        facts = dict(zip(files, pool.map(lambda name: _fact(folder / name, flush=True), files), strict=True))
    write_json(folder / COMPLETE_FILE, {"step": step, "files": facts})
    _fact(folder / COMPLETE_FILE, flush=True)
    for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        _flush(place)


def publish(staged: Path, final: Path) -> None:
    """Rename a staged checkpoint to its place; one that is there already, from an attempt before, is replaced."""
    old = staged.with_name(f"{final.name}.old")
    if final.exists():
        final.rename(old)
    staged.rename(final)
    _flush(final.parent)
    shutil.rmtree(staged.parent, ignore_errors=True)


def recover(folder: Path) -> list[Path]:
    """Give whole checkpoints that a kill has left in staging, between the two renames of `publish`, their place.

    Args:
        folder: of the run. Returns what was recovered; unsealed and damaged ones are left where they are.
    """
    found = []
    for staged in sorted((folder / STAGING).glob("checkpoint-*")):
        final = folder / staged.name.removesuffix(".old")
        if (staged / COMPLETE_FILE).exists() and not final.exists() and damage(staged) is None:
            staged.rename(final)
            _flush(folder)
            found.append(final)
    return found


def damage(folder: Path, *, hashes: bool = True) -> str | None:
    """What is wrong with a complete checkpoint's files, or None.

    Args:
        folder: it holds `posttrain_complete.json`.
        hashes: false looks at names and sizes alone.
    """
    try:
        whole = json.loads((folder / COMPLETE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"{COMPLETE_FILE} cannot be read ({type(error).__name__})"
    if not _is_manifest(whole):
        return f"{COMPLETE_FILE} does not name files with their sizes and hashes, {STATE_FILE} among them"
    manifest = whole["files"]
    try:
        for name, fact in manifest.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != fact["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {fact['bytes']}"
        if hashes:
            with ThreadPoolExecutor(max_workers=4) as pool:
                found = list(pool.map(lambda name: _fact(folder / name), manifest))
            for (name, fact), now in zip(manifest.items(), found, strict=True):
                if now != fact:
                    return f"the content of {name} was changed"
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        if not isinstance(state, dict) or state.get("global_step") != whole["step"]:
            return f"{STATE_FILE} is not the state after step {whole['step']}"
        if hashes:
            _VERIFIED.add(_mark(folder))
    except (OSError, ValueError, RecursionError) as error:  # also: it is removed meanwhile
        return f"a file cannot be read ({' '.join(str(error).split())[:120]})"
    return None


def _is_manifest(whole: Any) -> bool:
    """Whether this is what `seal` writes: facts of files below the folder, the trainer's state among them."""
    files = whole.get("files") if isinstance(whole, dict) else None
    if not isinstance(files, dict) or STATE_FILE not in files or type(whole.get("step")) is not int:
        return False
    return all(
        isinstance(fact, dict)
        and type(fact.get("bytes")) is int
        and isinstance(fact.get("sha256"), str)
        and not PurePath(name).is_absolute()
        and ".." not in PurePath(name).parts
        and "\0" not in name
        for name, fact in files.items()
    )


def refuse_damaged(folder: Path) -> None:
    """Refuse a checkpoint whose files are not those that were sealed; one that was verified by this process passes.

    Raises:
        ResumeError: what is wrong with it. A folder without a manifest, e.g. of plain TRL, is left to who reads it.
    """
    if not (folder / COMPLETE_FILE).exists() or _mark(folder) in _VERIFIED:
        return
    problem = damage(folder)
    if problem is not None:
        raise ResumeError(
            f"the checkpoint is damaged: {problem}",
            where=str(folder),
            fix="Name another one, or set trainer.resume: auto for the newest that is whole",
        )


def is_no_room(error: BaseException) -> bool:
    """Whether the system refused to write, for want of room or of permission."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def not_written(error: BaseException, folder: Path) -> CheckpointError | None:
    """The clear form of an error that means no room or no right to write; None for every other error."""
    known = is_no_room(error)
    # safetensors and torch wrap the system's error in their own.
    told = any(text in str(error) for text in ("No space left", "Read-only file system", "Permission denied"))
    full = "PytorchStreamWriter failed" in str(error) or "unexpected pos" in str(error)
    if not (known or told or full):
        return None
    reason = str(error).splitlines()[0]
    return CheckpointError(
        f"the checkpoint could not be written: {reason}",
        where=str(folder),
        fix="Make room or give write permission, then run the recipe again: it continues from the last complete "
        "checkpoint, which was not touched",
    )


def _mark(folder: Path) -> tuple[str, int]:
    return str(folder.resolve()), (folder / COMPLETE_FILE).stat().st_mtime_ns


def _files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in paths if path.name != COMPLETE_FILE)


def _fact(path: Path, *, flush: bool = False) -> dict[str, Any]:
    with path.open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _flush(folder: Path) -> None:
    """Make renames in a folder last through a power failure, where the system can."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
