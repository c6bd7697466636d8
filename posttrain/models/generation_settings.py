"""Generation settings that a model's own files hold, and generation without them.

transformers 5.17 fills every setting that a call of `generate` leaves open from the model's generation config, vLLM
some of them. Rollouts would then be drawn from another distribution than the one whose log-probabilities are trained.
So the model's settings are put aside while it generates, whatever their names: new ones of a later release too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import GenerationConfig
from transformers.utils import cached_file

from posttrain.console import warn_once
from posttrain.errors import ConfigError

GENERATION_FILE = "generation_config.json"
_QUIET: dict[str, Any] = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
    "_raise_exceptions_for_gated_repo": False,
}
_logger = logging.getLogger(__name__)

# Which tokens begin, pad and end a text are facts of the model, no choice of how it is drawn from.
KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
# What a file may say without saying anything. `top_k` 50 is what transformers writes for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("do_sample", "max_length", "max_new_tokens", "return_dict_in_generate"), ()),
    **dict.fromkeys(("temperature", "top_p", "typical_p", "repetition_penalty", "guidance_scale"), (1.0,)),
    **dict.fromkeys(("encoder_repetition_penalty", "length_penalty"), (1.0,)),
    **dict.fromkeys(("num_beams", "num_return_sequences", "num_beam_groups"), (1,)),
    "top_k": (0, 50),
    "use_cache": (True,),
}
_ALWAYS = ("do_sample", "max_length", "max_new_tokens")  # every call gives these itself
_OF_UPSTREAM = ("transformers_version", "num_assistant_tokens", "num_assistant_tokens_schedule", "target_lookbehind")
_UNUSED = (*_OF_UPSTREAM, "assistant_confidence_threshold", "assistant_lookbehind")

# Keys of `rollout.generation_kwargs` that another setting decides.
_DECIDED = {
    **dict.fromkeys(("max_new_tokens", "max_length", "max_tokens"), "rollout.max_completion_length"),
    **{name: f"rollout.{name}" for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")},
    "cache_implementation": "rollout.cache_implementation",
    **dict.fromkeys(("num_return_sequences", "n"), "rollout.num_generations"),
    **dict.fromkeys(KEPT, "the model's tokenizer and generation config"),
}


def open_settings(config: GenerationConfig | None) -> dict[str, Any]:
    """Settings of a model's generation config that would change what is drawn, by name; special tokens left out."""
    if config is None:
        return {}
    found = {}
    for name, value in vars(config).items():
        if name.startswith("_") or name in KEPT or name in _UNUSED or name in _ALWAYS:
            continue
        if value not in (None, False, 0, [], {}, *_NEUTRAL.get(name, ())) or (name == "use_cache" and value is False):
            found[name] = value
    return found


def described(settings: Mapping[str, Any]) -> str:
    """ "no_repeat_ngram_size 1, suppress_tokens [64, 65, 66, ...] (26 entries)"."""
    parts = []
    for name, value in settings.items():
        if isinstance(value, list) and len(value) > 4:
            parts.append(f"{name} {str(value[:3])[:-1]}, ...] ({len(value)} entries)")
        else:
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def told(settings: Mapping[str, Any], *, what: str = "rollouts and evaluations") -> str | None:
    """The sentence that says which settings of the model's files are not used; None for none."""
    if not settings:
        return None
    return f"not used of the model's own generation settings: {described(settings)}; {what} follow the recipe alone"


def tell_once(config: GenerationConfig | None) -> None:
    """Warn of settings that are put aside, once for each model's settings; not where `posttrain check` told it."""
    sentence = told(open_settings(config))
    if sentence is not None:
        warn_once(_logger, sentence)


@contextmanager
def plain_generation(model: nn.Module) -> Iterator[None]:
    """While the block runs, the model's own settings are nothing but its special tokens; adapters and wrappers too."""
    holders = [
        module for module in model.modules() if isinstance(vars(module).get("generation_config"), GenerationConfig)
    ]
    saved = [module.generation_config for module in holders]
    for module, config in zip(holders, saved, strict=True):
        module.generation_config = GenerationConfig(**{name: getattr(config, name) for name in KEPT})  # type: ignore[assignment, union-attr]
    try:
        yield
    finally:
        for module, config in zip(holders, saved, strict=True):
            module.generation_config = config


def check_generation_kwargs(given: Mapping[str, Any] | None, *, is_vllm: bool) -> None:
    """Refuse entries of `rollout.generation_kwargs` that would be overwritten or that nothing reads.

    Raises:
        ConfigError: names the key, and the setting that decides it or what is known.
    """
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    for name, value in (given or {}).items():
        where = f"rollout.generation_kwargs.{name}"
        if name in _DECIDED:
            raise ConfigError("another setting decides this", where=where, got=value, fix=f"Use {_DECIDED[name]}")
        if not is_vllm and name not in known:
            what = "transformers knows no such generation setting, so it would change nothing"
            raise ConfigError(what, where=where, got=value, fix="Remove it, or correct its name")


def narrowed(args: Any) -> str | None:
    """What of a policy run's own settings makes rollouts differ from the distribution that is trained; None = nothing.

    Args:
        args: a `PolicyConfig`. Its temperature is no difference: log-probabilities are taken at it.
    """
    asked: dict[str, Any] = {name: getattr(args, name) for name in ("top_p", "top_k", "min_p", "repetition_penalty")}
    neutral = {"top_p": (1.0, None), "top_k": (0, -1, None), "min_p": (0.0, None), "repetition_penalty": (1.0, None)}
    found = {f"rollout.{name}": value for name, value in asked.items() if value not in neutral[name]}
    found |= {f"rollout.generation_kwargs.{name}": value for name, value in (args.generation_kwargs or {}).items()}
    return described(found) if found else None


def read_generation_config(path: str, *, revision: str | None = None) -> GenerationConfig | None:
    """The generation config that a model of this folder or Hub id will have; reads no weights. None without any.

    Raises:
        ConfigError: its file cannot be read, so that the model would be loaded without it.
    """
    folder = Path(path).expanduser()
    source = str(folder) if folder.is_dir() else path
    name = GENERATION_FILE if cached_file(source, GENERATION_FILE, revision=revision, **_QUIET) else "config.json"
    try:
        return GenerationConfig.from_pretrained(source, config_file_name=name, revision=revision)
    except Exception as problem:  # noqa: BLE001 - a value of the file may be anything
        text = " ".join(str(problem).split())[:160]
        raise ConfigError(
            f"{name} of the model cannot be read: {type(problem).__name__}: {text}",
            got=path,
            fix="Correct the file, or remove it: the model is then used without it",
        ) from problem
