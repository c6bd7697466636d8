"""The model a command is given (model folder, run, checkpoint, adapter or Hub id): how it is found and loaded.

Nothing here trains or evaluates. Files are looked for in this order: a folder, a run's `model/`, the Hub.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

from posttrain.data.files import looks_local
from posttrain.errors import ConfigError, nearest
from posttrain.models.loading import adapter_settings, load_model, load_tokenizer, load_with_adapter
from posttrain.models.saving import SaveError, save_model, unpushed
from posttrain.reports.provenance import one_sha256, weight_hashes
from posttrain.training.lineage import write_model_card

MODEL_FOLDER = "model"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class SavedModel:
    """A model that can be loaded, and where in which run it was made."""

    given: str  # as the user wrote it
    path: str  # folder or Hub id
    revision: str | None = None  # of a Hub id
    run: Path | None = None  # folder of the run that saved it
    step: int | None = None  # of a checkpoint
    base: str | None = None  # of an adapter: the model it belongs to

    @property
    def label(self) -> str:
        """Short name for folders and tables: "model", "checkpoint-4", "Qwen2.5-0.5B-main"."""
        name = Path(self.path).resolve().name if Path(self.path).is_dir() else self.path.rsplit("/", 1)[-1]
        return re.sub(r"[^\w.-]", "-", f"{name}-{self.revision}" if self.revision else name)

    def block(self, recipe_block: Any) -> Any:
        """A `model` block that loads these files the way the recipe loads its own."""
        changes = {"path": self.path, "revision": self.revision, "tiny": None, "package": None, "lora": None}
        return recipe_block.model_copy(update=changes)

    def tokenizer(self, recipe_block: Any) -> Any:
        """Its tokenizer; an adapter without one has that of its base."""
        folder = Path(self.path)
        has_own = not folder.is_dir() or any((folder / name).is_file() for name in _TOKENIZER_FILES)
        if self.base is not None and not has_own:
            return load_tokenizer(recipe_block, path=self.base)
        return load_tokenizer(self.block(recipe_block))

    def load(self, recipe_block: Any) -> Any:
        """Its weights, with an adapter beside its base, in the type and with the attention of a recipe's block."""
        if self.base is None:
            return load_model(self.block(recipe_block), path=self.path)
        block = recipe_block.model_copy(update={"lora": None})
        return load_with_adapter(block, adapter=self.path, base=self.base, revision=self.revision)

    def identity(self, recipe_block: Any = None) -> dict[str, Any]:
        """What was loaded, for a record: paths and the SHA-256 of every weight file. The files must be on disk.

        Args:
            recipe_block: `model` block given to `load`, which may name the revision of an adapter's base.
        """
        folder = snapshot(self.path, self.revision)
        files = weight_hashes(folder)
        found: dict[str, Any] = {"path": self.path, "revision": self.revision}
        found |= {"sha256": one_sha256(files), "files": files}
        if not Path(self.path).is_dir():
            found["commit"] = folder.name
        if self.base is not None:
            revision = recipe_block.revision if recipe_block is not None and recipe_block.path == self.base else None
            found["base"] = {"path": self.base, "files": weight_hashes(snapshot(self.base, revision))}
        return found


_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")


def merged(parent: Path, folder: Path) -> str:
    """Folder of a parent stage's whole model: its own, or one below `folder`, written by rank 0, if it trained
    adapters.
    """
    if not (parent / "adapter_config.json").exists():
        return str(parent)
    whole = folder / "merged"
    if os.environ.get("RANK", "0") == "0":
        model = AutoPeftModelForCausalLM.from_pretrained(parent, dtype="auto").merge_and_unload()
        save_model(model, whole, tokenizer=AutoTokenizer.from_pretrained(parent))
    return str(whole)


def save_trained(trainer: Any, config: Any, *, folder: Any, is_main: bool) -> None:
    """Save a trained model with its tokenizer; to the Hub, if asked for; merged, if asked for. Every rank calls it.

    Args:
        trainer: at the end of its training.
        config: one run, without stages.
        folder: the `RunFolder`.
        is_main: whether this is rank 0.

    Raises:
        SaveError: last of all: the weights are saved, and what else could not be is named.
    """
    place, missing = folder.path / MODEL_FOLDER, []
    try:
        trainer.save_model(str(place))
    except SaveError as error:
        missing.append(error)
    if is_main and config.stage is not None:
        write_model_card(place, folder.read_run())
    if config.hub.push:
        try:
            trainer.push_to_hub()
        except Exception as error:  # noqa: BLE001 - network, permission, upstream's own
            missing.append(error if isinstance(error, SaveError) else unpushed(error, place))
    # Last, because merging takes the adapters out of the trainer's model.
    lora = config.model.lora
    if lora is not None and lora.merge_on_save and is_main:
        whole = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
        save_model(whole, folder.path / "merged", tokenizer=trainer.processing_class)
    if missing:
        raise missing[0]


