"""`posttrain eval`: the evaluation of a recipe on any saved model, by the code that evaluates in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# A supervised method has no length of completions to take over.
DEFAULT_NEW_TOKENS = 256


def recipe_evaluator(
    config: Any, *, tokenizer: Any, rows: Any, accelerator: Any
) -> tuple[Callable[..., Any], Any] | None:
    """How one run evaluates: the only place where a recipe becomes an evaluation, in training and after it.

    Args:
        config: blocks without stages.
        tokenizer: of the model.
        rows: evaluation rows, or None.
        accelerator: `accelerate.Accelerator`; generation runs in its mixed precision.

    Returns:
        (evaluate(model, progress=None) -> EvalResult, its `EvalSettings`), or None without rows or verifier.
    """
    from posttrain.config.build import reward_scorer
    from posttrain.evaluation.generate import EvalSettings, evaluate

    name = verifier_name(config)
    if rows is None or name is None:
        return None
    settings = EvalSettings(**evaluation_settings(config))
    verifier = reward_scorer(config, name)

    def call(model: Any, progress: Callable[[int, int], None] | None = None) -> Any:
        # accelerate wraps a model that is being trained in this very context, and no other.
        with accelerator.autocast():
            return evaluate(
                model,
                tokenizer,
                rows,
                verifier,
                settings=settings,
                progress=progress,
                accelerator=accelerator,
                success_threshold=getattr(config.method, "success_threshold", 1.0),
                chat_template_kwargs=template_variables(config),
            )

    return call, settings


def verifier_name(config: Any) -> str | None:
    """Reward whose value is the verdict: that of the eval block, else of the rollout block; None without either."""
    if config.eval is not None and config.eval.verifier is not None:
        return str(config.eval.verifier)
    if config.rollout is None:
        return None
    return str(config.rollout.verifier or config.rollout.rewards[0].name)


def evaluation_settings(config: Any) -> dict[str, Any]:
    """Keywords of `EvalSettings`; without a length of its own an evaluation takes that of the rollouts."""
    given = dict(config.eval.settings()) if config.eval is not None else {}
    if given.get("max_new_tokens") is None:
        given["max_new_tokens"] = getattr(config.rollout, "max_completion_length", DEFAULT_NEW_TOKENS)
    return given


def template_variables(config: Any) -> dict[str, Any]:
    """Variables of the chat template that the trainer uses; a run without rollouts has none."""
    return dict(getattr(config.rollout, "chat_template_kwargs", None) or {})
