"""Saving a model so that nothing beside the weights can cost the weights.

transformers 5.17 writes config.json and generation_config.json before the weights and refuses both where they hold
what it holds for a contradiction, although it has loaded them. What was loaded is written back as it was.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import GenerationConfig

from posttrain.errors import PosttrainError

_logger = logging.getLogger(__name__)
GENERATION_FILE, CONFIG_FILE = "generation_config.json", "config.json"


class SaveError(PosttrainError):
    """Something beside the weights could not be saved; the weights are there."""


def refusal(config: Any) -> str | None:
    """Why transformers would not write a config or a generation config, in its words; None if it does."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            config.save_pretrained(folder)
        except Exception as problem:  # noqa: BLE001 - a field of a file may be anything
            return reason(problem)
    return None


def reason(problem: BaseException) -> str:
    """The message of an error on one line, without upstream's advice to correct the file."""
    text = " ".join(str(problem).replace("Fix these issues to save the configuration.", "").split())
    return f"{type(problem).__name__}: {text[:300].rstrip('. ')}"


def _as_is(name: str) -> Callable[..., None]:
    def write(self: Any, save_directory: Any, **_: Any) -> None:
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self.to_json_file(str(Path(save_directory) / name), use_diff=True)

    return write


@contextmanager
def written_as_loaded(model: Any) -> Iterator[None]:
    """While the block runs, files of a model that transformers refuses to write are written as they were loaded."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with ExitStack() as stack:
        for config, name in (
            (getattr(base, "config", None), CONFIG_FILE),
            (getattr(base, "generation_config", None), GENERATION_FILE),
        ):
            if config is not None and hasattr(config, "to_json_file") and refusal(config) is not None:
                stack.enter_context(patch.object(type(config), "save_pretrained", _as_is(name)))
        yield


def save_model(model: Any, folder: str | Path, *, tokenizer: Any = None, state_dict: Any = None) -> None:
    """Save a model that is not wrapped, weights first in the sense that nothing else can cost them.

    Raises:
        SaveError: when all that can be saved is, naming what could not.
    """

    def write() -> None:
        model.save_pretrained(folder, state_dict=state_dict)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    problems = save_parts(write, model, folder, tokenizer=tokenizer, state_dict=state_dict)
    if problems:
        raise unsaved(problems, folder)


def save_parts(
    write: Callable[[], None], model: Any, folder: str | Path, *, tokenizer: Any = None, state_dict: Any = None
) -> list[str]:
    """Call `write`, and where it fails write the weights alone and then everything else, part by part.

    Args:
        write: saves all in the usual way.
        folder: where to.
        state_dict: weights of a model that is spread over processes.

    Returns:
        One line for each part that could not be saved.

    Raises:
        OSError: no room, or no right to write: nothing else could be saved either.
    """
    with written_as_loaded(model):
        try:
            write()
        except OSError:
            raise
        except Exception as problem:  # noqa: BLE001 - upstream's own checks and a model's own code may raise anything
            _logger.warning("saving in the usual way failed (%s); the parts are saved one by one", reason(problem))
        else:
            return []
        return _one_by_one(model, Path(folder), tokenizer=tokenizer, state_dict=state_dict)


def _one_by_one(model: Any, folder: Path, *, tokenizer: Any, state_dict: Any) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    is_adapter = hasattr(model, "get_base_model")
    try:
        model.save_pretrained(folder, state_dict=state_dict)
    except OSError:
        raise
    except Exception:  # noqa: BLE001 - as above; the weights then go alone
        if is_adapter:
            weights = get_peft_model_state_dict(model, state_dict=state_dict)
        else:
            weights = model.state_dict() if state_dict is None else state_dict
        save_file(distinct(weights), folder / ("adapter_model.safetensors" if is_adapter else "model.safetensors"))
    if is_adapter:
        adapter = model.peft_config[model.active_adapter]
        parts: list[tuple[str, Callable[[], Any]]] = [("adapter_config.json", lambda: adapter.save_pretrained(folder))]
    else:
        parts = [(CONFIG_FILE, lambda: model.config.save_pretrained(folder))]
        if isinstance(getattr(model, "generation_config", None), GenerationConfig):
            parts.append((GENERATION_FILE, lambda: model.generation_config.save_pretrained(folder)))
    if tokenizer is not None:
        parts.append(("the tokenizer", lambda: tokenizer.save_pretrained(folder)))
    problems = []
    for name, save in parts:
        try:
            save()
        except Exception as problem:  # noqa: BLE001 - each part alone, so that one does not cost the others
            problems.append(f"{name} ({reason(problem)})")
    return problems


def distinct(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as safetensors takes them: each memory once (of tied weights the first name), contiguous."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    kept = {}
    for name, value in weights.items():
        mark = (value.data_ptr(), tuple(value.shape))
        if value.numel() and mark in seen:
            continue
        seen.add(mark)
        kept[name] = value.detach().cpu().contiguous().clone()
    return kept


def unsaved(problems: list[str], folder: str | Path) -> SaveError:
    """The error that names what is missing beside the weights."""
    return SaveError(
        f"the weights are saved, but not {'; '.join(problems)}",
        where=str(folder),
        fix="Copy what is missing from the model that training started from, then correct it there",
    )


def unpushed(problem: BaseException, folder: str | Path) -> SaveError:
    """The error of an upload that failed when everything was on disk."""
    return SaveError(
        f"the model is saved, but could not be pushed ({reason(problem)})",
        where=str(folder),
        fix="Upload it with `hf upload REPO FOLDER`, or run the recipe again",
    )
