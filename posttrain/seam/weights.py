"""Weights that leave the training process: adapters pushed to an inference engine, in-memory models written to
disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from posttrain.errors import SupportError
from posttrain.models.saving import save_model
from posttrain.seam.sharding import gathered_weights


def refuse_prompt_learning(model: Any, peft_config: Any) -> None:
    """Refuse prompt tuning and its kin, whose virtual tokens have no place in rows of different prompts.

    Raises:
        SupportError: for a config of that kind, given beside the model or already part of it.
    """
    given = peft_config or (model.active_peft_config if isinstance(model, PeftModel) else None)
    if given is not None and given.is_prompt_learning:
        raise SupportError(
            "prompt-learning adapters have no place in rows of different prompts",
            where="peft_config",
            got=type(given).__name__,
            allowed="LoRA and other adapters of the layers",
        )


@contextmanager
def preserved_base_weights(model: nn.Module) -> Iterator[None]:
    """Put the base weights under every adapter back, bit for bit, when the block ends.

    trl 1.16 pushes a PEFT model to vLLM by merging the adapter into the base weights in place and subtracting it
    again; in bf16 the subtraction does not return to the start, and the base drifts a little at each sync.

    Args:
        model: a PEFT model, plain or wrapped. Models without adapters pass through.

    Memory: one copy of the adapted layers' base weights while the block runs.
    """
    saved: list[tuple[Tensor, Tensor]] = []
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for parameter in module.get_base_layer().parameters(recurse=False):
                saved.append((parameter.data, parameter.data.clone()))
    try:
        yield
    finally:
        with torch.no_grad():
            for live, copy in saved:
                live.copy_(copy)


@contextmanager
def materialised(
    model: Any, folder: Path, *, tokenizer: Any = None, is_main: bool, barrier: Callable[[], None]
) -> Iterator[None]:
    """Let code that reloads a model from its `name_or_path` find the weights that are in memory now.

    trl 1.16 builds the KL reference (and a colocated vLLM engine) from `model.config._name_or_path`. For a model made
    or changed in memory (initialised from a config, expanded, merged) that is another model, or none. The weights are
    saved to `folder` by one rank, the name points there while the block runs, and the old name comes back afterwards.

    Args:
        model: a transformers model that is not yet wrapped; ZeRO-3 may have spread it.
        folder: where to save it.
        tokenizer: saved beside it, since an engine reads both from one folder.
        is_main: whether this rank writes.
        barrier: waits until every rank is here.
    """
    name, shown = model.config._name_or_path, model.name_or_path
    with gathered_weights(model):
        if is_main:
            save_model(model, folder, tokenizer=tokenizer)
    barrier()
    model.config._name_or_path = model.name_or_path = str(folder)
    try:
        yield
    finally:
        model.config._name_or_path, model.name_or_path = name, shown
