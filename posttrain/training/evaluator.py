"""How a run evaluates: the only place where a recipe becomes an evaluation, in training and after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from posttrain.config.build import reward_scorer
from posttrain.config.verdict import evaluation_settings, template_variables, verifier_name
from posttrain.errors import ConfigError
from posttrain.evaluation.generate import EvalSettings, evaluate
from posttrain.seam.device import device_defaults


def recipe_evaluator(
    config: Any,
    *,
    tokenizer: Any,
    rows: Any,
    accelerator: Any,
    verifier: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> tuple[Callable[..., Any], Any]:
    """How one run evaluates: the only place where a recipe becomes an evaluation, in training and after it.

    Args:
        config: blocks without stages.
        tokenizer: of the model.
        rows: evaluation rows.
        accelerator: `accelerate.Accelerator`; generation runs in its mixed precision.
        verifier: reward that gives the verdict; None = `verifier_name(config)`.
        changes: settings in place of the recipe's.

    Returns:
        (evaluate(model, progress=None) -> EvalResult, its `EvalSettings`).

    Raises:
        ConfigError: no reward gives a verdict; see `verifier_name`.
    """

    name = verifier or verifier_name(config)
    if name is None:
        raise ConfigError(
            "no reward gives a verdict", where=config.where("eval", "verifier"), fix="Set it, e.g. eval.verifier=exact"
        )
    settings = EvalSettings(**{**evaluation_settings(config), **(changes or {})})
    scorer = reward_scorer(config, name, evaluation=True)

    def call(model: Any, progress: Callable[[int, int], None] | None = None) -> Any:
        # accelerate wraps a model that is being trained in this very context, and no other.
        with accelerator.autocast():
            return evaluate(
                model,
                tokenizer,
                rows,
                scorer,
                settings=settings,
                progress=progress,
                accelerator=accelerator,
                success_threshold=getattr(config.method, "success_threshold", 1.0),
                chat_template_kwargs=template_variables(config),
            )

    return call, settings


def precision(config: Any) -> dict[str, Any]:
    """Keywords of `Accelerator` that give the device and the mixed precision of the recipe's training here."""

    fields = ("use_cpu", "bf16", "fp16", "gradient_checkpointing")
    chosen = SimpleNamespace(**{name: getattr(config.trainer, name) for name in fields})
    device_defaults(chosen)
    mixed = "bf16" if chosen.bf16 else "fp16" if chosen.fp16 and not chosen.use_cpu else "no"
    return {"cpu": bool(chosen.use_cpu), "mixed_precision": mixed}
