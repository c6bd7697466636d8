"""Facts that two files must agree on: tokens and rows of embeddings, lengths of rows and positions, configuration and
weights; and whether the architecture scores a row as what it is in the batches of the run.

Values are the resolved ones: what the model, the tokenizer and the method's config class make of the recipe.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import AutoQuantizationConfig

from posttrain.config.model_facts import ModelFacts
from posttrain.config.run_config import RunConfig
from posttrain.config.verdict import evaluation_settings
from posttrain.errors import ConfigError, DataError, PosttrainError, SupportError
from posttrain.models.weights import load_faults, tried
from posttrain.preflight import model as checks_model
from posttrain.preflight.data import Rows, prompt_text, rows_text
from posttrain.preflight.length_budget import LengthBudget
from posttrain.preflight.template import PromptEncoder
from posttrain.seam.isolation import forms_of, isolation_findings

Finding = tuple[bool, PosttrainError]
# Tokens that a template may write around each message, on top of what it wrote around the first row's text.
_AROUND = 64
_OPENED = ("mxfp4", "fp8")  # methods whose weights transformers can turn back into whole ones while it loads them
_SAMPLED = ("train", "validation", "retain")  # splits whose prompts a policy method completes
_FEW = 8  # positions, so that some of the measured rows are longer


def isolation(cfg: RunConfig, facts: ModelFacts, args: Any) -> Iterator[Finding]:
    """(whether it stops the run, finding) about batches in which the architecture mixes rows up."""
    forms = forms_of(args)
    if cfg.data.eval is not None or cfg.data.eval_tasks:
        forms = (*forms, *(() if "generated" in forms else ("generated",)))
    make = functools.partial(AutoModelForCausalLM.from_config, trust_remote_code=cfg.model.trust_remote_code)
    config = straddled(facts.config, _longest(cfg, facts, args))
    if config is facts.config:
        yield from isolation_findings(config, forms, attention=facts.attention, make=make)
    else:
        yield from isolation_findings(facts.config, ("alone", "causal"), attention=facts.attention, make=make)
        for stops, found in isolation_findings(config, forms[2:], attention=facts.attention, make=make):
            first = facts.config.rope_parameters["original_max_position_embeddings"]
            fix = f"Keep rows within {first} tokens: beyond them a batch's longest row decides how all are turned"
            yield stops, type(found)(found.what, where=found.where, fix=fix)
    if getattr(args, "packing", False) and args.packing_strategy == "wrapped":
        what = "a wrapped row holds ends of other rows, and its tokens see those before them"
        yield (
            False,
            ConfigError(what, where=cfg.where("trainer", "packing_strategy"), got="wrapped", fix="Set it to bfd"),
        )


def straddled(config: Any, longest: int | None) -> Any:
    """The configuration, with its first range of positions cut to few where the run's rows can leave it.

    transformers 5.17: rope_type longrope turns all rows of a batch otherwise once one of them leaves that range. A
    measurement on short rows shows it only where the range is shorter still.
    """
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict) or rope.get("rope_type") != "longrope" or longest is None:
        return config
    if longest <= (rope.get("original_max_position_embeddings") or longest):
        return config
    config = copy.deepcopy(config)
    config.rope_parameters = {**rope, "original_max_position_embeddings": _FEW}
    config.original_max_position_embeddings = _FEW
    return config


def _longest(cfg: RunConfig, facts: ModelFacts, args: Any) -> int | None:
    """Tokens that a row of the run may have; None without a limit."""
    if cfg.rollout is not None:
        return int(cfg.data.max_prompt_length + cfg.rollout.max_completion_length)
    return facts.max_positions if args.max_length is None else int(args.max_length)


# ---- tokens ----


def token_findings(cfg: RunConfig, facts: ModelFacts, tokenizer: Any) -> Iterator[Finding]:
    """Special tokens beyond the model's embeddings, and the two files' words about where a completion ends."""
    where = cfg.where("model")
    for name in ("pad_token", "eos_token", "bos_token"):
        token = getattr(tokenizer, f"{name}_id")
        if token is not None and token >= facts.token_rows:
            what = f"the tokenizer's {name} {getattr(tokenizer, name)!r} has no row in the model's embeddings"
            yield (
                name != "bos_token",
                ConfigError(
                    what,
                    where=where,
                    got=f"id {token}",
                    allowed=f"below {facts.token_rows}",
                    fix="Use the tokenizer that the model was trained with, or give the model more rows",
                ),
            )
    ends = getattr(facts.config, "eos_token_id", None) if cfg.model.path is not None else None
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    if ends and tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
        what = (
            f"the model's config.json ends at {_named(tokenizer, ends)}, the tokenizer at {tokenizer.eos_token!r} "
            f"(id {tokenizer.eos_token_id}), which is trained"
        )
        yield False, ConfigError(what, where=where, fix="Set eos_token in tokenizer_config.json if the other is meant")


def unknown_tokens(
    cfg: RunConfig, facts: ModelFacts, encoder: PromptEncoder, rows: Rows, budget: LengthBudget, *, trained: bool
) -> Iterator[Finding]:
    """Rows that use tokens beyond the model's embeddings; a warning where there are such tokens and no row has one."""
    tokenizer = encoder.tokenizer
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest < facts.token_rows:
        return
    used: dict[int, set[int]] = {}
    for index, (given, learnt) in _encoded(encoder, rows, budget, trained=trained):
        unknown = {token for token in (*given, *learnt) if token >= facts.token_rows}
        if unknown:
            used[index] = unknown
    what = f"the tokenizer has {len(tokenizer)} tokens, the model {facts.token_rows} rows of embeddings"
    fix = "Give the model more rows (resize_token_embeddings, then save it), or use the tokenizer it was trained with"
    if used:
        tokens = sorted(set().union(*used.values()))
        what += f"; {len(used)} of {len(rows)} rows use {_named(tokenizer, tokens)} ({rows_text(used)})"
        yield True, DataError(what, where=cfg.where("data", rows.split), fix=fix)
    elif rows.split == "train":
        missing = [token for token in tokenizer.get_vocab().values() if token >= facts.token_rows]
        what += f"; no row of training that was looked at uses {_named(tokenizer, sorted(missing))}"
        yield False, ConfigError(what, where=cfg.where("model"), fix=fix)


