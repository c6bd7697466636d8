"""Every recipe that is shipped passes the checks, for one process and on a machine without a GPU or the Hub.

Marked slow, and still part of every full run, as `test_smoke.py` is.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.config.loader import load
from posttrain.preflight.check import check
from posttrain.registry import trained
from tests.methods.case import case_of

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(
    path
    for path in (ROOT / "recipes").rglob("*.yaml")
    if "jobs" not in path.parts and not path.name.startswith("claims")
)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_a_shipped_recipe_passes_check(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    report = check(load(path.relative_to(ROOT)))
    assert report.ok, "\n".join(report.lines())
    doubts = [str(warning) for warning in report.warnings]
    allowed = ("the Hub cannot be reached", "which is not here", "is not installed", "pushing needs a token")
    key = path.parent.name
    allowed += tuple(case_of(key).told.get(path.name, ())) if key in trained() else ()
    assert all(any(words in doubt for words in allowed) for doubt in doubts), "\n".join(doubts)


def test_there_are_recipes():
    assert RECIPES
