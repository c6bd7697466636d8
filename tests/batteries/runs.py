"""Small real runs that the batteries compare: one trainer per registry entry on the tiny model, everything
recorded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.data.demonstrations import encode_prompt
from posttrain.registry import METHODS
from tests.methods.case import case_of

NUM_PROMPTS = 12
COMMON: dict[str, Any] = {
    "learning_rate": 5e-3,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "seed": 5,
}
POLICY: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_generations": 4,
    "max_completion_length": 12,
}
SUPERVISED: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


def dataset(num_prompts: int = NUM_PROMPTS) -> Dataset:
    """Chat prompts with short demonstrations of unequal length."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"{i}+{i * 7}=?"}],
                "answer": str(i * 8),
                "solution": "s" * (i % 4) + f"Answer: {i * 8}"[: 3 + i % 4],
            }
            for i in range(num_prompts)
        ]
    )


def as_documents(data: Dataset) -> Dataset:
    """The same rows as plain text, for methods that read documents."""
    return Dataset.from_list([{"text": f"{row['prompt'][0]['content']} {row['solution']}"} for row in data])


def checksum_verdict(prompts: list, completions: list, **_: Any) -> list[float]:
    """A deterministic verdict that an untrained model meets about half of the time."""
    return [float(sum(map(ord, completion[0]["content"])) % 2) for completion in completions]


def never_right(prompts: list, completions: list, **_: Any) -> list[float]:
    """Every rollout fails."""
    return [0.0] * len(completions)


def as_groups(data: Dataset, count: int = 3) -> Dataset:
    """The same rows with a column of groups."""
    return data.add_column("group", [f"group{row % count}" for row in range(len(data))])


@dataclass
class Recorder:
    """A reward function that remembers the prompts and completions it was shown."""

    verdict: Any = checksum_verdict
    seen: list[tuple[str, str]] = field(default_factory=list)
    __name__: str = "verdict"

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float]:
        self.seen += [(p[0]["content"], c[0]["content"]) for p, c in zip(prompts, completions, strict=True)]
        return self.verdict(prompts, completions, **columns)


def build(
    key: str,
    tiny_dir: Path,
    output_dir: Path,
    *,
    reward: Any = None,
    model: Any = None,
    data: Dataset | None = None,
    trainer_kwargs: dict[str, Any] | None = None,
    trainer_class: type | None = None,
    **overrides: Any,
) -> Any:
    """A trainer of the registry entry `key` on the tiny model, built as a user of the Python API would."""
    entry, case = METHODS[key], case_of(key)
    is_policy = entry.generates
    arguments = {**COMMON, **(POLICY if is_policy else SUPERVISED), **case.settings, **overrides}
    data = dataset() if data is None else data
    if "documents" in entry.inputs and {"prompt", "solution"} <= set(data.column_names or ()):
        data = as_documents(data)
    data, further = case.inputs(data)
    extra = {**further, **(trainer_kwargs or {})}
    args = entry.load_config()(output_dir=str(output_dir), **arguments)
    if is_policy:
        extra["reward_funcs"] = Recorder() if reward is None else reward
    return (trainer_class or entry.load_trainer())(
        model=str(tiny_dir) if model is None else model,
        args=args,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(tiny_dir),
        **extra,
    )


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    """A copy of every parameter."""
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def losses(trainer: Any) -> list[float]:
    """Logged training losses in order."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def costs(trainer: Any) -> dict[str, float]:
    """The last logged value of every running total."""
    return {name: value for entry in trainer.state.log_history for name, value in entry.items() if "cost/" in name}


def fresh_model(tiny_dir: Path) -> Any:
    """The tiny model in float32."""
    return AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32)


def gradients(trainer: Any) -> dict[str, torch.Tensor]:
    """Run one optimizer step with the update left out, and return the gradient it would have used.

    The learning rate stays; clipping is off, so that the gradient is the loss's own.
    """
    caught: dict[str, torch.Tensor] = {}
    original = trainer.on_grad_norm

    def catch(norm: float) -> None:
        original(norm)
        for name, parameter in trainer.model.named_parameters():
            if parameter.grad is not None:
                caught[name] = parameter.grad.detach().clone()

    trainer.on_grad_norm = catch
    trainer.train()
    return caught


def relative_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """|left - right| / |right| over all tensors together; 0 if both are exactly zero."""
    assert left.keys() == right.keys()
    if not any(value.any() for value in (*left.values(), *right.values())):
        return 0.0
    difference = sum(((left[k].double() - right[k].double()) ** 2).sum() for k in left)
    size = sum((right[k].double() ** 2).sum() for k in left)
    return float((difference / size) ** 0.5)


def replay(prompts: list, trainer: Any) -> dict[str, Any]:
    """A `rollout_func` whose completions depend on the prompt and the row's place in its group alone.

    The same global batch therefore has the same rollouts however it is spread over ranks. Prompts with an even first
    number never get a right answer (see `marked_right`); of the others about half of the rollouts are right.
    """
    tokenizer = trainer.processing_class
    offset = trainer.accelerator.process_index * len(prompts)
    prompt_ids, completion_ids = [], []
    for row, prompt in enumerate(prompts):
        text, place = prompt[0]["content"], (offset + row) % trainer.num_generations
        number = int(text.split("+")[0])
        right = number % 2 == 1 and (place + number // 2) % 2 == 0
        completion = ("R" if right else "w") + "xyz12"[: 1 + (place + number) % 5]
        prompt_ids.append(encode_prompt(tokenizer, prompt))
        completion_ids.append([*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}


def marked_right(prompts: list, completions: list, **_: Any) -> list[float]:
    """Verdict on replayed completions: those that begin with R."""
    return [float(completion[0]["content"].startswith("R")) for completion in completions]


# Arguments of `build` for a run on replayed rollouts.
REPLAY: dict[str, Any] = {
    "reward": marked_right,
    "trainer_kwargs": {"rollout_func": replay},
    "shuffle_dataset": False,
}
