"""Seeded evaluation by generation: complete prompts, ask the verifier for its verdict, count.

The model and the random number generators are left exactly as found. Every completion is sampled from a stream of its
own, so its text depends neither on the batch size nor on the number of processes.
Left out: engines other than `model.generate`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import numbers
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from posttrain.data.rendering import completion_text, encode_prompt, template_inputs
from posttrain.errors import ConfigError, DataError, RewardError
from posttrain.evaluation.results import EvalResult, EvalSettings, Sample, summarise, summarise_groups
from posttrain.models.generation_settings import plain_generation
from posttrain.rewards.scorer import RewardScorer

__all__ = ["EvalResult", "EvalSettings", "evaluate", "stop_token_ids"]

Progress = Callable[[int, int], None]
_logger = logging.getLogger(__name__)


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    dataset: Any,
    verifier: Callable[..., Sequence[float | None]],
    *,
    settings: EvalSettings,
    progress: Progress | None = None,
    accelerator: Any = None,
    success_threshold: float = 1.0,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> EvalResult:
    """Complete a seeded choice of prompts and report how often the verifier accepts the completion.

    Args:
        model: causal LM; also PEFT, or wrapped by DDP. Under several processes every rank must call this.
        tokenizer: with a chat template if prompts are messages; its padding side does not matter.
        dataset: rows (Dataset or list of dict) with `prompt` (messages or str), optionally `answer`, `group`.
        verifier: reward function `(prompts, completions, **columns) -> list`; None or NaN means no verdict. Where a
            `RewardScorer` fails, the row has no verdict and is counted as failed; any other function may not raise.
        settings: the `eval` block, with `max_new_tokens`. Repetition penalty, top-k and the like are off.
        progress: called on the main process with (prompts done, prompts in all) after each batch.
        accelerator: `accelerate.Accelerator`; ranks share the prompts and all return the same. None = one process.
        success_threshold: a completion counts as correct if the verifier's value is at least this, cut off or not.
        chat_template_kwargs: as given to the trainer, so that evaluation sees the prompts of training.

    Returns:
        EvalResult, samples in dataset order. At least one batch is done whatever the time budget; prompts are visited
        in random order, so a `partial` result is a random sample too.

    Raises:
        ConfigError, DataError: unusable settings or rows. RewardError, on every rank: a failing verifier.
    """
    started = time.monotonic()
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator is not None else (0, 1)
    order, encoded = _checked_prompts(tokenizer, dataset, settings, chat_template_kwargs or {})
    model = _unwrap(model, accelerator)
    per_rank = max(1, settings.batch_size // settings.num_generations)
    samples: list[Sample] = []
    done = 0
    with as_found(model):
        while done < len(order):
            in_round = order[done : done + per_rank * world]
            mine = numpy.array_split(numpy.array(in_round), world)[rank].tolist()
            # A rank without a prompt completes one and drops it: sharded models need every rank in the forward.
            batch = _generate(model, tokenizer, {index: encoded[index] for index in mine or in_round[:1]}, settings)
            error = None
            try:
                samples += _with_verdicts(batch if mine else [], dataset, verifier, success_threshold)
            except RewardError as problem:
                error = str(problem).removeprefix("eval: ").removesuffix(".")
            done += len(in_round)
            if progress is not None and rank == 0:
                progress(done, len(order))
            if _any_rank_stops(_is_spent(settings, started), error, world):
                break
    result = _result(_gathered(samples, world), num_done=done, num_requested=len(order), started=started)
    if rank == 0 and result.failed:
        first = next(sample["failed"] for sample in result.samples if sample["failed"] is not None)
        _logger.warning(
            "the verifier failed on %d of %d completions, first: %s", result.failed, result.num_samples, first
        )
    return result


def stop_token_ids(tokenizer: Any, model: Any) -> list[int]:
    """Sorted ids that end a completion: the tokenizer's EOS and all EOS ids of the model's generation config."""
    found: set[int] = set()
    for ids in (tokenizer.eos_token_id, model.generation_config.eos_token_id):
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    return sorted(found)


class _SeededSampling(LogitsProcessor):
    """Leaves only the token that one uniform number a row and position picks; greedy decoding then samples it.

    Upstream draws all rows of a batch from the global generator, which ties a row's text to its neighbours.
    """

    def __init__(self, streams: Tensor, *, prompt_length: int, settings: EvalSettings):
        self.streams = streams  # (B, max_new_tokens) in [0, 1)
        self.prompt_length = prompt_length
        self.temperature = settings.temperature
        self.cut = TopPLogitsWarper(settings.top_p) if settings.top_p < 1 else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores / self.temperature
        if self.cut is not None:
            scores = self.cut(input_ids, scores)
        position = input_ids.shape[1] - self.prompt_length
        cumulative = scores.to(self.streams.dtype).softmax(-1).cumsum(-1)  # (B, V)
        target = self.streams[:, position : position + 1] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, target, right=True).clamp_(max=scores.shape[1] - 1)
        return torch.full_like(scores, -math.inf).scatter_(1, token, 0.0)


def _streams(keys: list[tuple[int, int]], settings: EvalSettings, device: torch.device) -> Tensor:
    """(B, max_new_tokens) uniform numbers; a row depends only on (seed, row index, sample number)."""
    rows = []
    for index, number in keys:
        digest = hashlib.blake2b(f"{settings.seed}:{index}:{number}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        rows.append(torch.rand(settings.max_new_tokens, generator=generator, dtype=torch.float64))
    # float64 does not exist on Apple GPUs.
    return torch.stack(rows).to(device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)


def _checked_prompts(
    tokenizer: Any, dataset: Any, settings: EvalSettings, chat_template_kwargs: dict[str, Any]
) -> tuple[list[int], dict[int, list[int]]]:
    """Row indices in the order of the visit, and the token ids of their prompts; a smaller choice is its beginning."""
    if settings.max_new_tokens is None:
        raise ConfigError("not set", where="eval.max_new_tokens", allowed="integer >= 1", fix="Give a number")
    if len(dataset) == 0:
        raise DataError("no rows to evaluate", where="eval data", fix="Give data.eval rows, or remove the eval block")
    shuffled = random.Random(settings.seed).sample(range(len(dataset)), len(dataset))
    order = shuffled[: settings.num_prompts]
    rows = ((index, dataset[index]) for index in order)
    return order, {
        index: encode_prompt(tokenizer, row["prompt"], **template_inputs(row, chat_template_kwargs))
        for index, row in rows
    }


def _generate(model: Any, tokenizer: Any, prompts: dict[int, list[int]], settings: EvalSettings) -> list[Sample]:
    """Complete every prompt `num_generations` times in one call of `model.generate`; samples without verdicts.

    Args:
        prompts: token ids by row index of the dataset.
    """
    device = next(model.parameters()).device
    stops = stop_token_ids(tokenizer, model)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (stops or [0])[0]
    keys = [(index, number) for index in prompts for number in range(settings.num_generations)]
    width = max(len(ids) for ids in prompts.values())
    input_ids = torch.full((len(keys), width), pad, dtype=torch.long)  # (B, P), left-padded
    mask = torch.zeros_like(input_ids)
    for row, (index, _) in enumerate(keys):
        ids = prompts[index]
        input_ids[row, width - len(ids) :] = torch.tensor(ids)
        mask[row, width - len(ids) :] = 1
    processors = LogitsProcessorList()
    if settings.temperature > 0:
        processors.append(_SeededSampling(_streams(keys, settings, device), prompt_length=width, settings=settings))
    with plain_generation(model):
        output = model.generate(
            input_ids=input_ids.to(device),
            attention_mask=mask.to(device),
            generation_config=_generation_config(settings, pad, stops),
            logits_processor=processors,
        )[:, width:].tolist()
    samples = []
    for (index, number), ids in zip(keys, output, strict=True):
        end = next((place + 1 for place, token in enumerate(ids) if token in stops), None)
        text = completion_text(tokenizer, ids[:end], {*stops, pad})
        samples.append(
            {
                "index": index,
                "sample": number,
                "completion": text,
                "completion_ids": ids[:end],
                "truncated": end is None,
            }
        )
    return samples


def _generation_config(settings: EvalSettings, pad: int, stops: list[int]) -> GenerationConfig:
    """Greedy and nothing else; the model's own settings are put aside (`plain_generation`)."""
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=stops or None,
    )


