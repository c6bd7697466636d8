"""`posttrain eval`: the evaluation of a recipe on any saved model, by the code that evaluates in training.

Several processes: accelerate launch -m posttrain.evaluating MODEL --recipe RECIPE.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from posttrain.data.rendering import SPECIAL_TOKENS
from posttrain.errors import ConfigError

# A supervised method has no length of completions to take over.
DEFAULT_NEW_TOKENS = 256


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
    from posttrain.config.build import reward_scorer
    from posttrain.evaluation.generate import EvalSettings, evaluate

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


def verifier_name(config: Any) -> str | None:
    """Reward whose value is the verdict: that of the eval block, else of the rollout block; None without either."""
    if config.eval is not None and config.eval.verifier is not None:
        return str(config.eval.verifier)
    if config.rollout is None:
        return None
    return str(config.rollout.verifier or config.rollout.rewards[0].name)


def verifier_sha256(config: Any) -> str | None:
    """SHA-256 of the file that the verifier is a function of; None for a packaged one."""
    return _code_sha256(config, str(verifier_name(config)))


def reward_code(config: Any) -> dict[str, str]:
    """SHA-256 of the file of every reward that is a function in one, by the reward's name."""
    names = [] if config.rollout is None else [str(entry.name) for entry in config.rollout.rewards]
    return {name: found for name in names if (found := _code_sha256(config, name)) is not None}


def _code_sha256(config: Any, name: str) -> str | None:
    file, separator, _ = name.rpartition(":")
    if not separator or config.source is None:
        return None
    path = Path(config.source.file).parent / file
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def evaluation_settings(config: Any) -> dict[str, Any]:
    """Keywords of `EvalSettings`; without a length of its own an evaluation takes that of the rollouts."""
    given = dict(config.eval.settings()) if config.eval is not None else {}
    if given.get("max_new_tokens") is None:
        given["max_new_tokens"] = getattr(config.rollout, "max_completion_length", DEFAULT_NEW_TOKENS)
    return given


def template_variables(config: Any) -> dict[str, Any]:
    """Variables of the chat template that training and evaluation use; those of rollout or trainer come first."""
    data = config.data
    found = dict(data.chat_template_kwargs or {})
    for block in (config.trainer, config.rollout):
        found |= getattr(block, "chat_template_kwargs", None) or {}
    return found if data.special_tokens_in_text == "text" else {**found, SPECIAL_TOKENS: data.special_tokens_in_text}


