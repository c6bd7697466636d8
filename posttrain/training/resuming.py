"""Which checkpoint a run continues from, and whether a stage of a plan is done already."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from posttrain.config.steps import stage_settings
from posttrain.config.verdict import reward_code
from posttrain.data.files import local_files
from posttrain.data.rendering import without_none
from posttrain.errors import PosttrainError, ResumeError
from posttrain.hidden import without_secrets
from posttrain.reports.records import write_json
from posttrain.reports.run_report import RUN_FILES, RunFolder
from posttrain.seam.checkpoint.manifest import damage, is_no_room, recover
from posttrain.seam.checkpoint.state import COMPLETE_FILE, complete_checkpoints

FINISHED_FILE = "finished.json"
# Blocks and keys that may change between the attempts of one run without making it another run.
_FREE = {"eval", "hub", "job"}
_FREE_TRAINER = {
    "resume",
    "output_dir",
    "logging_steps",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "report_to",
}


def identity(config: Any, *, parent: Path | None, reference: Path | str | None = None) -> str:
    """Hash of everything in a run's configuration that its result depends on, and of the runs it builds on."""
    # Without empty keys, so that a key which a later version adds makes no other run of this one.
    dumped = config.model_dump(exclude_none=True)
    blocks = {name: block for name, block in dumped.items() if name not in _FREE | {"stages"}}
    blocks["trainer"] = {
        key: value for key, value in (blocks.get("trainer") or {}).items() if key not in _FREE_TRAINER
    }
    stage = getattr(config, "stage", None)
    extras = {} if stage is None else stage.model_dump(include={"reference_from"}, exclude_none=True)
    extras |= {key: without_none(settings) for key, settings in stage_settings(config).items()}
    blocks |= {"stage": extras} if extras else {}
    blocks["parent"] = run_id(parent.parent) if parent is not None else None
    if isinstance(reference, Path):
        blocks["reference"] = run_id(reference.parent)
    return hashlib.sha256(json.dumps(blocks, sort_keys=True, default=str).encode()).hexdigest()


def inputs(config: Any) -> dict[str, Any]:
    """Content of the local files that a run trains on, and of the files of its rewards, by their names."""
    blocks = [block for name in ("train", "validation", "retain") if (block := getattr(config.data, name)) is not None]
    sources = [source for block in blocks for source in (getattr(block, "mixture", None) or [block])]
    paths = sorted({str(source.path) for source in sources if getattr(source, "path", None)})
    rows = {path: found for path in paths if (found := local_files(path))}
    return {**rows, **reward_code(config)}


def run_id(folder: Path) -> str | None:
    """Name of the finished run in `folder`, new each time it is trained; None if none is finished."""
    path = folder / FINISHED_FILE
    return json.loads(path.read_text(encoding="utf-8"))["run"] if path.exists() else None


def is_finished(folder: Path, config: Any, *, parent: Path | None, reference: Path | str | None) -> bool:
    """Whether a stage with this very configuration, from this very parent, has run to its end in `folder`.

    Raises:
        ResumeError: another configuration, or the same with other rows or rewards, was finished there; the result is
            not overwritten.
    """
    path = folder / FINISHED_FILE
    # Without its model a finished run is of no use to anyone; it is continued from its last checkpoint.
    if config.trainer.resume == "never" or not path.exists() or not (folder / "model").is_dir():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["identity"] == identity(config, parent=parent, reference=reference):
        before, now = found.get("inputs"), inputs(config)
        if before is None or before == now:
            return True
        changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
        raise ResumeError(
            f"files that the finished run was made from have changed since: {', '.join(changed)}",
            where=str(folder),
            fix="Set another trainer.output_dir, or trainer.resume: never to replace the result",
        )
    raise ResumeError(
        "a run with other settings, or from another parent or reference stage, was finished here",
        where=str(folder),
        fix="Set another trainer.output_dir, or trainer.resume: never to replace the result",
    )


def mark_finished(
    folder: Path,
    config: Any,
    *,
    parent: Path | None,
    reference: Path | str | None = None,
    made_from: dict[str, Any] | None = None,
) -> None:
    """Record that the run is complete; `made_from` are the `inputs` that it began with, None = not compared later."""
    known = identity(config, parent=parent, reference=reference)
    write_json(folder / FINISHED_FILE, {"identity": known, "run": uuid.uuid4().hex, "inputs": made_from})


