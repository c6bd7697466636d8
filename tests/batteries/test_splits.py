"""Every method: one optimizer step has the same gradient however its rows are cut into micro-batches."""

from __future__ import annotations

import pytest

from posttrain.registry import METHODS
from tests.batteries.runs import Recorder, build, gradients, relative_difference
from tests.methods.case import case_of

SPLITS = [(8, 1), (4, 2), (2, 4)]
# float32 sums in another order; measured differences are below 1e-6.
TOLERANCE = 1e-5


POLICY_KEYS = [key for key, entry in METHODS.items() if entry.generates]
VARIANTS = ({}, {"beta": 0.05}, {"entropy_coef": 0.01}, {"preset": "dapo"})
CASES = [(key, variant) for key in POLICY_KEYS for variant in VARIANTS if not {*case_of(key).without} & {*variant}]


@pytest.mark.parametrize(("key", "overrides"), CASES, ids=str)
def test_policy_gradient_does_not_depend_on_the_split(key, overrides, warm_dir, tmp_path):
    found, seen = [], []
    for rows, steps in SPLITS:
        reward = Recorder()
        trainer = build(
            key,
            warm_dir,
            tmp_path / f"{rows}",
            reward=reward,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=steps,
            max_steps=1,
            max_grad_norm=0.0,
            **overrides,
        )
        found.append(gradients(trainer))
        seen.append(reward.seen)
    assert seen[0] == seen[1] == seen[2]
    assert relative_difference(found[1], found[0]) < TOLERANCE
    assert relative_difference(found[2], found[0]) < TOLERANCE


SUPERVISED = [
    (key, {name: value} if value else {})
    for key, entry in METHODS.items()
    for name, value in (("loss_aggregation", None), ("loss_aggregation", "seq_mean_token_mean"))
    if entry.learns_rows and (value is None or name not in case_of(key).without)
]


@pytest.mark.parametrize(("key", "overrides"), SUPERVISED, ids=str)
def test_supervised_gradient_does_not_depend_on_the_split(key, overrides, warm_dir, tmp_path):
    found = [
        gradients(
            build(
                key,
                warm_dir,
                tmp_path / f"{rows}",
                per_device_train_batch_size=rows,
                gradient_accumulation_steps=steps,
                max_steps=1,
                max_grad_norm=0.0,
                **overrides,
            )
        )
        for rows, steps in SPLITS
    ]
    assert relative_difference(found[1], found[0]) < TOLERANCE
    assert relative_difference(found[2], found[0]) < TOLERANCE


@pytest.mark.parametrize("key", POLICY_KEYS)
def test_dropping_rows_without_gradient_changes_nothing(key, warm_dir, tmp_path):
    found = [
        gradients(
            build(key, warm_dir, tmp_path / f"{drop}", max_steps=1, max_grad_norm=0.0, drop_zero_advantage_rows=drop)
        )
        for drop in (True, False)
    ]
    assert relative_difference(found[0], found[1]) < TOLERANCE