def _named(tokenizer: Any, tokens: list[int]) -> str:
    shown = ", ".join(f"{tokenizer.convert_ids_to_tokens(token)!r} (id {token})" for token in tokens[:4])
    return shown + (f" and {len(tokens) - 4} more" if len(tokens) > 4 else "")


# ---- lengths ----


def long_rows(
    cfg: RunConfig, facts: ModelFacts, encoder: PromptEncoder, rows: Rows, budget: LengthBudget, *, trained: bool
) -> Iterator[Finding]:
    """Rows that are longer than the model has positions: those a supervised method learns, probes, and evaluation's
    prompts with what is sampled after them. Rollouts are held against their settings in `checks_model`.
    """
    limit = facts.max_positions
    if limit is None or not len(rows) or (cfg.rollout is not None and rows.split in _SAMPLED):
        return
    more = 0 if trained else _sampled(cfg) - 1  # the last token that is sampled is never read
    sizes = {}
    for index, (given, learnt) in _encoded(encoder, rows, budget, trained=trained, room=limit - more):
        if len(given) + len(learnt) + more > limit:
            sizes[index] = len(given) + len(learnt) + more
    if not sizes:
        return
    longest = max(sizes, key=lambda index: sizes[index])
    rest = f" with {more + 1} sampled tokens" if more else ""
    after = ", and the model cannot read further" if facts.is_learned else "; it would go on at positions it never saw"
    deep = " If it is meant to read further, set model.config_overrides.max_position_embeddings"
    yield (
        trained or facts.is_learned,
        DataError(
            f"{len(sizes)} of {len(rows)} rows{rest} do not fit the model's {limit} positions ({rows_text(sizes)})"
            + after,
            where=cfg.where("data", rows.split),
            got=f"{sizes[longest]} tokens in row {longest}",
            allowed=f"at most {limit}",
            fix=("Shorten or drop these rows." if trained else "Lower eval.max_new_tokens, or drop these rows.")
            + ("" if facts.is_learned else deep),
        ),
    )


def length_settings(cfg: RunConfig, facts: ModelFacts, args: Any) -> Iterator[Finding]:
    """Lengths that settings make, beyond the model's positions: of packed rows, where `wrapped` alone numbers
    positions through them, and of what vLLM is to read.
    """
    engine = args.vllm_max_model_length if getattr(args, "use_vllm", False) else None
    if engine is not None and facts.max_positions is not None and engine > facts.max_positions:
        yield (
            True,
            ConfigError(
                f"vLLM cannot read further than the model's {facts.max_positions} positions",
                where=cfg.where("rollout", "vllm_max_model_length"),
                got=engine,
                allowed=f"at most {facts.max_positions}",
            ),
        )
    if not getattr(args, "packing", False) or facts.max_positions is None or args.max_length is None:
        return
    if args.packing_strategy == "wrapped" and args.max_length > facts.max_positions:
        yield (
            True,
            ConfigError(
                f"wrapped rows of {args.max_length} tokens do not fit the model's {facts.max_positions} positions",
                where=cfg.where("trainer", "max_length"),
                got=args.max_length,
                allowed=f"at most {facts.max_positions}",
                fix="Set trainer.max_length, or trainer.packing_strategy: bfd",
            ),
        )


