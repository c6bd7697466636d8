"""A user's recipe as the battery trains it: its method and settings on a tiny copy of its model, rollouts replayed.

What shapes the loss stays as written. What only says how long, how fast and where to is replaced, so that three
optimizer steps tell.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain import registry
from posttrain.certificate import verdict
from posttrain.certificate.plan import ROWS
from posttrain.config.loader import parse
from posttrain.config.run_config import RunConfig
from posttrain.config.stages import resolve_stages
from posttrain.data.demonstrations import encode_prompt
from posttrain.errors import ConfigError
from posttrain.models.loading import load_tokenizer, refuse_code, resolve_model_path

STEPS = 3
NUM_GENERATIONS = 4
# Beginnings of trainer fields that say how long, how fast, in which precision and where to.
_REPLACED = tuple(
    "max_steps num_train_epochs per_device gradient_accumulation learning_rate lr_scheduler warmup optim adam_ "
    "weight_decay max_grad_norm bf16 fp16 tf32 use_cpu save_ eval_ logging_ log_ report_to run_name resume output_dir "
    "push_to_hub hub_ load_best metric_for greater_is dataloader_ ddp_ fsdp deepspeed steps_per_generation "
    "generation_batch_size torch_compile seed data_seed shuffle_dataset".split()
)
# Updates that depend smoothly on the gradient: with Adam's usual epsilon of 1e-8 the sign of a gradient that is zero
# but for rounding would make a whole step. Large steps, so that the rounding of the weights is small beside them.
TRAINER: dict[str, Any] = {
    "learning_rate": 0.02,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch",
    "adam_epsilon": 0.01,
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "bf16": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": "none",
    "seed": 0,
}


def battery_recipe(run: RunConfig, *, model: str | Path, folder: str | Path, rows: int, splits: int) -> RunConfig:
    """The recipe of one cell.

    Args:
        run: one run of the user's recipe, without stages.
        model: folder of the tiny copy of its model.
        folder: of the run.
        rows: of a micro-batch of one process.
        splits: micro-batches of an optimizer step.

    Raises:
        ConfigError: the changed recipe does not hold, with the finding.
    """
    values = run.values
    trainer = {key: value for key, value in (values.get("trainer") or {}).items() if not key.startswith(_REPLACED)}
    length = {key: run.values["trainer"][key] for key in ("max_steps", "num_train_epochs") if key in values["trainer"]}
    layout = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": splits}
    lora = {"lora": {**values["model"]["lora"], "merge_on_save": False}} if values["model"].get("lora") else {}
    changed: dict[str, Any] = {
        "method": {key: value for key, value in values["method"].items() if "per_device" not in key},
        "model": {"path": str(model), "dtype": "float32", **lora},
        "data": {key: value for key, value in values["data"].items() if key not in ("eval", "eval_tasks", "probes")},
        "trainer": {**trainer, **length, **TRAINER, **layout, "output_dir": str(folder)},
        "eval": None,
    }
    if values.get("rollout") is not None:
        changed["rollout"] = _replayed(values["rollout"])
    return parse(changed)


def _replayed(rollout: dict[str, Any]) -> dict[str, Any]:
    """The rollout block with the battery's verdict, and without an engine."""
    kept = {
        key: value
        for key, value in rollout.items()
        if not key.startswith(("vllm_", "engine", "reward", "one_step_off", "mode", "verifier"))
    }
    reward = f"{verdict.__file__}:{verdict.marked_right.__name__}"
    return {**kept, "num_generations": NUM_GENERATIONS, "rewards": [reward], "reward_workers": 0}


def trained_run(config: RunConfig, key: str | None = None) -> RunConfig:
    """The last run of a recipe, or the last one of a method.

    Raises:
        ConfigError: no stage trains the method.
    """
    runs = [run for _, _, run in resolve_stages(config) if key is None or run.method.name == key]
    if not runs:
        raise ConfigError("no stage of the recipe trains this method", where=config.source.file, got=key)
    return runs[-1]


def stages_of(config: RunConfig) -> dict[str, RunConfig]:
    """Method -> the last run of the recipe that trains it, in the order of the recipe."""
    return {run.method.name: run for _, _, run in resolve_stages(config) if run.method.name in registry.trained()}


def replay(prompts: list, trainer: Any) -> dict[str, Any]:
    """A rollout function: completions that depend on the prompt and the row's place in its group alone.

    The same global batch so has the same rollouts however it is spread. About a third of the prompts is never solved;
    of the others about half of the rollouts are right; lengths differ.
    """
    tokenizer = trainer.processing_class
    template = getattr(trainer.args, "chat_template_kwargs", None) or {}
    first = trainer.accelerator.process_index * len(prompts)
    prompt_ids, completion_ids = [], []
    for row, prompt in enumerate(prompts):
        place = (first + row) % trainer.num_generations
        number = int(hashlib.sha256(repr(prompt).encode()).hexdigest(), 16) % 3000
        is_right = number % 3 > 0 and (place + number // 3) % 2 == 0
        text = (verdict.RIGHT if is_right else "w") + "xyz12"[: 1 + (place + number) % 4]
        prompt_ids.append(encode_prompt(tokenizer, prompt, **template))
        completion_ids.append([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}


def tiny_copy(run: RunConfig, folder: Path) -> str | None:
    """Write a small random model of the recipe's architecture, with its tokenizer, to a folder; read no weights.

    Returns:
        None, or why another architecture (llama) had to stand in.
    """
    place = resolve_model_path(run.model, folder / "source")
    tokenizer = load_tokenizer(run.model, path=place)
    refuse_code(place, revision=run.model.revision)
    torch.manual_seed(0)
    told = None
    try:
        config = AutoConfig.from_pretrained(place, revision=run.model.revision)
        model = AutoModelForCausalLM.from_config(_smaller(config), dtype=torch.float32)
        model(torch.arange(4).unsqueeze(0))
    except Exception as problem:  # noqa: BLE001 - every architecture has its own way to dislike such sizes
        told = f"a llama stands in, for the architecture could not be made small: {problem}".splitlines()[0]
        model = AutoModelForCausalLM.from_config(_stand_in(len(tokenizer)), dtype=torch.float32)
    if model.get_input_embeddings().weight.shape[0] < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:  # of norms: around 1 rounding would be the largest part of what is compared
                weight *= _NORM_SCALE
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return told


_NORM_SCALE = 0.25
_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    # Larger than usual, so that no layer's gradient is small beside the others'.
    "initializer_range": 0.1,
}


def _smaller(config: Any) -> Any:
    """A model's configuration with few and narrow layers; fields that the architecture lacks are left alone."""
    part = config.get_text_config()
    kinds = getattr(part, "layer_types", None)
    # A model of two kinds of layers ends with the rarer one.
    for name, value in {**_SMALL, **({"layer_types": [kinds[0], kinds[-1]]} if kinds else {})}.items():
        if getattr(part, name, None) is not None:
            with suppress(AttributeError):  # what follows from other sizes
                setattr(part, name, value)
    return config


def _stand_in(vocabulary: int) -> Any:
    return AutoConfig.for_model("llama", vocab_size=vocabulary, **_SMALL)


def micro_rows(split: tuple[int, int], world: int) -> int:
    """Rows of a micro-batch of one process."""
    assert split[0] * split[1] == ROWS and split[0] % world == 0
    return split[0] // world
