"""The filter by rollouts: which rows it keeps, its controls, its record, and what it refuses."""

from __future__ import annotations

import pytest

from posttrain.errors import DataError, ResumeError
from posttrain.methods.rft_cpt.choose import Filtered, checked_cache, select_rows

COUNTS = [0, 1, 8, 3]


def test_rows_with_one_right_rollout_or_more_are_kept_and_saturated_ones_on_demand():
    assert select_rows(COUNTS, num_rollouts=8) == [1, 2, 3]
    assert select_rows(COUNTS, num_rollouts=8, max_correct=7) == [1, 3]
    assert select_rows([0, None, 2], num_rollouts=8) == [2], "no verdict is not right, and not wrong either"


def test_controls_have_the_size_of_the_solvable_set():
    counts = [0, 0, 0, 1, 2, None, 0, 5]
    assert select_rows(counts, num_rollouts=8) == [3, 4, 7]
    assert len(select_rows(counts, num_rollouts=8, choose="unsolvable")) == 3
    assert set(select_rows(counts, num_rollouts=8, choose="unsolvable")) <= {0, 1, 2, 6}
    chosen = select_rows(counts, num_rollouts=8, choose="random")
    assert len(chosen) == 3 and 5 not in chosen and chosen == select_rows(counts, num_rollouts=8, choose="random")
    assert any(select_rows(counts, num_rollouts=8, choose="random", seed=seed) != chosen for seed in range(5))
    assert len(select_rows(counts, num_rollouts=8, max_examples=2)) == 2


def test_keeping_nothing_is_an_error_with_the_histogram():
    with pytest.raises(DataError, match="keeps none of 3 rows .*0: 2, 1: 0, 2: 1"):
        select_rows([0, 0, 2], num_rollouts=2, max_correct=1)


def test_the_record_counts_rows_by_right_rollouts():
    kept = Filtered([1, 2, 3], [*COUNTS, None], 8, "solvable", 40)
    assert kept.record()["histogram"] == [1, 1, 0, 1, 0, 0, 0, 0, 1]
    assert kept.record()["kept"] == 3 and kept.record()["without_verdict"] == 1
    assert kept.sentence().startswith("kept 3 of 5 training rows (solvable; ")


@pytest.mark.parametrize(("key", "word"), [("model", "another checkpoint"), ("data", "other rows")])
def test_a_record_of_another_checkpoint_or_other_rows_is_refused(key: str, word: str):
    identity = {"model": "a", "data": "b", "settings": {"num_rollouts": 8}}
    assert checked_cache({"identity": identity, "counts": COUNTS}, identity, where="x") == COUNTS
    with pytest.raises(ResumeError, match=word):
        checked_cache({"identity": identity, "counts": COUNTS}, {**identity, key: "c"}, where="x")
