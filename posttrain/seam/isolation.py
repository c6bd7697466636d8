"""Whether a row is scored as what it is: padded, packed and generated rows against the same row alone.

Measured on a small copy of the model (`models/copies.py`), with what the trainers themselves call: TRL's collator, its
fused head, and position ids from `positions.py`. The copy computes in float32 on the CPU.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from posttrain.errors import PosttrainError, SupportError
from posttrain.models.copies import NoCopy, small_copy
from posttrain.models.positions import with_positions
from posttrain.seam.head import add_selective_scoring
from posttrain.seam.sharding import zero3_disabled

Form = Literal["alone", "causal", "left", "right", "packed", "generated"]
# Largest difference of a token's log-probability, in nats (of one that is below -10: for each ten of them), and of the
# gradient, relative to its norm. Rounding makes 1e-6; architectures that mix rows up are 1e-3 and more apart.
LOGP_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
_LENGTHS = ((3, 6), (7, 2), (1, 4), (5, 5))  # prompt and completion tokens of the rows
_FIRST = 3  # ids below are special
# What each form is, the setting it comes from, and what to do where it goes wrong.
_TOLD: dict[Form, tuple[str, str, str]] = {
    "alone": (
        "the trainers' head scores rows differently from the model's own",
        "model",
        "Choose another model: what this architecture does to its logits is not known to the head",
    ),
    "causal": (
        "a token's score depends on the tokens after it",
        "model",
        "Choose a causal model; some are one only with is_decoder: true in their config.json",
    ),
    "left": (
        "a padded rollout is scored differently from the same row alone",
        "model",
        "Choose another model, or train this one with a supervised method, which pads on the right",
    ),
    "right": (
        "a padded row is scored differently from the same row alone",
        "trainer.per_device_train_batch_size",
        "Set it to 1, or choose another model",
    ),
    "packed": (
        "a packed row is scored differently from its sequences alone",
        "trainer.packing",
        "Set trainer.packing and trainer.padding_free to false",
    ),
    "generated": (
        "a batch of padded prompts is completed differently from each prompt alone",
        "model",
        "Choose another model; rollouts can come from vLLM (rollout.engine), a supervised run can leave data.eval out",
    ),
}


@dataclass(frozen=True)
class Difference:
    """How far a form of a batch is from its rows alone. `reason` is set where it could not be measured."""

    logp: float = 0.0
    gradient: float = 0.0
    reason: str | None = None

    @property
    def is_fine(self) -> bool:
        """Whether nothing but rounding was found; never for NaN."""
        return self.reason is None and self.logp <= LOGP_TOLERANCE and self.gradient <= GRADIENT_TOLERANCE

    def sentence(self) -> str:
        """The figures."""
        if self.reason is not None:
            return self.reason
        return f"log-probabilities by up to {self.logp:.2g} nats, the gradient by {self.gradient:.1%}"


def forms_of(args: Any) -> tuple[Form, ...]:
    """Forms of batches that the trainer of a `PolicyConfig` or `SupervisedConfig` makes."""
    if hasattr(args, "num_generations"):
        return ("alone", "causal", "left") if args.use_vllm else ("alone", "causal", "left", "generated")
    is_flat = args.padding_free or (args.packing and args.packing_strategy != "wrapped")
    return "alone", "causal", "packed" if is_flat else "right"


def isolation_findings(
    config: Any, forms: tuple[Form, ...], *, attention: str | None = None, make: Callable[..., Any] | None = None
) -> Iterator[tuple[bool, PosttrainError]]:
    """(whether it stops the run, finding) about forms of batches in which this architecture mixes rows up.

    Args:
        config: of the model. forms: of the run's batches.
        attention: implementation; the copy takes it where a CPU has it.
        make: as for `small_copy`.
    """
    kind = getattr(config, "model_type", type(config).__name__)
    attention = attention if attention in ("eager", "sdpa") else None
    measured, is_whole = _measured(_key(config), forms, attention, _Unhashed(config, make))
    if isinstance(measured, str):
        yield (
            False,
            SupportError(
                f"whether padding and packing change what a row is scored as was not measured: no small copy of the "
                f"architecture {kind} could be made ({measured})",
                where="model",
            ),
        )
        return
    for form, difference in measured.items():
        what, where, fix = _TOLD[form]
        if difference.reason is not None:
            what = f"the architecture {kind} cannot be computed in the form {form!r}: {difference.reason}"
            # A copy of other sizes may fail where the model does not.
            yield is_whole or form == "alone", SupportError(what, where=where, fix=fix)
        elif not difference.is_fine:
            what = f"{what}: {difference.sentence()} (measured on a small copy of the architecture {kind})"
            yield True, SupportError(what, where=where, fix=fix)


def refuse_mixed_rows(model: Any, args: Any) -> None:
    """Raise the finding about a trainer's batches that stops a run; warn of the others.

    Args:
        model: of the trainer, unwrapped. args: of the trainer.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    attention = getattr(base.config, "_attn_implementation", None)
    found = list(isolation_findings(base.config, forms_of(args), attention=attention, make=type(base)._from_config))
    for stops, finding in found:
        if stops:
            raise finding
    for _, finding in found:
        warnings.warn(str(finding), UserWarning, stacklevel=3)