def _with_verdicts(
    batch: list[Sample], dataset: Any, verifier: Callable[..., Any], success_threshold: float
) -> list[Sample]:
    """The finished samples: with the row's columns, `value` and `correct`, and without token ids."""
    if not batch:
        return []
    rows = [dict(dataset[sample["index"]]) for sample in batch]
    completions = [
        sample["completion"] if isinstance(row["prompt"], str) else [_assistant(sample["completion"])]
        for sample, row in zip(batch, rows, strict=True)
    ]
    names = sorted(set().union(*rows) - {"prompt", "completion", "completion_ids"})
    arguments: dict[str, Any] = {name: [row.get(name) for row in rows] for name in names}
    arguments |= {"prompts": [row["prompt"] for row in rows], "completions": completions}
    arguments["completion_ids"] = [sample["completion_ids"] for sample in batch]
    # TRL gives reward functions these too; there is no training state or log here.
    arguments |= {"trainer_state": None, "log_extra": _ignore, "log_metric": _ignore}
    try:
        values = verifier(**arguments)
    except RewardError:
        raise
    except Exception as problem:  # noqa: BLE001 - user code may raise anything; every rank must hear of it
        raise RewardError(
            f"the verifier raised {type(problem).__name__}: {problem}",
            where="eval",
            fix="Return None for a completion that cannot be judged",
        ) from problem
    # Only a scorer knows why it failed on a row; a plain function that raises stops the evaluation above.
    outcomes = verifier.outcomes if isinstance(verifier, RewardScorer) else []
    reasons = [outcome.reason for outcome in outcomes] or [None] * len(batch)
    return [
        {
            "index": sample["index"],
            "sample": sample["sample"],
            "group": None if row.get("group") is None else str(row["group"]),
            "prompt": row["prompt"],
            "answer": row.get("answer"),
            "completion": sample["completion"],
            "value": value,
            "failed": reason,
            "correct": None if value is None else value >= success_threshold,
            "length": len(sample["completion_ids"]),
            "truncated": sample["truncated"],
        }
        for sample, row, value, reason in zip(batch, rows, _checked(values, len(batch)), reasons, strict=True)
    ]


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _checked(values: Any, count: int) -> list[float | None]:
    """One float or None a completion; NaN means None, as in training."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, list | tuple) or len(values) != count:
        got = f"{len(values)} values" if isinstance(values, list | tuple) else type(values).__name__
        raise RewardError(
            f"the verifier must return a list with one value for each of {count} completions, got {got}", where="eval"
        )
    checked: list[float | None] = []
    for value in values:
        if value is not None and not isinstance(value, numbers.Real):
            raise RewardError(f"the verifier returned {value!r}, allowed: a number or None", where="eval")
        checked.append(None if value is None or math.isnan(value) else float(value))
    return checked


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the mode of every module and all generators are as before."""
    modes = [(module, module.training) for module in model.modules()]
    python_state, numpy_state, torch_state = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    # Only this process's device: asking for all of them would open a context on each.
    cuda_state = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    model.eval()
    try:
        # Not inference mode: buffers that a first forward creates would be unusable in training.
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state)


