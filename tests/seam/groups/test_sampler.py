"""Rows by group: shares that are kept, an order that seed and proportions decide, a lag that is checked."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from posttrain.errors import ConfigError
from posttrain.seam.groups.sampler import FixedMixture, GroupMixtureSampler, MixedRepeatSampler, read_proportions

SIZES = (50, 7, 30)
GROUPS = np.repeat(np.arange(3), SIZES)[np.random.default_rng(0).permutation(sum(SIZES))]


def sampler(proportions=(0.5, 0.2, 0.3), rows=8, steps=40, seed=3, **options):
    return GroupMixtureSampler(
        GROUPS, proportions=proportions, rows_per_step=rows, num_steps=steps, seed=seed, **options
    )


def groups_drawn(source):
    return GROUPS[list(source)].reshape(source.num_steps, source.rows_per_step)


def test_shares_are_kept_within_two_rows_at_every_step():
    drawn = groups_drawn(sampler())
    for step in range(1, 41):
        counts = np.bincount(drawn[:step].ravel(), minlength=3)
        assert np.abs(counts - np.array([0.5, 0.2, 0.3]) * 8 * step).max() < 2


def test_two_groups_are_kept_within_one_row():
    source = GroupMixtureSampler(
        np.array([0, 1] * 9), proportions=[0.37, 0.63], rows_per_step=5, num_steps=100, seed=0
    )
    drawn = np.array([0, 1] * 9)[list(source)].reshape(100, 5)
    behind = np.cumsum((drawn == 0).sum(axis=1)) - 0.37 * 5 * np.arange(1, 101)
    assert np.abs(behind).max() < 1


def test_each_row_of_a_group_comes_once_before_any_comes_again():
    rows = list(sampler())
    for group, size in enumerate(SIZES):
        own = [row for row in rows if GROUPS[row] == group]
        for begin in range(0, len(own) - size + 1, size):
            assert len(set(own[begin : begin + size])) == size
    first, second = (tuple(row for row in rows if GROUPS[row] == 1)[k * 7 : k * 7 + 7] for k in (0, 1))
    assert first != second, "every pass has an order of its own"


def test_a_group_of_share_zero_gives_no_row():
    assert not (groups_drawn(sampler((0.5, 0.0, 0.5))) == 1).any()


def test_order_follows_from_the_seed():
    assert list(sampler()) == list(sampler())
    assert list(sampler()) != list(sampler(seed=4))


def test_a_change_reaches_the_step_that_the_lag_says_and_no_earlier_one():
    plain, changed = sampler(lag=2), sampler(lag=2)
    rows = iter(changed)
    before = list(itertools.islice(rows, 8 * 6 + 3))  # step 6 has begun
    assert changed.set_proportions([0.0, 1.0, 0.0], after=4) == 7
    after = list(rows)
    drawn = np.array(before + after)
    assert (drawn[: 8 * 7] == np.array(list(plain))[: 8 * 7]).all()
    assert (GROUPS[drawn[8 * 7 :]] == 1).all()


def test_rows_drawn_before_the_change_are_never_taken_back():
    source = sampler(lag=1)
    next(itertools.islice(iter(source), 8 * 6, None))  # a row of step 6
    with pytest.raises(ConfigError, match="proportions_lag: .* lag .*got 1.*at least 2"):
        source.set_proportions([1.0, 0.0, 0.0], after=4)


def test_a_history_repeats_the_order():
    source = sampler()
    rows = iter(source)
    drawn = list(itertools.islice(rows, 8 * 3))
    source.set_proportions([0.1, 0.1, 0.8], after=2)
    drawn += list(itertools.islice(rows, 8 * 5))
    source.set_proportions([0.3, 0.3, 0.4], after=7)
    drawn += list(rows)
    again = sampler()
    again.load_history(source.history)
    assert list(again) == drawn


def test_a_planned_block_has_exact_numbers_and_leaves_the_rest_as_it_was():
    probe = np.array([0.2, 0.6, 0.2])

    def plan(step):
        return FixedMixture(probe, first=step == 10) if 10 <= step < 15 else None

    drawn = groups_drawn(sampler(plan=plan))
    assert np.bincount(drawn[10:15].ravel(), minlength=3).tolist() == [8, 24, 8]
    outside = np.concatenate([drawn[:10], drawn[15:]])
    assert np.abs(np.bincount(outside.ravel()) - np.array([0.5, 0.2, 0.3]) * 8 * 35).max() < 2


def test_intended_proportions_of_every_step():
    source = sampler(plan=lambda step: FixedMixture(np.array([1.0, 0, 0]), first=True) if step == 1 else None)
    source.set_proportions([0.0, 0.5, 0.5], after=1)
    assert [source.proportions_at(step).tolist() for step in range(4)] == [
        [0.5, 0.2, 0.3],
        [1.0, 0.0, 0.0],
        [0.5, 0.2, 0.3],
        [0.0, 0.5, 0.5],
    ]


def test_shares_are_kept_although_they_change_at_every_step():
    source = sampler((0.9, 0.05, 0.05), rows=4, steps=200)
    drawn = []
    for step, rows in enumerate(_steps(source, 4)):
        drawn += rows
        if step < 198:
            source.set_proportions([0.9 - step / 1000, 0.05 + step / 2000, 0.05 + step / 2000], after=step)
    intended = sum(source.proportions_at(step) * 4 for step in range(200))
    assert np.abs(np.bincount(GROUPS[drawn], minlength=3) - intended).max() < 2
    assert len(source.history) == 199


def _steps(rows, size):
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


@pytest.mark.parametrize("wrong", [[0.5, 0.5], [0.5, 0.6, 0.3], [-0.1, 0.6, 0.5], [float("nan"), 0.5, 0.5]])
def test_what_are_no_proportions_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"proportions|groups"):
        sampler(wrong)


def test_a_group_without_rows_is_refused():
    with pytest.raises(ConfigError, match="every group needs rows"):
        GroupMixtureSampler(np.array([0, 0, 2]), proportions=[0.3, 0.3, 0.4], rows_per_step=2, num_steps=1, seed=0)


def test_proportions_of_a_run_are_read_by_name(tmp_path):
    path = tmp_path / "mixing.json"
    path.write_text(json.dumps({"groups": ["a", "b"], "proportions": [0.25, 0.75]}))
    assert read_proportions(path, ["b", "a"], where="method.proportions_from") == [0.75, 0.25]
    with pytest.raises(ConfigError, match=r"proportions_from: the file is about other groups"):
        read_proportions(path, ["a", "c"], where="method.proportions_from")
    with pytest.raises(ConfigError, match=r"proportions_from: no proportions can be read"):
        read_proportions(tmp_path / "none.json", ["a"], where="method.proportions_from")


def prompts(**options):
    layout = {"num_generations": 2, "prompts_per_batch": 6, "repeat_count": 1, "seed": 3}
    return MixedRepeatSampler(range(87), groups=GROUPS, proportions=[0.5, 0.0, 0.5], **layout, **options)


def test_prompts_of_a_generation_batch_have_the_shares_in_every_epoch():
    source = prompts()
    drawn = []
    for epoch in range(3):
        source.set_epoch(epoch)
        blocks = list(source.blocks())
        assert len(blocks) == 14 and len(list(source)) == len(source) == 14 * 12
        assert all(np.bincount(GROUPS[block], minlength=3).tolist() == [3, 0, 3] for block in blocks)
        drawn += [row for block in blocks for row in block]
    own = [row for row in drawn if GROUPS[row] == 0]
    assert len(set(own[:50])) == len(set(own[50:100])) == 50, "each once before any again, across epochs"


def test_an_epoch_is_the_same_however_it_is_reached():
    first, second = prompts(), prompts()
    first.set_epoch(0)
    list(first)
    first.set_epoch(1)
    second.set_epoch(1)
    assert list(first) == list(second)