def refuse_padded_prompts(model: Any, settings: Any) -> None:
    """Raise where an evaluation's padded prompts would be completed differently from each prompt alone.

    Args:
        model: as loaded.
        settings: an `EvalSettings`; the completions of one prompt fill as many rows of a batch.

    Raises:
        SupportError: with the figures.
    """
    together = settings.num_generations
    if settings.batch_size // together <= 1:
        return
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    attention = getattr(base.config, "_attn_implementation", None)
    make = type(base)._from_config
    for stops, found in isolation_findings(base.config, ("generated",), attention=attention, make=make):
        if stops:
            fix = f"Set it to {together}: then no prompt is padded"
            raise SupportError(found.what, where="eval.batch_size", got=settings.batch_size, fix=fix)


def score_as_sampled(model: Any, args: Any) -> None:
    """Prepare the model of a policy trainer: `refuse_mixed_rows`, and no dropout.

    Rollouts come from a model at rest; dropout would score them as those of another one, at random.
    Left as it is: dropout of adapters, which the recipe sets itself.
    """
    refuse_mixed_rows(model, args)
    without_dropout(model)


def without_dropout(model: torch.nn.Module) -> None:
    """Set every dropout of the modules to 0, those of adapters excepted."""
    for name, module in model.named_modules():
        if "lora_" in name:
            continue
        is_dropout = "Dropout" in type(module).__name__
        for key, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in key or (is_dropout and key == "p")):
                setattr(module, key, 0.0)


@dataclass(frozen=True)
class _Unhashed:
    """What a measurement needs beside its key; equal to every other."""

    config: Any
    make: Callable[..., Any] | None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unhashed)

    def __hash__(self) -> int:
        return 0


def _key(config: Any) -> str:
    """What a configuration says of the computation."""
    left_out = ("dtype", "torch_dtype", "transformers_version", "architectures", "use_cache", "id2label", "label2id")
    values = {key: value for key, value in config.to_dict().items() if key[0] != "_" and key not in left_out}
    return json.dumps({k: v for k, v in values.items() if not k.endswith("token_id")}, sort_keys=True, default=str)


@functools.lru_cache(maxsize=256)
def _measured(
    key: str, forms: tuple[Form, ...], attention: str | None, given: _Unhashed
) -> tuple[dict[Form, Difference] | str, bool]:
    """(differences, or why there are none; whether the copy has the model's own sizes)."""
    with zero3_disabled(), torch.device("cpu"):
        try:
            small = small_copy(given.config, make=given.make, attention=attention)
        except NoCopy as problem:
            return str(problem), False
        return measure(small.model, forms), small.is_whole