def set_aside(folder: Path) -> Path | None:
    """Move what an earlier run left in `folder` to `folder/replaced-<n>`, for a run that starts anew.

    Its checkpoints and evaluations would otherwise pass for those of the new run when that is stopped and continued.

    Returns:
        The new place, or None if there was nothing.
    """
    # eval-*: evaluations that `posttrain eval` made of this run's models.
    names = (FINISHED_FILE, *RUN_FILES, "checkpoint-*", "eval-*")
    found = [path for name in names for path in sorted(folder.glob(name))]
    if not found:
        return None
    number = 1
    while (folder / f"replaced-{number}").exists():
        number += 1
    place = folder / f"replaced-{number}"
    place.mkdir()
    for path in found:
        path.rename(place / path.name)
    return place


def no_room(error: OSError, folder: Any) -> PosttrainError | None:
    """The clear form of an error that means no room, no right to write or no folder; None for every other error."""
    if isinstance(error, FileNotFoundError) and not Path(folder).exists():
        told, fix = "the folder of the run was removed while it was running", "Run the recipe again: it starts anew"
        return PosttrainError(told, where=str(folder), fix=fix)
    if not is_no_room(error):
        return None
    return PosttrainError(
        f"{error.filename or 'a file of the run'} could not be written: {error.strerror}",
        where=str(folder),
        fix="Make room or give write permission, then run the recipe again: it continues from the last complete "
        "checkpoint, which was not touched",
    )


def recorded_run(checkpoint: str | Path) -> dict[str, Any]:
    """`run.json` of the run that wrote a checkpoint; empty if it is not there."""
    return RunFolder(Path(checkpoint).parent).read_run()


def choose_checkpoint(
    resume: str, folder: Any, data: dict[str, Any], *, say: Callable[[str], None] = print
) -> str | None:
    """The checkpoint to continue from; the same on every rank.

    Args:
        resume: "auto" (the newest complete and undamaged checkpoint of the run's folder, if any), "never", or a path.
        folder: the run's `RunFolder`.
        data: `data_fingerprint` of each dataset, compared with what the run that wrote the checkpoint recorded.
        say: tells of damaged checkpoints that "auto" passes over.

    Returns:
        Its path, or None to start from the beginning.

    Raises:
        ResumeError: the named checkpoint is not complete or damaged, or the data are not those of the stopped run.
    """
    if resume == "never":
        return None
    if resume == "auto":
        chosen = _from_main(lambda: _newest_sound(folder.path, say))
    else:
        chosen = Path(resume).expanduser()
        if not (chosen / COMPLETE_FILE).exists():
            raise ResumeError(
                "not a complete checkpoint", where="trainer.resume", got=resume, fix="Name a folder checkpoint-<step>"
            )
        problem = _from_main(lambda: damage(chosen))
        if problem is not None:
            fix = "Continue from another one, or start anew with trainer.resume: never"
            raise ResumeError(f"the checkpoint is damaged: {problem}", where=str(chosen), fix=fix)
    if chosen is None:
        return None
    recorded = recorded_run(chosen).get("data", {})
    changed = sorted(split for split in data if split in recorded and recorded[split] != data[split])
    if changed:
        told = f"the {' and '.join(changed)} data are not those of the run to continue"
        sources = _changed_sources(recorded.get("train"), data.get("train")) if "train" in changed else []
        raise ResumeError(
            told + (f": other rows of {', '.join(map(repr, sources))}" if sources else ""),
            where=str(chosen),
            fix="Restore the data, or start anew with trainer.resume: never",
        )
    return str(chosen)