def find_model(given: str, *, revision: str | None = None, stage: str | None = None) -> SavedModel:
    """What a user's word for a model stands for.

    Args:
        given: folder of a model, an adapter, a checkpoint or a run; or a Hub id.
        revision: branch, tag or commit of a Hub id.
        stage: of a run of several stages, the one whose model is meant.

    Raises:
        ConfigError: nothing there that could be loaded, or a revision of a folder.
    """
    folder = Path(given).expanduser()
    if not folder.is_dir():
        _check_hub_id(given, folder)
        return _with_base(SavedModel(given, given, revision))
    if revision is not None:
        raise ConfigError("a folder has no revisions", where="--revision", got=revision, fix="Leave it out")
    for candidate in (folder, folder / MODEL_FOLDER, *([folder / stage / MODEL_FOLDER] if stage else [])):
        if (candidate / "config.json").is_file() or (candidate / "adapter_config.json").is_file():
            return _with_base(_placed(given, candidate))
    raise _nothing_in(folder, given)


def snapshot(path: str, revision: str | None) -> Path:
    """The folder itself, or that of a Hub id's commit in the local cache, which is named after the commit."""
    if Path(path).is_dir():
        return Path(path)

    return Path(snapshot_download(path, revision=revision, local_files_only=True, allow_patterns=[_WEIGHTS]))


def _placed(given: str, folder: Path) -> SavedModel:
    """With the run that saved it, if the folder lies in one."""
    step = re.fullmatch(r"checkpoint-(\d+)", folder.resolve().name)
    run = folder.parent if (folder.parent / "run.json").is_file() else None
    return SavedModel(given, str(folder), run=run, step=int(step[1]) if step else None)


def _with_base(found: SavedModel) -> SavedModel:
    """With the base of an adapter: the folder or Hub id it names, or that folder's copy in a run that was moved."""
    settings = adapter_settings(found.path, revision=found.revision)
    if settings is None:
        return found
    named = str(settings.get("base_model_name_or_path"))
    base = named
    if not Path(named).is_dir():
        moved = found.run / "initial" / Path(named).name if found.run is not None else None
        if moved is not None and moved.is_dir():
            base = str(moved)
        elif named.startswith((".", "/", "~")) or named.count("/") > 1:
            raise ConfigError(
                "the model that the adapter was trained on is not there",
                where=f"{found.path}/adapter_config.json",
                got=named,
                fix="Put it there, or evaluate a merged model (model.lora.merge_on_save)",
            )
    return SavedModel(found.given, found.path, found.revision, found.run, found.step, base)


def _check_hub_id(given: str, folder: Path) -> None:

    # "runs/first" reads like owner/name; it is one if there is no folder runs/ to look in.
    local = looks_local(given) or folder.exists() or (folder.parent != Path() and folder.parent.is_dir())
    if not local and _HUB_ID.fullmatch(given):
        return
    if folder.is_file():
        raise ConfigError("this is a file, not a model", where="MODEL", got=given, fix="Give its folder")
    names = [str(item) for item in folder.parent.glob("*") if item.is_dir()] if folder.parent.is_dir() else []
    raise ConfigError(
        "no such model",
        where="MODEL",
        got=given,
        allowed="a model folder, a run folder, a checkpoint-N folder, an adapter folder, or a Hub id",
        fix=nearest(folder, names),
    )


def _nothing_in(folder: Path, given: str) -> ConfigError:
    checkpoints = sorted(
        (item for item in folder.glob("checkpoint-*") if item.name[11:].isdigit()),
        key=lambda item: int(item.name[11:]),
    )
    stages = sorted(str(item.parent) for item in folder.glob(f"*/{MODEL_FOLDER}") if item.is_dir())
    fix = None
    if checkpoints:
        fix = f"The run has not saved its model yet; its newest checkpoint is {checkpoints[-1]}"
    elif stages:
        fix = f"Name one of the stages: {', '.join(stages)}"
    allowed = "config.json with safetensors files, adapter_config.json, or a run folder with model/"
    return ConfigError("no model in this folder", where="MODEL", got=given, allowed=allowed, fix=fix)