class _Rows:
    """Random rows of a copy, and what plain forwards say of each alone."""

    def __init__(self, model: PreTrainedModel):
        generator = torch.Generator().manual_seed(1)
        text = model.config.get_text_config(decoder=True)
        top = min(int(getattr(text, "vocab_size", 64)), 256)
        self.model, self.pad = model, 0
        self.prompts = [torch.randint(_FIRST, top, (length,), generator=generator) for length, _ in _LENGTHS]
        self.completions = [torch.randint(_FIRST, top, (length,), generator=generator) for _, length in _LENGTHS]
        self.rows = [torch.cat(pair) for pair in zip(self.prompts, self.completions, strict=True)]

    @functools.cached_property
    def alone(self) -> tuple[list[Tensor], Tensor]:
        """(log-probs of each row's completion, gradient of their sum)."""
        found = []
        for prompt, row in zip(self.prompts, self.rows, strict=True):
            logits = self.model(input_ids=row[None], use_cache=False).logits[0].float()
            found.append(_picked(logits[len(prompt) - 1 : -1], row[len(prompt) :]))
        return [logps.detach() for logps in found], _gradient(self.model, torch.cat(found).sum())


def measure(model: PreTrainedModel, forms: tuple[Form, ...]) -> dict[Form, Difference]:
    """How far each form of a batch is from its rows alone.

    Args:
        model: from `small_copy`; its forward is given the trainers' head.
        forms: alone = a row by the trainers' head against the model's own; causal = a row against its beginning;
            left = prompts padded on the left and completions on the right, as rollouts are; right = rows padded on the
            right; packed = rows laid after one another without padding; generated = tokens that `generate` made from a
            left-padded batch, with its cache.
    """
    add_fused_lm_head(model)
    add_selective_scoring(model, logits_budget_bytes=2**26, entropy_gradient=False)
    rows = _Rows(model)
    found: dict[Form, Difference] = {}
    for form in forms:
        try:
            found[form] = _MEASURES[form](rows)
        except Exception as problem:  # noqa: BLE001 - a model's own code may raise anything
            found[form] = Difference(reason=f"{type(problem).__name__}: {' '.join(str(problem).split())[:160]}")
    return found


def _picked(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


def _apart(logps: Tensor, alone: Tensor) -> float:
    """Largest difference; what rounds more because it is larger counts by its size."""
    return float(((logps - alone).abs() / (alone.abs() / 10).clamp(min=1)).max())


def _gradient(model: PreTrainedModel, value: Tensor) -> Tensor:
    weights = [weight for weight in model.parameters() if weight.requires_grad and weight.is_floating_point()]
    found = torch.autograd.grad(value, weights, allow_unused=True)
    parts = [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]
    return torch.cat([part.flatten() for part in parts])


def _compared(rows: _Rows, logps: list[Tensor]) -> Difference:
    alone, gradient = rows.alone
    apart = max(_apart(ours.detach(), theirs) for ours, theirs in zip(logps, alone, strict=True))
    own = _gradient(rows.model, torch.cat(logps).sum())
    return Difference(apart, float((own - gradient).norm() / gradient.norm()))


def _scored(rows: _Rows, batch: dict[str, Any]) -> Tensor:
    """(B, S-1) log-probs as the trainers compute them."""
    outputs = rows.model(**with_positions(rows.model, batch), use_cache=False, fused_lm_head=True)
    return outputs.log_probs


def _alone(rows: _Rows) -> Difference:
    logps = []
    for prompt, row in zip(rows.prompts, rows.rows, strict=True):
        labels = row.clone()
        labels[: len(prompt)] = -100
        batch = {"input_ids": row[None], "attention_mask": torch.ones_like(row)[None], "labels": labels[None]}
        logps.append(_scored(rows, batch)[0, len(prompt) - 1 :])
    return _compared(rows, logps)


def _causal(rows: _Rows) -> Difference:
    apart = 0.0
    with torch.no_grad():
        for row in rows.rows:
            whole = rows.model(input_ids=row[None], use_cache=False).logits[0].float().log_softmax(-1)
            half = len(row) // 2
            part = rows.model(input_ids=row[None, :half], use_cache=False).logits[0].float().log_softmax(-1)
            apart = max(apart, _apart(whole[:half], part))
    return Difference(apart)


def _padded(rows: list[Tensor], *, side: str, fill: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill, padding_side=side)


def _left(rows: _Rows) -> Difference:
    """As the policy trainers lay out rollouts, in training."""
    given = _padded(rows.prompts, side="left", fill=rows.pad)
    ids = torch.cat([given, _padded(rows.completions, side="right", fill=rows.pad)], dim=1)
    ones = [torch.ones_like(prompt) for prompt in rows.prompts], [torch.ones_like(row) for row in rows.completions]
    mask = torch.cat([_padded(ones[0], side="left", fill=0), _padded(ones[1], side="right", fill=0)], dim=1)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, : given.size(1)] = -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    _ = rows.alone  # at rest
    without_dropout(rows.model.train())
    try:
        with torch.random.fork_rng(devices=[]):
            logps = _scored(rows, batch)[:, given.size(1) - 1 :]
    finally:
        rows.model.eval()
    return _compared(rows, [row[: len(tokens)] for row, tokens in zip(logps, rows.completions, strict=True)])


