"""What a stranger needs to repeat a run: versions, commit, data fingerprints, world layout, command line.

Secrets never enter: values under names that hold one, values that look like an access token, what `${env:NAME}`
brought into the recipe, and the values of secret environment variables are replaced by "<hidden>". The environment
itself is not recorded.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import posttrain
from posttrain.data.streams import RowStreams
from posttrain.hidden import HIDDEN, is_secret_name, without_secrets
from posttrain.reports.records import json_value

PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets")
# Written by `posttrain reproduce` itself.
_RESULTS = ":(top,exclude,glob)recipes/*/RESULTS.json"

_ASSIGNMENT = re.compile(r"^(-{0,2})([\w.\-]+)=(.*)$", re.DOTALL)


def versions() -> dict[str, str | None]:
    """Installed versions of Python, posttrain and the libraries that decide the numbers; None if not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "posttrain": posttrain.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def git_state(folder: str | Path | None = None) -> dict[str, Any] | None:
    """Commit of the git tree that posttrain's source is tracked in, and whether the tree has uncommitted changes.

    Files that are not tracked count only in the folder itself, results of studies not at all.

    Args:
        folder: look here instead; it must hold at least one tracked file.

    Returns:
        {"commit": 40 hex digits, "dirty": bool}, or None for an installed package, or without git.
    """
    where = Path(folder) if folder is not None else Path(posttrain.__file__).parent
    # An ignored folder inside somebody's repository (a virtual environment) has no tracked file: not our commit.
    if not _git(where, "ls-files", "."):
        return None
    commit = _git(where, "rev-parse", "HEAD")
    if commit is None:
        return None
    # What a study leaves behind is no change of the source that the next one runs.
    changed = _git(where, "status", "--porcelain", "--untracked-files=no", "--", ":/", _RESULTS)
    added = _git(where, "ls-files", "--others", "--exclude-standard", ".")
    return {"commit": commit.strip(), "dirty": bool(changed or added)}


def data_fingerprint(dataset: Any) -> dict[str, Any]:
    """Number of rows, columns and SHA-256 of the content, in order: equal if and only if the rows are.

    Args:
        dataset: `datasets.Dataset` or list of dict, of which every row is read; or `RowStreams`, of which the first
            rows are, and `rows` is None.
    """
    if isinstance(dataset, RowStreams):
        return dataset.fingerprint()
    digest = hashlib.sha256()
    columns: list[str] = []
    for row in dataset:
        columns = columns or sorted(row)
        digest.update(json.dumps(json_value(dict(row)), sort_keys=True, ensure_ascii=False).encode("utf-8"))
        digest.update(b"\n")
    return {"rows": len(dataset), "columns": columns, "sha256": digest.hexdigest()}


def world_layout(accelerator: Any = None) -> dict[str, Any]:
    """Processes, device and threads of this run; loads torch.

    Args:
        accelerator: `accelerate.Accelerator`; None describes one process.
    """
    device = accelerator.device.type if accelerator is not None else ("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "num_processes": accelerator.num_processes if accelerator is not None else 1,
        "distributed_type": accelerator.distributed_type.value if accelerator is not None else "NO",
        "mixed_precision": accelerator.mixed_precision if accelerator is not None else "no",
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "cpu_threads": torch.get_num_threads(),
    }


def command_line(argv: Sequence[str] | None = None) -> list[str]:
    """The command that started the run, without secrets.

    Args:
        argv: default `sys.argv`.
    """
    shown: list[str] = []
    hide_next = False
    for argument in sys.argv if argv is None else argv:
        match = _ASSIGNMENT.match(argument)
        if hide_next:
            shown.append(HIDDEN)
        elif match and is_secret_name(match[2]):
            shown.append(f"{match[1]}{match[2]}={HIDDEN}")
        else:
            shown.append(without_secrets(argument))
        hide_next = argument.startswith("--") and match is None and is_secret_name(argument.lstrip("-"))
    return shown


def _git(folder: Path, *arguments: str) -> str | None:
    # A hook's GIT_DIR would point every call at another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def template_sha256(tokenizer: Any) -> str | None:
    """SHA-256 of a tokenizer's chat template; None without one."""
    template = tokenizer.chat_template
    return hashlib.sha256(json.dumps(template).encode()).hexdigest() if template else None


def weight_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every safetensors file by its name."""
    hashes = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as content:
            hashes[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return hashes


def weights_sha256(folder: Path) -> str:
    """One hash of all weight files of a folder."""
    return one_sha256(weight_hashes(folder))


def one_sha256(hashes: Mapping[str, str]) -> str:
    """One hash of the files that `weight_hashes` lists."""
    return hashlib.sha256("".join(f"{name} {value}\n" for name, value in hashes.items()).encode()).hexdigest()
