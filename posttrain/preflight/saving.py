"""What would only fail at the end of a run, tried at its start: saving everything but the weights, and the push."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from posttrain import registry
from posttrain.config.run_config import RunConfig
from posttrain.console import mark_reported
from posttrain.errors import ConfigError, PosttrainError, SupportError
from posttrain.models.config_files import load_config
from posttrain.models.generation_settings import open_settings, read_generation_config, told
from posttrain.models.loading import peft_config
from posttrain.models.saving import reason, refusal
from posttrain.reports.run_report import RUN_FILES
from posttrain.seam.card import try_card

Finding = tuple[bool, PosttrainError]
_CARD = "the model card"
_FOLDERS = ("completions", "plots", "model", "merged", "initial", "_staging")


def find(
    cfg: RunConfig, tokenizer: Any, *, is_known: bool, add: Callable[[bool, PosttrainError], None], facts: list[str]
) -> None:
    """What the end of the run writes, tried now; and what of the model's generation config is not used.

    Args:
        cfg: the run.
        tokenizer: None where it cannot be had.
        is_known: whether the model's configuration could be read.
        add: takes whether a finding stops the run, and the finding.
        facts: grows by what is told.
    """
    found = [*places(cfg), *hub(cfg)]
    if is_known:
        own, told_facts = generation_config(cfg)
        found += [*own, *dry_save(cfg, tokenizer)]
        facts += told_facts
    for stops, finding in found:
        add(stops, finding)


def generation_config(cfg: RunConfig) -> tuple[list[Finding], list[str]]:
    """(findings, facts) about the model's generation config: what is not used of it, what cannot be written."""
    if cfg.model.path is None:
        return [], []
    where = cfg.where("model", "path")
    try:
        config = read_generation_config(str(cfg.model.path), revision=cfg.model.revision)
    except PosttrainError as error:
        return [(True, ConfigError(error.what, where=where, got=error.got, fix=error.fix))], []
    generates = cfg.rollout is not None or cfg.eval is not None
    sentence = told(open_settings(config)) if generates else None
    if sentence is not None:
        mark_reported(sentence)
    facts = [sentence] if sentence is not None else []
    ends = config.eos_token_id if config is not None else None
    if generates and isinstance(ends, list) and len(ends) > 1:
        facts.append(f"a completion ends at any of the tokens {ends}, as the model's generation config says")
    found: list[Finding] = list(_wrong_tokens(cfg, config))
    if config is not None and (why := refusal(config)) is not None:
        what = f"transformers would not write this generation config ({why}); it is written back as it is"
        found.append((False, ConfigError(what, where=where, fix="Correct it where the model is used")))
    return found, facts


def _wrong_tokens(cfg: RunConfig, config: Any) -> Iterator[Finding]:
    """Special tokens of a generation config that are no token ids."""
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        value = getattr(config, name, None)
        items = value if isinstance(value, list) and name == "eos_token_id" else [value]
        if value is not None and not all(type(item) is int and item >= 0 for item in items):
            what = f"{name} of the model's generation config is no token id"
            fix = "Correct generation_config.json of the model"
            allowed = "an integer >= 0" + (", or a list of them" if name == "eos_token_id" else "")
            yield True, ConfigError(what, where=cfg.where("model", "path"), got=value, allowed=allowed, fix=fix)


def dry_save(cfg: RunConfig, tokenizer: Any) -> Iterator[Finding]:
    """Save configuration, tokenizer, adapter configuration and card in a temporary folder, as the end of the run will.

    A card that cannot be written costs nothing else, so it stops nothing.
    """
    where = cfg.where("model", "path")
    if cfg.model.path is not None:
        folder = Path(str(cfg.model.path)).expanduser()
        source = str(folder) if folder.is_dir() else str(cfg.model.path)
        config = load_config(source, revision=cfg.model.revision, trusted=cfg.model.trust_remote_code)
        if (why := refusal(config)) is not None:
            what = f"transformers would not write this config.json ({why}); it is written back as it is"
            yield False, ConfigError(what, where=where, fix="Correct it where the model is used")
    parts: list[tuple[str, Callable[[str], Any]]] = []
    if tokenizer is not None:
        parts.append(("the tokenizer", tokenizer.save_pretrained))
    if cfg.model.lora is not None:
        parts.append(("the adapter's configuration", lambda place: peft_config(cfg.model).save_pretrained(place)))
    parts.append((_CARD, lambda place: _save_card(cfg, place)))
    for name, save in parts:
        with tempfile.TemporaryDirectory() as place:
            try:
                save(place)
            except Exception as problem:  # noqa: BLE001 - what a file of a model holds may be anything
                end = "there will be none" if name == _CARD else "the end of the run would fail"
                what = f"{name} cannot be saved, so that {end}: {reason(problem)}"
                yield name != _CARD, ConfigError(what, where=where, fix="Correct the files of the model")


