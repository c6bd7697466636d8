"""Small recipes that pass every check, one a method, ways to write variations of them, and to check them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from posttrain.errors import ConfigError
from posttrain.registry import trained
from tests.config.bases import GRPO as GRPO
from tests.config.bases import SFT as SFT
from tests.methods.case import case_of

BASES = {key: dict(case_of(key).recipe) for key in trained()}
HPT = BASES["hpt"]  # the example of a policy method that reads demonstrations
REMOVE = object()


def changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of a recipe with dotted keys set; the value `REMOVE` takes a key out."""
    values = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = path.split(".")
        target: Any = values
        for part in parents:
            target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        if value is REMOVE:
            del target[last]
        else:
            target[last] = value
    return values


def write(folder: Path, values: dict[str, Any], name: str = "recipe.yaml") -> Path:
    """Write a recipe and return its path; the folder of the run lies beside it unless the recipe says otherwise."""
    values = copy.deepcopy(values)
    if isinstance(values.get("trainer"), dict):
        values["trainer"].setdefault("output_dir", str(folder / "run"))
    path = folder / name
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    with path.open("w") as file:
        writer.dump(values, file)
    return path


GOOD_ROW = {"prompt": "2+3=?", "answer": "5", "solution": "Answer: 5"}


def rows_file(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(count: int, **columns: Any) -> list[dict[str, Any]]:
    return [
        {**GOOD_ROW, "prompt": f"{i}+3=?", "answer": str(i + 3), "solution": f"Answer: {i + 3}", **columns}
        for i in range(count)
    ]


def checked(
    folder: Path,
    base: str,
    changes: dict[str, Any],
    *,
    world_size: int = 1,
    will_train: bool = False,
    show_rows: int = 0,
) -> Any:
    """Report on a changed recipe."""
    from posttrain.config.loader import load
    from posttrain.preflight.check import check

    cfg = load(write(folder, changed(BASES[base], changes)))
    return check(cfg, world_size=world_size, will_train=will_train, show_rows=show_rows)


def told(report: Any, kind: type = ConfigError, *, warning: bool = False) -> str:
    """The one finding of a report."""
    found = report.warnings if warning else report.errors
    assert len(found) == 1, report.lines()
    assert isinstance(found[0], kind), repr(found[0])
    assert "recipe.yaml" in str(found[0]), "the place comes first"
    return str(found[0])