def _collated(rows: _Rows, *, padding_free: bool) -> dict[str, Any]:
    collator = DataCollatorForLanguageModeling(pad_token_id=rows.pad, padding_free=padding_free)
    examples = []
    for prompt, row in zip(rows.prompts, rows.rows, strict=True):
        labels = [-100] * len(prompt) + row[len(prompt) :].tolist()
        examples.append({"input_ids": row.tolist(), "labels": labels})
    return dict(collator(examples))


def _right(rows: _Rows) -> Difference:
    """As the supervised trainers pad rows."""
    logps = _scored(rows, _collated(rows, padding_free=False))
    ends = zip(logps, rows.prompts, rows.rows, strict=True)
    return _compared(rows, [line[len(prompt) - 1 : len(row) - 1] for line, prompt, row in ends])


def _packed(rows: _Rows) -> Difference:
    """As the supervised trainers lay rows after one another."""
    logps = _scored(rows, _collated(rows, padding_free=True))[0]
    found, start = [], 0
    for prompt, row in zip(rows.prompts, rows.rows, strict=True):
        found.append(logps[start + len(prompt) - 1 : start + len(row) - 1])
        start += len(row)
    return _compared(rows, found)


def _generated(rows: _Rows) -> Difference:
    """Log-probs behind generated tokens, against those of prompt and tokens alone without a cache."""
    ids = _padded(rows.prompts, side="left", fill=rows.pad)
    mask = _padded([torch.ones_like(prompt) for prompt in rows.prompts], side="left", fill=0)
    config = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=rows.pad, eos_token_id=None)
    config.update(return_dict_in_generate=True, output_logits=True, disable_compile=True)
    with torch.no_grad():
        made = rows.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        apart = 0.0
        for index, prompt in enumerate(rows.prompts):
            row = torch.cat([prompt, made.sequences[index, ids.size(1) :]])
            logits = rows.model(input_ids=row[None], use_cache=False).logits[0].float()[len(prompt) - 1 : -1]
            theirs = torch.stack([step[index].float() for step in made.logits])
            apart = max(apart, _apart(theirs.log_softmax(-1), logits.log_softmax(-1)))
    return Difference(apart)


_MEASURES: dict[Form, Callable[[_Rows], Difference]] = {
    "alone": _alone,
    "causal": _causal,
    "left": _left,
    "right": _right,
    "packed": _packed,
    "generated": _generated,
}
