"""Reading a recipe: YAML with line numbers, environment variables, dotted overrides. No meaning is given to keys here.

Left out on purpose: anchors, aliases, merge keys, tags and more than one document. A recipe says each thing once.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from posttrain.errors import ConfigError
from posttrain.hidden import remember

Key = tuple[str | int, ...]
_ENV = re.compile(r"\$\{env:([^}]*)\}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_NAME = re.compile(r"TOKEN|SECRET|KEY|PASS|PWD|CREDENTIAL|AUTH|COOKIE|JWT|DSN", re.IGNORECASE)
_MAX_DEPTH = 32
_MOST_BYTES = 200_000
_MOST_VALUES = 10_000
_MOST_DIGITS = 400
_TAGS = {"str", "int", "float", "bool", "null", "timestamp"}


@dataclass
class SourceMap:
    """Where each value of a recipe was written: file and line, or the override that set it."""

    file: str
    lines: dict[Key, int] = field(default_factory=dict)
    overrides: dict[Key, str] = field(default_factory=dict)
    moved: dict[str | int, Key] = field(default_factory=dict)

    def locate(self, key: Key) -> str:
        """ "recipe.yaml:12", or "override a.b=c"; for a key that was not written, the place of its nearest parent."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.overrides:
                return f"override {self.overrides[key[:length]]}"
            if key[:length] in self.lines and length:
                return f"{self.file}:{self.lines[key[:length]]}"
        return self.file

    def where(self, key: Key) -> str:
        """Place and dotted path as written, the prefix of an error message."""
        if key in self.overrides:
            return self.locate(key)
        shown = (*self.moved.get(key[0], (key[0],)), *key[1:]) if key else ()
        return f"{self.locate(key)} {dotted(shown)}".rstrip()

    def stage(self, index: int, blocks: set[str]) -> SourceMap:
        """The map of one stage: its own blocks stand where the recipe's blocks of the same name stood.

        Args:
            index: position in `stages`.
            blocks: names of the blocks that the stage replaces.
        """

        def moved(known: dict[Key, Any]) -> dict[Key, Any]:
            kept = {key: value for key, value in known.items() if not key or key[0] not in blocks | {"stages"}}
            own = {key[2:]: value for key, value in known.items() if key[:2] == ("stages", index) and len(key) > 2}
            return kept | {key: value for key, value in own.items() if key[0] in blocks}

        return SourceMap(
            self.file,
            moved(self.lines),
            moved(self.overrides),
            {block: ("stages", index, block) for block in blocks},
        )


def dotted(key: Key) -> str:
    """("stages", 0, "trainer") -> "stages.0.trainer"."""
    return ".".join(str(part) for part in key)


def read_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> tuple[dict[str, Any], SourceMap]:
    """Read a recipe file and apply dotted overrides.

    Args:
        path: a YAML file holding one mapping.
        overrides: "a.b.0.c=value"; the value is read as YAML.

    Returns:
        Plain nested dicts and lists, and where each value came from.

    Raises:
        ConfigError: unreadable file, broken YAML, repeated key, alias, tag, unset variable, malformed override.
    """
    source = SourceMap(str(path))
    tree = _compose(_read_text(Path(path)), source.file)
    if tree is None:
        raise ConfigError(
            "the recipe is empty", where=source.file, fix="Write at least the blocks method, model, data"
        )
    values = _Reader(source).value(tree, (), 0)
    if not isinstance(values, dict):
        raise ConfigError("a recipe is a mapping of blocks", where=source.file, got=type(values).__name__)
    for text in overrides:
        _apply(values, text, source)
    return values, source


