"""The baseline of ReMax: one greedy completion of each prompt, scored like the rollouts and trained on nowhere.

Left out: vLLM, tools, images and rollout functions of the user's own, which are refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from trl.chat_template_utils import parse_response

from posttrain.errors import SupportError

if TYPE_CHECKING:
    from posttrain.seam.policy.trainer import PolicyTrainer

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "do_sample")


def refuse_greedy(trainer: PolicyTrainer) -> None:
    """Raise SupportError where a greedy completion cannot be made by the model itself."""
    for what, is_there in (("a rollout_func", trainer.rollout_func), ("tools", trainer.tools)):
        if is_there:
            raise SupportError(
                f"the greedy completion that remax compares with cannot be made with {what}",
                where="method.advantage_estimator",
                got="remax",
                fix="Choose rloo, or leave it out",
            )


def greedy_baseline(trainer: PolicyTrainer, inputs: list[dict[str, Any]], tensors: dict[str, Any]) -> Tensor:
    """Weighted reward of a greedy completion of each row's prompt; every rank, once per generation batch.

    Its tokens are added to `cost/generated_tokens`. A prompt whose group lies on two ranks is completed on both, and
    ranks with fewer prompts repeat their last one, since all must generate and score equally often.

    Args:
        inputs: this rank's rows; the rows of a prompt are adjacent.
        tensors: the batch of the sampled rollouts; `prompt_ids` and `prompt_mask` are read.

    Returns:
        (W*B,) in dataset order, NaN where no reward scored the greedy completion.

    Source: arXiv 2310.10505, algorithm 2.
    """
    if "pixel_values" in tensors:
        raise SupportError("remax is not made for images", where="method.advantage_estimator", got="remax")
    size, rank, world = len(inputs), trainer.args.process_index, trainer.accelerator.num_processes
    rows, place_of = completed_rows(size, rank=rank, world=world, num_generations=trainer.num_generations)
    prompt_ids = [tensors["prompt_ids"][row][tensors["prompt_mask"][row].bool()].tolist() for row in rows]
    with _greedy(trainer):
        completion_ids, _ = trainer._generate_single_turn(prompt_ids, None, {}, 1)
    spent = torch.tensor(sum(map(len, completion_ids)), device=trainer.accelerator.device)
    trainer.add_cost("generated_tokens", int(trainer.accelerator.reduce(spent, reduction="sum")))
    chosen = [inputs[row] for row in rows]
    prompts = [row["prompt"] for row in chosen]
    completions = _completions(trainer, prompts, prompt_ids, completion_ids)
    # What the rewards log belongs to the rollouts.
    apart: Any = defaultdict(list)
    with _unlogged(trainer):
        rewards, is_failed = trainer.scored(chosen, prompts, completions, completion_ids, metrics=apart)
    totals = trainer.total_rewards(rewards.masked_fill(is_failed.unsqueeze(1), torch.nan))
    baseline = trainer.accelerator.gather(totals[rank * len(rows) :][place_of])
    trainer.log_metric("rollout/greedy_reward_mean", float(baseline.nanmean()))
    return baseline


def _completions(trainer: PolicyTrainer, prompts: list[Any], prompt_ids: list[Any], ids: list[Any]) -> list[Any]:
    """What rewards read, made of the tokens as it is made of the rollouts."""
    tokenizer = trainer._tokenizer
    if isinstance(prompts[0], str):
        return trainer.read_completions(ids, [""] * len(ids))
    if any(getattr(tokenizer, name, None) is not None for name in ("response_template", "response_schema")):
        pairs = zip(prompt_ids, ids, strict=True)
        return [[parse_response(tokenizer, made, prefix=prompt, tools=trainer.tools)] for prompt, made in pairs]
    return trainer.read_completions(ids, [[]] * len(ids))


def completed_rows(size: int, *, rank: int, world: int, num_generations: int) -> tuple[list[int], list[int]]:
    """Which rows of a rank stand for its prompts.

    Args:
        size: B, rows of a rank; row i of rank r is row r*B + i of the generation batch.
        rank, world: of W ranks.
        num_generations: G; rows k*G ... k*G+G-1 of the generation batch belong to one prompt.

    Returns:
        (rows whose prompts are completed, equally many on every rank; for each of the B rows, its place in that list).
    """
    touched = [{(r * size + row) // num_generations for row in range(size)} for r in range(world)]
    prompts = sorted(touched[rank])
    rows = [max(0, prompt * num_generations - rank * size) for prompt in prompts]
    rows += rows[-1:] * (max(map(len, touched)) - len(rows))
    return rows, [prompts.index((rank * size + row) // num_generations) for row in range(size)]


@contextmanager
def _unlogged(trainer: PolicyTrainer) -> Iterator[None]:
    """Rewards may call log_metric and log_extra; trl 1.16 keeps those values here until the next generation batch."""
    saved = trainer._pending_extra_logs, trainer._pending_metrics
    trainer._pending_extra_logs, trainer._pending_metrics = defaultdict(list), defaultdict(list)
    try:
        yield
    finally:
        trainer._pending_extra_logs, trainer._pending_metrics = saved


@contextmanager
def _greedy(trainer: PolicyTrainer) -> Iterator[None]:
    """The trainer's generation without sampling. trl 1.16 reads the settings from both of these attributes."""
    saved = trainer.generation_config, trainer.generation_kwargs
    plain = {name: value for name, value in trainer.generation_kwargs.items() if name not in _SAMPLING}
    trainer.generation_kwargs = {**plain, "do_sample": False}
    trainer.generation_config = GenerationConfig(**trainer.generation_kwargs, disable_compile=True)
    try:
        yield
    finally:
        trainer.generation_config, trainer.generation_kwargs = saved