def _save_card(cfg: RunConfig, place: str) -> None:
    base = None if cfg.model.path is None else str(cfg.model.path)
    trainer = registry.get(cfg.method.name).load_trainer()
    try_card(trainer, place, base_model=base, hub_model_id=cfg.hub.repo_id)


def places(cfg: RunConfig) -> Iterator[Finding]:
    """Whether everything that a run leaves behind can be written into its folder."""
    folder = Path(str(cfg.trainer.output_dir)).expanduser()
    where = cfg.where("trainer", "output_dir")
    for name in (*RUN_FILES, "initial", "_staging", "finished.json"):
        path = folder / name
        if not path.exists() and not path.is_symlink():
            continue
        is_folder = name in _FOLDERS
        if path.is_symlink() and not path.exists():
            yield True, ConfigError("this link leads nowhere", where=where, got=str(path), fix="Remove it")
        elif path.is_dir() != is_folder:
            kinds = ("a file", "a folder") if is_folder else ("a folder", "a file")
            what = f"there is {kinds[0]} where the run will write {kinds[1]}"
            yield True, ConfigError(what, where=where, got=str(path), fix="Move it, or set another folder")
        elif not os.access(path, os.W_OK):
            yield True, ConfigError("this cannot be written", where=where, got=str(path), fix="Give write permission")
    for path in sorted(folder.glob("checkpoint-*")):
        if path.name.removeprefix("checkpoint-").isdigit() and not path.is_dir():
            what = "there is a file where a checkpoint would be written"
            yield True, ConfigError(what, where=where, got=str(path), fix="Move it")
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(b"\0" * 4096)
                file.flush()
                os.fsync(file.fileno())
        except OSError as problem:
            yield True, ConfigError(f"nothing can be written: {problem.strerror}", where=where, got=str(place))


def hub(cfg: RunConfig) -> Iterator[Finding]:
    """Whether the push at the end can work: name of the repository, and the right to write where the Hub answers."""
    if not cfg.hub.push:
        return

    where, repo = cfg.where("hub", "repo_id"), cfg.hub.repo_id
    if repo is not None:
        try:
            validate_repo_id(repo)
        except HFValidationError as problem:
            allowed = "owner/name, of letters, digits, '-', '_' and '.'"
            yield True, ConfigError(reason(problem), where=where, got=repo, allowed=allowed)
            return
    token = get_token()
    if token is None:
        return  # told among what this machine lacks
    if constants.HF_HUB_OFFLINE:
        yield (
            False,
            SupportError("the Hub is switched off here (HF_HUB_OFFLINE), so the push was not tried", where=where),
        )
        return
    try:
        names = HfApi().whoami(token=token)
        owners = [names["name"], *(entry["name"] for entry in names.get("orgs", []))]
        if repo is not None and "/" in repo and repo.split("/")[0] not in owners:
            allowed = f"one of: {', '.join(owners)}"
            yield True, SupportError("the token belongs to another owner", where=where, got=repo, allowed=allowed)
        elif repo is not None and "/" in repo:
            HfApi().auth_check(repo, token=token, write=True)
    except RepositoryNotFoundError:
        return  # it is made at the first push
    except HfHubHTTPError as problem:
        fix = "Use a token that may write (environment variable HF_TOKEN)"
        yield True, SupportError(f"the Hub refuses the push: {reason(problem)}", where=where, got=repo, fix=fix)
    except Exception as problem:  # noqa: BLE001 - every kind of no network
        what = f"the Hub is out of reach, so the push was not tried ({type(problem).__name__})"
        yield False, SupportError(what, where=where)