def _newest_sound(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint whose files are as their manifest says."""
    for path in recover(folder):
        say(f"{path} was whole and not yet in its place; it is now")
    for path in reversed(complete_checkpoints(folder)):
        problem = damage(path)
        if problem is None:
            return path
        say(f"warning: {path} is damaged ({problem}); it is passed over")
    return None


def _from_main(choose: Callable[[], Any]) -> Any:
    """What the main process finds, on every rank: a decision that reads files is made once."""
    found = [choose() if PartialState().is_main_process else None]
    return broadcast_object_list(found)[0]


def refuse_other_origin(checkpoint: str | Path, now: dict[str, Any]) -> None:
    """Raise ResumeError where a checkpoint descends from another training of the parent or of the reference stage.

    Args:
        checkpoint: to continue from.
        now: the recipe as `run.json` would hold it, with `start_from` and `reference`.
    """
    before = recorded_run(checkpoint).get("config", {})
    for key, what in (("start_from", "parent"), ("reference", "reference")):
        runs = [(record.get(key) or {}).get("run") for record in (before, now)]
        if runs[0] != runs[1] and "start_from" in before:
            raise ResumeError(
                f"the {what} stage was trained anew since this stage was begun",
                where=str(checkpoint),
                fix="Restore its folder, or start this stage anew with trainer.resume: never",
            )


def _changed_sources(before: Any, now: Any) -> list[str]:
    """Sources of a mixture of which other rows are used now."""
    known = [(data or {}).get("sources", {}) for data in (before, now)]
    names = dict.fromkeys([*known[0], *known[1]])
    return [name for name in names if known[0].get(name) != known[1].get(name)]


def _flat(values: Any, path: str = "") -> dict[str, Any]:
    """Nested values by their paths."""
    if not isinstance(values, dict):
        return {path: values}
    items = [_flat(value, f"{path}.{key}" if path else str(key)) for key, value in values.items()]
    return {key: value for item in items for key, value in item.items()}


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lines "trainer.learning_rate: 0.001 -> 0.0005" for every value in which two recorded recipes differ."""

    old, new = _flat(before), _flat(now)
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key != "trainer.resume"
    ]


# Of the model block, what changes neither weights nor what is computed from them but for rounding.
_FREE_MODEL = {"trust_remote_code", "attn_implementation"}


def settings_beside(config: Any, *, splits: Any, template_sha256: str | None = None) -> dict[str, Any]:
    """What shapes a run beside its trainer's arguments, by its path in the recipe; a checkpoint keeps it.

    The rows themselves are compared by their fingerprints (`choose_checkpoint`).

    Args:
        config: one run, without stages.
        splits: names of the data sets that the run reads.
        template_sha256: of the tokenizer's chat template, which may change where the model's path stays.
    """
    model = {key: value for key, value in config.model.model_dump().items() if key not in _FREE_MODEL}
    if model.get("path") is not None and Path(model["path"]).expanduser().is_dir():
        model["path"] = str(Path(model["path"]).expanduser().resolve())
    if model.get("lora") is not None:
        model["lora"] = {key: value for key, value in model["lora"].items() if key != "merge_on_save"}
    found = {"model": model, "data.max_prompt_length": config.data.max_prompt_length}
    found |= {f"data.{name}": name in splits for name in ("validation", "retain")}
    if config.rollout is not None:
        found["rollout.rewards"] = [entry.model_dump(exclude_none=True) for entry in config.rollout.rewards]
        found |= {f"SHA-256 of {name}": value for name, value in reward_code(config).items()}
    if template_sha256 is not None:
        found["sha256 of the model's chat template"] = template_sha256
    found |= {f"stage.{key}": settings for key, settings in stage_settings(config).items()}
    found |= {slot: dict(vars(step.settings)) for slot, step in config.slots.items()}
    return dict(without_secrets(json.loads(json.dumps(_flat(found), default=str))))


def resumed_record(checkpoint: str | None, applied: list[str]) -> dict[str, Any] | None:
    """What `run.json` says of a resume; None where a run starts at its beginning."""
    if checkpoint is None:
        return None
    step = Path(checkpoint).name.rpartition("-")[2]
    return {"checkpoint": checkpoint, "step": int(step) if step.isdigit() else None, "in_force_from_then_on": applied}


def describe_resume(checkpoint: str, applied: list[str], changes: list[str]) -> str:
    """Lines for the user: what was changed, and what of it is in force from the next step on.

    Args:
        applied: of `accept_checkpoint`. changes: `changed_settings` of the two recipes.
    """
    named = [line.partition(": ")[0] for line in applied if ": " in line]
    told = {line.partition(": ")[0] for line in changes}
    by_default = [line for line in applied if ": " in line and line.partition(": ")[0] not in told]
    lines = [f"  changed since: {line}" for line in [*changes, *by_default]]
    if named:
        lines.append(f"  in force from the next step on: {', '.join(named)}")
    return "\n".join([f"continuing from {checkpoint}", *lines, *(f"  {x}" for x in applied if ": " not in x)])
