"""What a check says about methods some of whose steps are supervised, before any model is read."""

from __future__ import annotations

import pytest

from posttrain.errors import ConfigError, DataError
from tests.config.recipes import checked, numbered, rows_file, told


def from_rows(folder, rows):
    return {"data.train": {"path": rows_file(folder, rows)}}


def test_fewer_demonstrations_than_a_supervised_step_takes(tmp_path):
    rows = numbered(20)
    for row in rows[:5]:
        row["solution"] = ""
    changes = {**from_rows(tmp_path, rows), "data.max_empty_solution_fraction": 0.5}
    fits = checked(tmp_path, "sasr", {**changes, "method.sft_per_device_batch_size": 15})
    assert not fits.errors
    report = checked(tmp_path, "sasr", {**changes, "method.sft_per_device_batch_size": 8}, world_size=2)
    found = [error for error in report.errors if isinstance(error, DataError)]
    assert len(found) == 1 and "a supervised step takes 16 demonstrations, so none could be made" in str(found[0])
    assert "15 rows with a demonstration" in str(found[0])


@pytest.mark.parametrize("key", ["sasr", "chord"])
def test_a_missing_demonstration_column_is_named(key, tmp_path):
    rows = [{name: value for name, value in row.items() if name != "solution"} for row in numbered(40)]
    report = checked(tmp_path, key, from_rows(tmp_path, rows))
    assert any("solution" in str(error) for error in report.errors), report.lines()


@pytest.mark.parametrize(
    ("key", "changes", "message"),
    [
        ("sasr", {"method.warmup_sft_steps": 0}, "without a warm-up the controller grad_norm has nothing to compare"),
        ("sasr", {"method.sft_prob_min": 0.9, "method.sft_prob_max": 0.1}, "the least probability is above the"),
        ("chord", {"method.mu_start": 0.1, "method.mu_end": 0.5}, "the supervised share would grow"),
    ],
    ids=str,
)
def test_settings_are_refused_with_their_line(key, changes, message, tmp_path):
    assert message in told(checked(tmp_path, key, changes), ConfigError)
