r"""The corpus of verdicts: nothing wrong is called right, little right is called wrong, and nothing takes long.

Figures of docs/rewards.md are those of this test.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path

import pytest

from posttrain.rewards.math import score_one
from tests.rewards.corpus_benchmarks import benchmark_pairs
from tests.rewards.corpus_equal import equal_pairs
from tests.rewards.corpus_forms import forms, laborious
from tests.rewards.corpus_unequal import unequal_pairs

EQUAL = [*equal_pairs(), *benchmark_pairs(equal=True)]
UNEQUAL = [*unequal_pairs(), *benchmark_pairs(equal=False)]
FORMS, LABORIOUS = list(forms()), list(laborious())
# CPU seconds of one comparison. The bound is 2; the slowest of the corpus takes a fraction of it on an idle machine.
MAX_SECONDS = 2.0


def timed(completion: str, reference: str) -> tuple[float | None, float]:
    started = time.process_time()
    verdict = score_one(completion, reference)
    return verdict, time.process_time() - started


@pytest.fixture(scope="module", autouse=True)
def _loaded():
    score_one("Answer: \\sqrt{2}", "\\sqrt{3}")


def test_the_corpus_is_as_large_as_it_is_said_to_be():
    assert len(EQUAL) >= 1000 and len(UNEQUAL) >= 900 and len(FORMS) >= 800 and len(LABORIOUS) >= 600


def test_equal_answers_are_right_but_for_one_in_a_hundred():
    missed, slow = [], []
    for kind, reference, given in EQUAL:
        verdict, seconds = timed(f"Answer: {given}", reference)
        missed += [(kind, reference, given, verdict)] if verdict != 1.0 else []
        slow += [(seconds, given)] if seconds > MAX_SECONDS else []
    assert len(missed) <= len(EQUAL) / 100, missed
    assert not slow


def test_unequal_answers_are_never_right_and_have_a_verdict():
    accepted, slow = [], []
    for kind, reference, given in UNEQUAL:
        verdict, seconds = timed(f"Answer: {given}", reference)
        accepted += [(kind, reference, given, verdict)] if verdict != 0.0 else []
        slow += [(seconds, given)] if seconds > MAX_SECONDS else []
    assert not accepted and not slow


def test_the_form_of_a_completion_does_not_change_the_verdict():
    wrong = [form for form in FORMS if score_one(form[2], form[1]) != form[3]]
    assert not wrong


@pytest.mark.timeout(300)
def test_no_answer_keeps_the_grader_busy():
    accepted, slow = [], []
    for kind, reference, given in LABORIOUS:
        verdict, seconds = timed(f"Answer: {given}", reference)
        accepted += [(kind, reference[:60], given[:60])] if verdict == 1.0 else []
        slow += [(seconds, reference[:60], given[:60])] if seconds > MAX_SECONDS else []
    assert not accepted and not slow


def test_the_page_tells_the_figures_of_this_corpus():
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    for name, pairs in {"equal": EQUAL, "not equal": UNEQUAL, "forms": FORMS, "laborious": LABORIOUS}.items():
        assert re.search(rf"^\| {name} \| {len(pairs)} \|", page, re.MULTILINE), f"{name}: {len(pairs)}"
    for kind, count in Counter(kind for kind, *_ in [*EQUAL, *UNEQUAL]).items():
        assert kind in " ".join(page.split()), f"{kind} ({count} pairs) is not on the page"