def _unwrap(model: Any, accelerator: Any) -> Any:
    if accelerator is not None:
        return accelerator.unwrap_model(model)
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) else model


def _is_spent(settings: EvalSettings, started: float) -> bool:
    budget = settings.time_budget_seconds
    return budget is not None and time.monotonic() - started >= budget


def _any_rank_stops(spent: bool, error: str | None, world: int) -> bool:
    """Collective, once a batch: all ranks stop if one's time is spent, and raise if one's verifier failed."""
    reports = _gathered([(spent, error)], world)
    for _, problem in reports:
        if problem is not None:
            told = RewardError(problem, where="eval")
            told.is_shared = True
            raise told
    return any(over for over, _ in reports)


def _gathered(items: list[Any], world: int) -> list[Any]:
    if world == 1:
        return items
    parts: list[Any] = [None] * world
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def _result(samples: list[Sample], *, num_done: int, num_requested: int, started: float) -> EvalResult:
    samples = sorted(samples, key=lambda sample: (sample["index"], sample["sample"]))
    return EvalResult(
        **vars(summarise(samples)),
        num_requested=num_requested,
        num_tokens=sum(sample["length"] for sample in samples),
        seconds=time.monotonic() - started,
        partial=num_done < num_requested,
        per_group=summarise_groups(samples),
        samples=samples,
    )


def _ignore(*_: Any, **__: Any) -> None:
    return None