def recorded_variables(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a recorded recipe."""
    blocks = [config.get(name) or {} for name in ("data", "trainer", "rollout")]
    found = {key: value for block in blocks for key, value in (block.get("chat_template_kwargs") or {}).items()}
    read = blocks[0].get(SPECIAL_TOKENS, "text")
    return found if read == "text" else {**found, SPECIAL_TOKENS: read}


def template_sha256(tokenizer: Any) -> str | None:
    """SHA-256 of a tokenizer's chat template; None without one."""
    template = tokenizer.chat_template
    return hashlib.sha256(json.dumps(template).encode()).hexdigest() if template else None


# ---- the verb ----


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate_model` found and where it wrote it."""

    result: Any  # EvalResult
    folder: Path
    notes: list[str]  # warnings, and the comparison with the run's own record


def evaluate_model(
    model: str,
    *,
    recipe: str | Path,
    overrides: Sequence[str] = (),
    revision: str | None = None,
    stage: str | None = None,
    output: str | Path | None = None,
) -> Evaluated:
    """Evaluate a saved model as a recipe would in training.

    Args:
        model: model, run, checkpoint or adapter folder, or Hub id.
        recipe: path of the YAML file; its data.eval, eval block, verifier, system prompt and template variables count.
        overrides: "block.key=value"; in a recipe with stages they reach the blocks of the stage.
        revision: branch, tag or commit of a Hub id.
        stage: of a recipe with stages; None = the last.
        output: folder of the result, see `default_output`.

    Returns:
        The result, the same on every rank; only the main process writes and prints.

    Raises:
        PosttrainError: anything a user can cause.
    """
    from accelerate import Accelerator

    from posttrain.console import is_main_process, quiet_libraries, say
    from posttrain.data.sources import load_source
    from posttrain.eval_record import EvalRecord
    from posttrain.evaluation.progress import EvaluationProgress
    from posttrain.models.generation_settings import open_settings, told
    from posttrain.saved_models import find_model
    from posttrain.seam.isolation import refuse_padded_prompts

    chain = load_stage(recipe, overrides, stage)
    name, config = chain[-1]
    if config.data.eval is None:
        where = config.where("data", "eval")
        raise ConfigError("the recipe names no rows to evaluate on", where=where, fix="Set data.eval")
    found = find_model(model, revision=revision, stage=name)
    quiet_libraries()
    accelerator = Accelerator(**precision(config))
    rows = load_source(config.data.eval, system_prompt=config.data.system_prompt)
    tokenizer = found.tokenizer(config.model)
    call, settings = recipe_evaluator(config, tokenizer=tokenizer, rows=rows, accelerator=accelerator)
    weights = found.load(config.model)
    refuse_padded_prompts(weights, settings)
    weights = weights if config.model.load_in_4bit else weights.to(accelerator.device)
    dtype = str(weights.dtype).removeprefix("torch.")
    record = EvalRecord(found, chain, settings, tokenizer, rows, accelerator, dtype)
    folder = record.claim(output)
    if not is_main_process():
        return Evaluated(call(weights), folder, [])
    notes = record.warnings()
    notes += filter(None, [told(open_settings(getattr(weights, "generation_config", None)), what="evaluations")])
    for note in notes:
        say(f"warning: {note}")
    say(f"evaluating {found.path} with {record.title}")
    with EvaluationProgress() as progress:
        result = call(weights, progress=progress)
    compared = record.comparison(result)
    report = record.write(folder, result, [*notes, *compared])
    say("\n".join([*compared, f"report: {report}"]))
    return Evaluated(result, folder, [*notes, *compared])


def load_stage(recipe: str | Path, overrides: Sequence[str], stage: str | None) -> list[tuple[str, Any]]:
    """The run to evaluate with, after the stages that its model comes from: (name, configuration), oldest first.

    Args:
        recipe: path of the YAML file.
        overrides: "block.key=value"; where the stage has a block of its own, they change that one. The stages of a
            preset have none.
        stage: None = the last; a recipe without stages has one run, named "run".
    """
    from posttrain.config.loader import load
    from posttrain.config.source import read_recipe
    from posttrain.config.stages import resolve_stages

    written = read_recipe(recipe)[0].get("stages")
    is_preset = isinstance(written, dict)
    written = [item for item in written if isinstance(item, dict)] if isinstance(written, list) else []
    names = [str(item.get("name")) for item in written]
    if is_preset:
        names = [name for name, _, _ in resolve_stages(load(recipe, overrides))]
    if stage is not None and stage not in names:
        close = difflib.get_close_matches(stage, names, n=1)
        what = "no such stage" if names else "the recipe has no stages"
        fix = (f"Perhaps you mean {close[0]!r}" if close else None) if names else "Leave it out"
        allowed = f"one of: {', '.join(names)}" if names else None
        raise ConfigError(what, where="--stage", got=stage, allowed=allowed, fix=fix)
    if written:
        index = names.index(stage) if stage is not None else len(names) - 1
        own = written[index].keys() - {"name", "start_from"}
        overrides = [f"stages.{index}.{text}" if text.split(".")[0] in own else text for text in overrides]
    runs = {name: (parent, config) for name, parent, config in resolve_stages(load(recipe, overrides))}
    name: str | None = stage if stage is not None else list(runs)[-1]
    chain: list[tuple[str, Any]] = []
    while name is not None:
        chain.insert(0, (name, runs[name][1]))
        name = runs[name][0]
    return chain


def precision(config: Any) -> dict[str, Any]:
    """Keywords of `Accelerator` that give the device and the mixed precision of the recipe's training here."""
    from posttrain.seam.policy_config import device_defaults

    fields = ("use_cpu", "bf16", "fp16", "gradient_checkpointing")
    chosen = SimpleNamespace(**{name: getattr(config.trainer, name) for name in fields})
    device_defaults(chosen)
    mixed = "bf16" if chosen.bf16 else "fp16" if chosen.fp16 and not chosen.use_cpu else "no"
    return {"cpu": bool(chosen.use_cpu), "mixed_precision": mixed}


def main(argv: list[str] | None = None) -> int:
    """`python -m posttrain.evaluating MODEL --recipe RECIPE …`: the verb, for `accelerate launch`."""
    import typer

    from posttrain.cli import app
    from posttrain.console import is_main_process, leave_group, show_error
    from posttrain.errors import PosttrainError
    from posttrain.optional import explains_imports

    # UsageError of click; typer 0.29 has a copy of its own, without a public name.
    wrong_command_line: Any = typer.BadParameter.__base__
    try:
        with explains_imports():
            app(["eval", *(sys.argv[1:] if argv is None else argv)], standalone_mode=False)
    except PosttrainError as error:
        if is_main_process():
            show_error(error)
        return 2
    except wrong_command_line as error:
        if is_main_process():
            error.show()
        return int(error.exit_code)
    leave_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
