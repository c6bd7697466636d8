"""Data order: a function of (seed, epoch), in the layout that group-based training needs."""

from __future__ import annotations

import torch
from trl.trainer.utils import RepeatSampler

from posttrain.seam.sampling import EpochRepeatSampler, EpochSampler

DATA = list(range(7))


def _epochs(sampler, epochs):
    orders = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    return orders


def test_a_fresh_sampler_continues_where_the_first_one_was():
    first = _epochs(EpochSampler(DATA, seed=3), [0, 1, 2, 3])
    resumed = _epochs(EpochSampler(DATA, seed=3), [2, 3])
    assert resumed == first[2:]
    assert len({tuple(order) for order in first}) == 4
    assert all(sorted(order) == DATA for order in first)


def test_plain_trl_repeats_the_first_epoch_after_a_resume():
    """The defect this sampler replaces: a new RepeatSampler starts from the seed again, whatever the epoch."""
    whole = RepeatSampler(DATA, mini_repeat_count=2, batch_size=3, seed=3)
    first, second = list(whole), list(whole)
    resumed = list(RepeatSampler(DATA, mini_repeat_count=2, batch_size=3, seed=3))
    assert resumed == first != second


def test_neighbouring_seeds_do_not_share_epochs():
    orders = [tuple(o) for seed in range(4) for o in _epochs(EpochSampler(range(50), seed=seed), range(4))]
    assert len(set(orders)) == 16


def test_the_global_generator_is_not_touched():
    state = torch.get_rng_state()
    list(EpochSampler(DATA, seed=0))
    assert torch.equal(state, torch.get_rng_state())


def test_layout_is_trls_with_incomplete_blocks_left_out():
    sampler = EpochRepeatSampler(DATA, seed=0, num_generations=2, prompts_per_batch=3, repeat_count=2, shuffle=False)
    block = [0, 0, 1, 1, 2, 2]
    second = [3, 3, 4, 4, 5, 5]
    assert list(sampler) == block + block + second + second
    trl = RepeatSampler(DATA, mini_repeat_count=2, batch_size=3, repeat_count=2, shuffle=False)
    assert list(sampler) == list(trl)
    assert len(sampler) == len(trl) == 24


def test_fewer_prompts_than_a_block_give_nothing():
    sampler = EpochRepeatSampler(DATA[:2], seed=0, num_generations=2, prompts_per_batch=3, repeat_count=1)
    assert list(sampler) == []
    assert len(sampler) == 0
