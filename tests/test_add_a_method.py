"""docs/add_a_method.md tells every hook that there is, and none that there is not."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from posttrain.config.steps import StageStep
from posttrain.registry import SLOTS, Method
from posttrain.seam.checkpoint.resumable import ResumableTrainer
from posttrain.seam.policy.alternation import AlternatingTrainer
from posttrain.seam.policy.demonstrations import DemonstrationTrainer
from posttrain.seam.policy.trainer import PolicyTrainer
from posttrain.seam.supervised.trainer import SupervisedConfig, SupervisedTrainer

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "add_a_method.md").read_text(encoding="utf-8")
# Beside hooks, what a table may name in its first column.
CALLED = re.compile(r"`(\w+)[(`]")


def section(title: str) -> str:
    """The part under a heading that begins with `title`, to the next heading."""
    return re.split(r"\n#+ ", PAGE.split(f" {title}", 1)[1], maxsplit=1)[0]


def named(title: str) -> set[str]:
    """What the first column of the section's table names."""
    rows = [line.split(" | ")[0] for line in section(title).splitlines() if line.startswith("| `")]
    return {name for row in rows for name in CALLED.findall(row)}


def hooks_of(kind: type, title: str) -> set[str]:
    """Public names between the "for methods" heading of a class's source and the next heading."""
    source = Path(inspect.getsourcefile(kind) or "").read_text(encoding="utf-8")
    part = source.split(f"# ---- {title} ----")[1].split("    # ----")[0]
    return set(re.findall(r"^    def ([a-z]\w+)", part, re.MULTILINE))


@pytest.mark.parametrize(
    ("kind", "title", "heading", "not_hooks"),
    [
        (ResumableTrainer, "for methods", "Hooks of every trainer", {"describe_window"}),
        (PolicyTrainer, "hooks for methods", "Hooks of `PolicyTrainer`", {"count_window"}),
        (SupervisedTrainer, "hooks for methods", "Hooks of `SupervisedTrainer`", {"group_stats", "data_epoch"}),
    ],
)
def test_the_page_has_the_hooks_of_a_base(kind, title, heading, not_hooks):
    told = named(heading)
    assert not (unknown := {name for name in told if not hasattr(kind, name)}), f"no such hook: {unknown}"
    missing = hooks_of(kind, title) - told - not_hooks
    assert not missing, f"docs/add_a_method.md lacks {missing}"


def test_the_page_has_the_hooks_of_a_step():
    hooks = {name for name, value in vars(StageStep).items() if callable(value) and not name.startswith("_")}
    assert named("Hooks of a run") == hooks - {"read"}


def test_the_page_has_the_fields_of_a_declaration():
    told = named("1. Declare it")
    assert told == {field.name for field in fields(Method)} - {"summary", "key"}
    assert all(f"`{slot}`" in section("1. Declare it") for slot in SLOTS)


def test_names_in_the_text_are_there():
    text = section("Hooks of `PolicyTrainer`").split("Methods with demonstrations")[1]
    names = set(re.findall(r"`([a-z_]+)`", text))
    assert names and all(hasattr(DemonstrationTrainer, name) or hasattr(AlternatingTrainer, name) for name in names)
    checks = section("Hooks of `SupervisedTrainer`").split("answers `posttrain check`")[1]
    names = set(re.findall(r"`([a-z]+_[a-z_]+)`", checks))
    assert names and all(hasattr(SupervisedConfig, name) for name in names)


def test_the_code_of_the_example_is_the_methods():
    """Lines of the page's Python blocks stand in the room; "..." leaves some out."""
    room = Path(__file__).resolve().parents[1] / "posttrain" / "methods" / "chord"
    source = "".join(path.read_text(encoding="utf-8") for path in sorted(room.glob("*.py")))
    flat = " ".join(source.split())
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        for line in block.splitlines():
            text = line.strip().rstrip(",")
            if text and "..." not in text:
                assert " ".join(text.split()) in flat, text