def _sampled(cfg: RunConfig) -> int:
    return int(evaluation_settings(cfg)["max_new_tokens"])


def _encoded(
    encoder: PromptEncoder, rows: Rows, budget: LengthBudget, *, trained: bool, room: int | None = None
) -> Iterable[tuple[int, tuple[list[int], list[int]]]]:
    """(index, (ids given, ids learnt)) of rows, until the time is spent; without those whose bytes fit `room`."""
    around: int | None = None
    for index, prompt in enumerate(rows.prompts):
        text = rows.solutions[index] if trained else None
        text = text if isinstance(text, str) and text.strip() else None
        if index in rows.dropped or (trained and text is None) or budget.leaves_out(index):
            continue
        # A token covers at least one byte.
        own = len(prompt_text(prompt).encode()) + len((text or "").encode()) + len(str(encoder.inputs(index)).encode())
        turns = 1 if isinstance(prompt, str) else len(prompt)
        if room is not None and around is not None and own + around + _AROUND * turns <= room:
            continue
        if budget.spent(index):
            continue
        ids = encoder.row(index) if text is not None else (encoder.prompt(index), [])
        around = len(ids[0]) + len(ids[1]) if around is None else around
        yield index, ids


# ---- weights ----


def weight_findings(cfg: RunConfig, facts: ModelFacts) -> Iterator[Finding]:
    """What the weight files hold against what the configuration makes; local folders only."""
    stored_otherwise = getattr(facts.config, "quantization_config", None)
    if stored_otherwise:
        yield from _quantised(cfg, stored_otherwise)
    elif facts.stored:
        folder = str(Path(str(cfg.model.path)).expanduser())
        try:
            model, info = tried(folder, facts.config, trusted=cfg.model.trust_remote_code)
        except ConfigError as fault:
            faults = [fault]
        else:
            faults = list(load_faults(model, info, new_head=cfg.model.new_head, unused=cfg.model.unused_weights))
        yield from ((True, checks_model.explained(cfg, fault)) for fault in faults)
    yield from _dtype_findings(cfg, facts)


def _quantised(cfg: RunConfig, block: Any) -> Iterator[Finding]:
    """Weights that are stored in few bits: shapes tell nothing, and upstream trains adapters on them alone."""
    values = block if isinstance(block, dict) else block.to_dict()
    method = str(values.get("quant_method"))
    where = cfg.where("model", "path")
    try:
        AutoQuantizationConfig.from_dict(dict(values))
    except Exception as problem:  # noqa: BLE001 - what the file holds may be anything
        what = f"the model's quantization_config cannot be read: {' '.join(str(problem).split())[:160]}"
        yield True, ConfigError(what, where=where, got=method, fix="Correct config.json of the model")
        return
    fix = "Use the model before it was quantised" + ("" if cfg.model.lora is not None else ", or add model.lora")
    if cfg.model.lora is None and method not in _OPENED:
        what = "the weights are stored quantised, and transformers refuses to train them"
        yield True, SupportError(what, where=where, got=method, fix=fix)
    else:
        what = f"the weights are stored quantised ({method}): whether they load here was not tried"
        yield False, ConfigError(what, where=where, fix=fix + " if they do not")


def _dtype_findings(cfg: RunConfig, facts: ModelFacts) -> Iterator[Finding]:
    """What does not go with the type that `dtype: auto` loads."""
    if cfg.model.dtype != "auto":
        return
    where = cfg.where("model", "dtype")
    if cfg.trainer.fields.get("fp16") and facts.dtype in ("bfloat16", "float16"):
        what = f"dtype auto loads {facts.dtype}, and fp16 scales gradients of float32 weights"
        yield True, ConfigError(what, where=where, got="auto", fix="Set it to float32, or use trainer.bf16")
    if facts.dtype == "float32" and str(cfg.model.attn_implementation).startswith("flash"):
        what = "dtype auto loads float32, and flash attention computes in half precision alone"
        yield (
            True,
            ConfigError(what, where=where, got="auto", fix="Set it to bfloat16, or use attn_implementation sdpa"),
        )
    if facts.dtype != facts.stored_dtype and facts.stored_dtype == "float32":
        what = (
            f"dtype auto follows config.json to {facts.dtype}, and the weights are float32 on disk: they are rounded"
        )
        yield False, ConfigError(what, where=where, got="auto", fix="Set it to float32")