def _read_text(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not path.is_dir():
            raise ConfigError("this is a device or a pipe, not a recipe", where=str(path), fix="Give one YAML file")
        if status.st_size > _MOST_BYTES and not path.is_dir():
            raise ConfigError(
                "the file is too large for a recipe",
                where=str(path),
                got=f"{status.st_size} bytes",
                allowed=f"at most {_MOST_BYTES}",
                fix="Put rows into a data file",
            )
        return path.read_text(encoding="utf-8") if status.st_size else ""
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path()
        names = [str(item.relative_to(folder)) for item in folder.glob("*.y*ml")]
        close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
        fix = f"Perhaps you mean {str(folder / close[0])!r}" if close else "Give the path of a YAML file"
        raise ConfigError("no such recipe", where=str(path), fix=fix) from None
    except IsADirectoryError:
        raise ConfigError("this is a folder, not a recipe", where=str(path), fix="Give one YAML file") from None
    except UnicodeDecodeError as problem:
        raise ConfigError(f"not a UTF-8 text file: {problem.reason}", where=str(path)) from None
    except OSError as problem:
        raise ConfigError(f"cannot be read: {problem.strerror}", where=str(path)[:200]) from None
    except ValueError as problem:
        raise ConfigError(f"cannot be read: {problem}", where=ascii(str(path))[:200]) from None


def _compose(text: str, file: str) -> Any:
    """Node graph of the one document; None for an empty one."""
    try:
        return YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        place = f"{file}:{mark.line + 1}" if mark else file
        what = " ".join(str(problem.problem or problem.context or "cannot be read").split())
        raise ConfigError(f"not valid YAML: {what}", where=place, fix="Check indentation, quotes and colons") from None
    except YAMLError as problem:
        raise ConfigError(f"not valid YAML: {' '.join(str(problem).split())[:160]}", where=file) from None
    except RecursionError:
        raise ConfigError("nested too deeply", where=file, allowed=f"{_MAX_DEPTH} levels") from None


class _Reader:
    """Turns YAML nodes into plain values and notes their lines."""

    def __init__(self, source: SourceMap, *, note: bool = True):
        self.source, self.note, self.seen = source, note, set[int]()

    def value(self, node: Any, key: Key, depth: int) -> Any:
        line = node.start_mark.line + 1
        if self.note:
            self.source.lines.setdefault(key, line)
        if depth > _MAX_DEPTH:
            raise ConfigError("nested too deeply", where=self.place(line, key), allowed=f"{_MAX_DEPTH} levels")
        refuse_many_values(len(self.seen), self.source.file)
        if id(node) in self.seen:
            place = self.place(self.source.lines.get(key, line), key)
            raise ConfigError(
                "aliases are not used in recipes", where=place, fix="Write the value out where it belongs"
            )
        self.seen.add(id(node))
        if isinstance(node, MappingNode):
            self.untagged(node, key, "map")
            return self.mapping(node, key, depth)
        if isinstance(node, SequenceNode):
            self.untagged(node, key, "seq")
            return [self.value(item, (*key, index), depth + 1) for index, item in enumerate(node.value)]
        return self.scalar(node, key)

    def mapping(self, node: Any, key: Key, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            name = name_node.value
            if not isinstance(name, str) or name_node.tag.rsplit(":", 1)[-1] == "merge":
                raise ConfigError("a key is a plain word", where=self.place(line, key), got=str(name)[:40])
            if name in result:
                first = self.source.lines.get((*key, name), "?")
                raise ConfigError(
                    f"this key is written twice (first in line {first})",
                    where=self.place(line, (*key, name)),
                    fix="Keep one of them",
                )
            if self.note:
                self.source.lines[(*key, name)] = line
            result[name] = self.value(value_node, (*key, name), depth + 1)
        return result

    def scalar(self, node: Any, key: Key) -> Any:
        text, plain = node.value, node.style is None
        where = self.place(node.start_mark.line + 1, key)
        self.untagged(node, key, *_TAGS)
        if "${env:" in text:
            text = _ENV.sub(lambda match: _variable(match.group(1), where), text)
            plain = plain and _ENV.fullmatch(node.value) is not None
        if not plain:
            return text
        if len(text) > _MOST_DIGITS and not set(text) - set("+-_.0123456789abcdefABCDEFxo"):
            raise ConfigError("the number is too large", where=where, got=text, fix="Put it in quotes if it is a text")
        try:
            return _plain_scalar(text)
        except (ValueError, OverflowError) as problem:
            raise ConfigError(f"not a value: {problem}", where=where, got=text) from None

    def untagged(self, node: Any, key: Key, *allowed: str) -> None:
        if node.tag.rsplit(":", 1)[-1] not in allowed or not node.tag.startswith("tag:yaml.org,2002:"):
            where = self.place(node.start_mark.line + 1, key)
            raise ConfigError(
                "YAML tags are not used in recipes", where=where, got=str(node.tag)[:60], fix="Remove it"
            )

    def place(self, line: int, key: Key) -> str:
        if not self.note:
            return self.source.locate(key)
        return f"{self.source.file}:{line} {dotted(key)}".rstrip()


def refuse_many_values(count: int, file: str) -> None:
    """Raise ConfigError where a recipe already holds as many values as it may, and one more comes."""
    if count >= _MOST_VALUES:
        what, fix = "the recipe holds more values than a run has settings", "Put rows into a data file"
        raise ConfigError(what, where=file, allowed=f"at most {_MOST_VALUES}", fix=fix)


def _variable(name: str, where: str) -> str:
    if not _ENV_NAME.fullmatch(name):
        raise ConfigError("not the name of an environment variable", where=where, got=name, allowed="${env:NAME}")
    if name not in os.environ:
        raise ConfigError(
            f"the environment variable {name} is not set",
            where=where,
            fix=f"Set it: export {name}=..., then try again",
        )
    remember(os.environ[name], is_secret=_SECRET_NAME.search(name) is not None)
    return os.environ[name]


@functools.cache
def _scalars() -> Any:
    return YAML(typ="safe", pure=True)


def _plain_scalar(text: str) -> Any:
    """A scalar as YAML 1.2 reads it unquoted; dates stay text."""
    reader = _scalars()
    tag = str(reader.resolver.resolve(ScalarNode, text, (True, False)))
    if tag.rsplit(":", 1)[-1] in ("int", "float", "bool", "null"):
        return reader.constructor.construct_object(ScalarNode(tag, text))
    return text


def _apply(values: dict[str, Any], text: str, source: SourceMap) -> None:
    """Set one value by its dotted path."""
    path, separator, raw = text.partition("=")
    where = f"override {text}"
    parts = [
        int(part) if part.isdecimal() and part.isascii() and len(part) < 10 else part
        for part in path.strip().split(".")
    ]
    if not separator or not all(part != "" for part in parts) or not re.fullmatch(r"[\w.-]+", path.strip()):
        raise ConfigError("not an override", where=where, allowed="block.key=value, e.g. trainer.learning_rate=1e-6")
    key: Key = tuple(parts)
    scratch = SourceMap(source.file, {}, {key: text})
    node = _compose(raw, where) if raw.strip() else None
    value = None if node is None else _Reader(scratch, note=False).value(node, key, 0)
    target: Any = values
    for depth, part in enumerate(key[:-1]):
        step = _descend(target, part, where, key[:depth])
        if step is None and isinstance(target, dict):
            step = target[str(part)] = {}
        target = step
    last = key[-1]
    _descend(target, last, where, key[:-1])
    target[last if isinstance(target, list) else str(last)] = value
    for known in [path for path in source.lines if path[: len(key)] == key]:
        del source.lines[known]
    source.overrides[key] = text


def _descend(target: Any, part: str | int, where: str, above: Key) -> Any:
    if isinstance(target, list):
        if not isinstance(part, int) or part >= len(target):
            allowed = f"0 to {len(target) - 1}" if target else "nothing, the list is empty"
            raise ConfigError(f"{dotted(above)} is a list; no entry {part}", where=where, allowed=allowed)
        return target[part]
    if isinstance(target, dict):
        return target.get(str(part))
    raise ConfigError(f"{dotted(above)} holds a single value, not keys", where=where, got=target)
