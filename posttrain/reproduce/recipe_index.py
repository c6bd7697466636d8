"""recipes/README.md: every shipped recipe with what it needs, from the tables of the methods' own READMEs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain import registry
from posttrain.config.source import read_recipe
from posttrain.errors import ConfigError

_ROW = re.compile(r"^\| (`[^|]+`) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
_HEAD = """# Recipes

`posttrain check FILE` says what a recipe lacks on this machine, `posttrain train FILE` runs it. "not run here" is what
it says: such a recipe passes the checks, and nobody of this project had its hardware. Files of studies belong to
`posttrain reproduce KEY`. `posttrain reproduce --ledger` writes this page.

| recipe | hardware | data | time |
| --- | --- | --- | --- |
"""


def recipes_page(root: str | Path) -> str:
    """The page: a line for each recipe of each method.

    Args:
        root: folder that holds `recipes/`.

    Raises:
        ConfigError: a recipe is missing in the table of its folder's README.
    """
    recipes, lines = Path(root) / "recipes", []
    for key in registry.METHODS:
        folder = recipes / key
        told = _told(folder / "README.md")
        for path in sorted(folder.glob("*.yaml")):
            if path.name.startswith("claims"):
                continue
            if path.name not in told:
                fix = "Write a line | `FILE` | hardware | time | what to expect |"
                raise ConfigError("the README tells nothing of this recipe", where=str(path), fix=fix)
            hardware, time = told[path.name]
            name = f"[`{key}/{path.name}`]({key}/{path.name})"
            lines.append(f"| {name} | {hardware} | {', '.join(f'`{name}`' for name in _data(path))} | {time} |")
    return _HEAD + "\n".join(lines) + "\n"


def _told(readme: Path) -> dict[str, tuple[str, str]]:
    """File -> hardware and time, from the README's table of files."""
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    found: dict[str, tuple[str, str]] = {}
    for files, hardware, time, _ in _ROW.findall(text):
        found |= {name: (hardware.strip(), time.strip()) for name in re.findall(r"`([\w.-]+\.yaml)`", files)}
    return found


def _data(path: Path) -> list[str]:
    """Data sets and packaged tasks that a recipe names, each once."""
    return list(dict.fromkeys(_sources(read_recipe(path)[0], inside=False)))


def _sources(value: Any, *, inside: bool) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _sources(item, inside=inside)
    elif isinstance(value, dict):
        for name, item in value.items():
            if inside and name in ("path", "task", "reasoning_gym") and isinstance(item, str):
                yield item
            else:
                yield from _sources(item, inside=inside or name in ("data", "train", "eval", "tasks", "mixture"))
