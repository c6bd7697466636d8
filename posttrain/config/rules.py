"""Rules between the keys of one recipe that need neither data nor tokenizer nor device."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from posttrain import registry
from posttrain.config import rules_engine
from posttrain.config.rules_sizes import generated_rows, learning_rate, tiny_size
from posttrain.config.rules_streams import stream_rules
from posttrain.config.run_config import DataSource, MixtureEntry, RunConfig
from posttrain.config.source import Key
from posttrain.data.files import looks_local
from posttrain.data.tasks import TASKS
from posttrain.errors import ConfigError, PosttrainError, SupportError, nearest
from posttrain.rewards import REWARDS

_GENERATED = ("size", "seed", "options")
_READ = ("name", "split", "revision", "columns", "limit", "answer_after")


def broken_rules(cfg: RunConfig) -> list[PosttrainError]:
    """Every rule the recipe breaks, in the order of its blocks."""
    rules = (
        *(_model, _quantised, _data, stream_rules, _rollout, _rewards),
        *(_steps, _saving, _precision, _resume, _evaluation, _hub),
    )
    return [error for rule in rules for error in rule(cfg)]


def is_local(path: str) -> bool:
    """Whether a `path` means a file or folder here: it exists, or it is not of the form owner/name of a Hub id."""
    return Path(path).expanduser().exists() or looks_local(path)


def _model(cfg: RunConfig) -> Iterator[PosttrainError]:
    model, where = cfg.model, cfg.where
    given = [key for key in ("path", "tiny", "package") if getattr(model, key) is not None]
    if len(given) != 1:
        what = "a model comes from one place" if given else "nothing says where the model comes from"
        yield ConfigError(
            what,
            where=where("model"),
            got=given,
            allowed="exactly one of: path, tiny, package",
            fix="Keep one of them",
        )
        return
    local = model.path is not None and is_local(model.path)
    if local and not Path(str(model.path)).expanduser().exists():
        yield ConfigError(
            "no such folder", where=where("model", "path"), got=model.path, fix="Give a folder that exists or a Hub id"
        )
    if model.revision is not None and (model.path is None or local):
        yield ConfigError(
            "a revision belongs to a Hub model", where=where("model", "revision"), got=model.revision, fix="Remove it"
        )
    if model.trust_remote_code and model.path is None:
        yield ConfigError(
            "only a model from a path can bring code", where=where("model", "trust_remote_code"), fix="Remove the line"
        )
    if model.tiny is not None:
        tiny = model.tiny
        if tiny.hidden_size % (2 * tiny.num_heads):
            yield ConfigError(
                "every head needs an even, equal share of the width",
                where=where("model", "tiny", "hidden_size"),
                got=tiny.hidden_size,
                allowed=f"a multiple of 2 * num_heads = {2 * tiny.num_heads}",
            )
        yield from tiny_size(cfg, tiny)
        if model.config_overrides is not None:
            yield ConfigError(
                "a tiny model is made from its own keys",
                where=where("model", "config_overrides"),
                fix="Write the value under model.tiny",
            )
    flash = (model.attn_implementation or "").startswith("flash")
    if flash and model.dtype == "float32":
        yield ConfigError(
            "flash attention has no float32 kernel",
            where=where("model", "attn_implementation"),
            got=model.attn_implementation,
            fix="Set model.dtype to bfloat16, or model.attn_implementation to sdpa",
        )


def _quantised(cfg: RunConfig) -> Iterator[PosttrainError]:
    model = cfg.model
    if not model.load_in_4bit:
        return
    where = cfg.where("model", "load_in_4bit")
    if model.lora is None:
        yield SupportError("weights in 4 bits cannot be trained themselves", where=where, fix="Add model.lora")
    elif model.lora.merge_on_save:
        yield SupportError(
            "an adapter cannot be merged into weights in 4 bits without loss",
            where=cfg.where("model", "lora", "merge_on_save"),
            fix="Set model.lora.merge_on_save to false",
        )
    if model.tiny is not None:
        yield SupportError("a tiny model is not quantised", where=where, fix="Remove the line")


def _data(cfg: RunConfig) -> Iterator[PosttrainError]:
    train, other = cfg.data.train, cfg.data.eval
    if train.mixture is not None:
        yield from _mixture(cfg, "train")
    else:
        yield from _source(cfg, ("data", "train"), train)
        if train.mixing is not None:
            where = cfg.where("data", "train", "mixing")
            yield ConfigError("there is no mixture", where=where, fix="Write data.train.mixture, or remove the line")
    for split in ("validation", "retain"):
        yield from _further(cfg, split)
    if other is not None:
        yield from _source(cfg, ("data", "eval"), other)
    for name, task in (cfg.data.eval_tasks or {}).items():
        yield from _source(cfg, ("data", "eval_tasks", name), task)
    for name, probe in (cfg.data.probes or {}).items():
        yield from _source(cfg, ("data", "probes", name), probe)
    if cfg.eval is not None and cfg.eval.probe_every_steps is not None and not cfg.data.probes:
        where = cfg.where("eval", "probe_every_steps")
        yield ConfigError("there are no rows to measure", where=where, fix="Write data.probes, or remove the line")
    if cfg.data.eval_tasks is not None and other is None:
        where = cfg.where("data", "eval_tasks")
        yield ConfigError("further tasks stand beside data.eval", where=where, fix="Write data.eval, too")
    if other is not None and other.model_dump() == train.model_dump(include=set(type(other).model_fields)):
        yield ConfigError(
            "evaluation would use the very rows of training",
            where=cfg.where("data", "eval"),
            fix="Choose another seed or split for data.eval",
        )


def _further(cfg: RunConfig, split: str) -> Iterator[PosttrainError]:
    """Rows beside those of training: of a method that reads them, and not the same ones."""
    rows, where, entry = getattr(cfg.data, split), cfg.where("data", split), registry.get(cfg.method.name)
    if rows is None:
        return
    if split == "validation" and not entry.learns_rows and "rollout.prompt_shares" not in cfg.slots:
        fix = "Remove it; data.eval is what policy methods are evaluated on"
        yield ConfigError("read by supervised methods and rollout.prompt_shares", where=where, got=entry.key, fix=fix)
    if split == "retain" and "retain" not in entry.inputs:
        readers = ", ".join(key for key, other in registry.METHODS.items() if "retain" in other.inputs)
        yield ConfigError("read by unlearning alone", where=where, got=entry.key, allowed=readers, fix="Remove it")
    if rows.mixture is not None:
        yield from _mixture(cfg, split)
    else:
        yield from _source(cfg, ("data", split), rows)
    if rows.model_dump(exclude={"streaming"}) == cfg.data.train.model_dump(exclude={"streaming"}):
        fix = f"Choose another seed or split for data.{split}"
        yield ConfigError("these are the very rows of training", where=where, fix=fix)


def _mixture(cfg: RunConfig, split: str) -> Iterator[PosttrainError]:
    """A mixture stands alone, and each of its numbers is one that is read."""
    train = getattr(cfg.data, split)
    for key in DataSource.model_fields:
        if key != "seed" and getattr(train, key) is not None:
            where = cfg.where("data", split, key)
            yield ConfigError("does not go with mixture", where=where, fix="Write it in the sources it is meant for")
    weighted = train.mixing == "interleave_weighted"
    names = [entry.name for entry in train.mixture or ()]
    for index, entry in enumerate(train.mixture or ()):
        place: Key = ("data", split, "mixture", index)
        yield from _source(cfg, place, entry)
        if entry.name in names[:index]:
            where = cfg.where(*place, "name")
            yield ConfigError("two sources have this name", where=where, got=entry.name, fix="Rename one")
        if weighted and entry.weight is None:
            yield ConfigError("interleave_weighted needs a weight", where=cfg.where(*place, "weight"), allowed="> 0")
        unread = {
            "weight": (not weighted, "read by mixing: interleave_weighted alone", "Use repeat, or that mixing"),
            "repeat": (weighted, "with interleave_weighted the weight says how often rows come", "Remove the line"),
            "replay_measure": (entry.replay_fraction is None, "there is no replay_fraction to measure", "Remove it"),
        }
        for key, (is_unread, what, fix) in unread.items():
            if is_unread and getattr(entry, key) is not None:
                yield ConfigError(what, where=cfg.where(*place, key), got=getattr(entry, key), fix=fix)


def _source(cfg: RunConfig, place: Key, rows: DataSource) -> Iterator[PosttrainError]:
    written = ".".join(str(part) for part in place)
    if rows.format == "text" and cfg.data.system_prompt is not None:
        where = cfg.where("data", "system_prompt")
        yield ConfigError(f"{written} is text, which has no system message", where=where, fix="Remove one of the two")

    given = [key for key in ("task", "reasoning_gym", "path") if getattr(rows, key) is not None]
    if len(given) != 1:
        what = "rows come from one place" if given else "nothing says where the rows come from"
        yield ConfigError(
            what,
            where=cfg.where(*place),
            got=given,
            allowed="exactly one of: task, reasoning_gym, path",
            fix="Keep one of them",
        )
        return
    kind = given[0]
    foreign = _GENERATED if kind == "path" else _READ
    for key in foreign:
        key = "configuration" if key == "name" and isinstance(rows, MixtureEntry) else key
        if getattr(rows, key) is not None:
            fix = "Use limit" if key == "size" else "Remove the line"
            yield ConfigError(f"does not go with {kind}", where=cfg.where(*place, key), fix=fix)
    if kind != "path" and rows.size is None:
        where = cfg.where(*place, "size")
        yield ConfigError("generated rows need a number", where=where, allowed="int >= 1", fix=f"Write {written}.size")
    yield from generated_rows(cfg, place, rows)
    if rows.task is not None and rows.task not in TASKS:
        yield ConfigError(
            "unknown task",
            where=cfg.where(*place, "task"),
            got=rows.task,
            allowed="one of: " + ", ".join(TASKS),
            fix=nearest(rows.task, TASKS),
        )
    if rows.path is None or not is_local(rows.path):
        return
    local, where = Path(rows.path).expanduser(), cfg.where(*place, "path")
    if not local.exists():
        yield ConfigError(
            "no such file or folder", where=where, got=rows.path, fix="Paths start from the working folder"
        )
    elif local.is_file() and not local.stat().st_size:
        yield ConfigError("the file is empty", where=where, got=rows.path)


def _rollout(cfg: RunConfig) -> Iterator[PosttrainError]:
    rollout = cfg.rollout
    if rollout is None:
        return
    names = [entry.name for entry in rollout.rewards]
    if rollout.verifier is not None and rollout.verifier not in names:
        yield ConfigError(
            "no reward of this name is listed",
            where=cfg.where("rollout", "verifier"),
            got=rollout.verifier,
            allowed="one of: " + ", ".join(names),
            fix=nearest(rollout.verifier, names) or "Add it to rollout.rewards (weight 0 leaves the sum alone)",
        )
    functions = [name.rsplit(":", 1)[-1] for name in names]
    for index, function in enumerate(functions):
        if function in functions[:index]:
            where = cfg.where("rollout", "rewards", index)
            yield ConfigError("two reward functions have this name", where=where, got=function, fix="Rename one")
    if not any(entry.weight for entry in rollout.rewards):
        yield ConfigError("every reward has weight 0, so nothing is learned", where=cfg.where("rollout", "rewards"))
    yield from rules_engine.rules(cfg)


def _rewards(cfg: RunConfig) -> Iterator[PosttrainError]:
    entries: list[tuple[Key, str]] = []
    entries += [(("rollout", "rewards", i), e.name) for i, e in enumerate(cfg.rollout.rewards)] if cfg.rollout else []
    if cfg.eval is not None and cfg.eval.verifier is not None:
        entries.append((("eval", "verifier"), cfg.eval.verifier))
    for task, source in (cfg.data.eval_tasks or {}).items():
        if source.verifier is not None:
            entries.append((("data", "eval_tasks", task, "verifier"), source.verifier))
    for key, name in entries:
        if re.fullmatch(r".+\.py:[A-Za-z_]\w*", name):
            continue
        if name not in REWARDS:
            yield ConfigError(
                "unknown reward",
                where=cfg.where(*key),
                got=name,
                allowed="one of: " + ", ".join(REWARDS) + ", or file.py:function",
                fix=nearest(name, REWARDS),
            )


def _steps(cfg: RunConfig) -> Iterator[PosttrainError]:
    written = cfg.trainer.fields
    yield from learning_rate(cfg)
    max_steps = written.get("max_steps", -1)
    if max_steps > 0 and "num_train_epochs" in written:
        yield ConfigError(
            "not read, because max_steps sets the length of the run",
            where=cfg.where("trainer", "num_train_epochs"),
            fix="Keep one of the two",
        )
    if 0 < max_steps < written.get("warmup_steps", 0):
        yield ConfigError(
            "the warm-up is longer than the run",
            where=cfg.where("trainer", "warmup_steps"),
            got=written["warmup_steps"],
            allowed=f"at most trainer.max_steps ({max_steps})",
        )
    if written.get("generation_batch_size") is not None and written.get("steps_per_generation") is not None:
        yield ConfigError(
            "the two settings say the same thing",
            where=cfg.where("trainer", "steps_per_generation"),
            fix="Keep one of generation_batch_size and steps_per_generation",
        )


def _saving(cfg: RunConfig) -> Iterator[PosttrainError]:
    if cfg.trainer.fields.get("save_strategy") == "best":
        where = cfg.where("trainer", "save_strategy")
        fix = "Choose by the recorded evaluations afterwards"
        yield SupportError(
            "the best model is not known while training", where=where, allowed="no, steps, epoch", fix=fix
        )


def _precision(cfg: RunConfig) -> Iterator[PosttrainError]:
    written = cfg.trainer.fields
    if written.get("bf16") and written.get("fp16"):
        yield ConfigError(
            "bf16 and fp16 exclude each other", where=cfg.where("trainer", "fp16"), fix="Keep one of the two"
        )
    if written.get("fp16") and cfg.model.dtype in ("bfloat16", "float16"):
        yield ConfigError(
            "mixed precision with fp16 needs float32 weights",
            where=cfg.where("model", "dtype"),
            got=cfg.model.dtype,
            fix="Set model.dtype to float32, or use trainer.bf16",
        )


def _resume(cfg: RunConfig) -> Iterator[PosttrainError]:
    resume = cfg.trainer.resume
    if resume in ("auto", "never"):
        return
    where = cfg.where("trainer", "resume")
    if not Path(resume).expanduser().is_dir():
        yield ConfigError(
            "no such checkpoint",
            where=where,
            got=resume,
            allowed="auto, never, or the folder of a checkpoint",
            fix=nearest(resume, ("auto", "never")),
        )


def _evaluation(cfg: RunConfig) -> Iterator[PosttrainError]:
    settings = cfg.eval
    if settings is None:
        return
    if cfg.data.eval is None:
        if settings.probe_every_steps is None or not cfg.data.probes:  # which need no verdict
            yield ConfigError("there are no rows to evaluate on", where=cfg.where("eval"), fix="Write data.eval")
        return
    if settings.temperature == 0 and settings.num_generations > 1:
        yield ConfigError(
            "greedy completions of one prompt are all the same",
            where=cfg.where("eval", "num_generations"),
            got=settings.num_generations,
            fix="Set eval.temperature above 0, or eval.num_generations to 1",
        )
    if settings.temperature == 0 and settings.top_p < 1:
        yield ConfigError(
            "not read at temperature 0", where=cfg.where("eval", "top_p"), got=settings.top_p, fix="Remove the line"
        )
    if not registry.get(cfg.method.name).learns_rows:
        return
    for key, fix in (("verifier", "the name of a reward"), ("max_new_tokens", "the most tokens of an answer")):
        if getattr(settings, key) is None:
            yield ConfigError(
                f"{cfg.method.name} has no rollout block to take it from",
                where=cfg.where("eval", key),
                allowed=fix,
                fix=f"Write eval.{key}, or switch evaluation off with eval: null",
            )


def _hub(cfg: RunConfig) -> Iterator[PosttrainError]:
    hub = cfg.hub
    if hub.push and hub.repo_id is None:
        yield ConfigError(
            "pushing needs a repository", where=cfg.where("hub", "repo_id"), fix="Write hub.repo_id: owner/name"
        )
    if hub.repo_id is not None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", hub.repo_id):
        yield ConfigError("not a repository", where=cfg.where("hub", "repo_id"), got=hub.repo_id, allowed="owner/name")
