"""What a checkpoint needs beyond transformers' own files for a policy run to continue bit for bit.

`posttrain_state.json` (rank 0) holds the method's state and the layout of the run; `posttrain_rank{r}.safetensors`
with its JSON neighbour holds a rank's rollouts in flight; `reference.safetensors` a synchronised reference model.
`posttrain_complete.json`, written last, marks a checkpoint as whole and holds the hashes of its files (`manifest`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.errors import ResumeError

STATE_FILE = "posttrain_state.json"
COMPLETE_FILE = "posttrain_complete.json"
REFERENCE_FILE = "reference.safetensors"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON through a temporary file, so that a reader never sees half of it."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True))
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a state file; a missing or damaged one is a `ResumeError` that names it."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ResumeError(
            "the checkpoint lacks this file, so the run cannot continue where it stopped",
            where=str(path),
            fix="Resume from an earlier checkpoint, or start anew with trainer.resume: never",
        ) from None
    except ValueError as error:
        raise _damaged(path, error) from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU; a missing or damaged one is a `ResumeError` that names it."""
    if not path.exists():
        raise ResumeError("the checkpoint lacks this file", where=str(path), fix="Resume from an earlier checkpoint")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ResumeError:
    return ResumeError(f"the file is damaged ({error})", where=str(path), fix="Resume from an earlier checkpoint")


def split_tensors(content: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """Replace every tensor in nested dicts and lists by a reference and collect it in `tensors` under that name."""
    if isinstance(content, Tensor):
        tensors[prefix] = content.detach().cpu().contiguous().clone()
        return {"__tensor__": prefix}
    if isinstance(content, Mapping):
        for key in content:
            if not isinstance(key, str):  # JSON would make text of it
                raise TypeError(f"state at {prefix} has the key {key!r}; only text can be a key")
        return {key: split_tensors(value, f"{prefix}/{key}", tensors) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [split_tensors(value, f"{prefix}/{i}", tensors) for i, value in enumerate(content)]
    if content is None or isinstance(content, bool | int | float | str):
        return content
    raise TypeError(f"state at {prefix} is a {type(content).__name__}; only tensors and JSON values can be saved")


def join_tensors(content: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """Inverse of `split_tensors`; tuples come back as lists."""
    if isinstance(content, Mapping):
        if set(content) == {"__tensor__"}:
            return tensors[content["__tensor__"]].to(device)
        return {key: join_tensors(value, tensors, device) for key, value in content.items()}
    if isinstance(content, list):
        return [join_tensors(value, tensors, device) for value in content]
    return content


def save_rank_state(folder: Path, rank: int, content: Mapping[str, Any]) -> None:
    """Write one rank's nested state as safetensors plus JSON."""
    tensors: dict[str, Tensor] = {}
    plain = split_tensors(dict(content), "state", tensors)
    save_file(tensors, folder / f"posttrain_rank{rank}.safetensors")
    write_json(folder / f"posttrain_rank{rank}.json", plain)


def load_rank_state(folder: Path, rank: int, device: torch.device) -> dict[str, Any]:
    """Read what `save_rank_state` wrote, tensors on `device`."""
    plain = read_json(folder / f"posttrain_rank{rank}.json")
    return join_tensors(plain, read_tensors(folder / f"posttrain_rank{rank}.safetensors"), device)


def complete_checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoints under `output_dir` that were written to the end, oldest first."""
    found = []
    for path in Path(output_dir).glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdigit() and (path / COMPLETE_FILE).exists():
            found.append((int(number), path))
    return [path for _, path in sorted(found)]
