"""Every recipe that is shipped passes the checks, for one process and on a machine without a GPU or the Hub.

Marked slow, and still part of every full run, as `test_smoke.py` is.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.config.loader import load
from posttrain.preflight.check import check

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(
    path
    for path in (ROOT / "recipes").rglob("*.yaml")
    if "jobs" not in path.parts and not path.name.startswith("claims")
)
# Warnings that a recipe means to have.
ON_PURPOSE = {
    "rft_cpt/qwen2.5-vl-7b_vqa.yaml": (
        "rollouts are drawn from another distribution",
    ),  # top_p 0.99, as the paper has it
    "chord/reproduce.yaml": ("refuses the demonstration or answer itself",),  # a part of them is wrong
    "sasr/reproduce_noisy.yaml": ("refuses the demonstration or answer itself",),
    "hpt/reproduce.yaml": ("refuses the demonstration or answer itself",),  # a part of them is wrong
    # What is asked is what a model still answers, not whether it generalises.
    "masked_thought/reproduce.yaml": ("training prompts too",),  # where a sum is read from, not whether it is known
    "rft_cpt/reproduce.yaml": ("training prompts too",),
    "rft_cpt/reproduce_harder.yaml": ("training prompts too",),
    "rft_cpt/suite.yaml": ("training prompts too",),
    "unlearning_paths/reproduce.yaml": ("training prompts too",),  # facts that are to stay known
    "unlearning_paths/reproduce_losses.yaml": ("training prompts too",),
}


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_a_shipped_recipe_passes_check(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    report = check(load(path.relative_to(ROOT)))
    assert report.ok, "\n".join(report.lines())
    doubts = [str(warning) for warning in report.warnings]
    allowed = ("the Hub cannot be reached", "which is not here", "is not installed", "pushing needs a token")
    allowed += ON_PURPOSE.get(str(path.relative_to(ROOT / "recipes")), ())
    assert all(any(words in doubt for words in allowed) for doubt in doubts), "\n".join(doubts)


def test_there_are_recipes():
    assert RECIPES
