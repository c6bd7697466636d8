"""Files are replaced whole or not at all, and metrics read back as the run finally went."""

import json
import math
import os
import stat

import numpy
import pytest
import torch

from posttrain.reports import records


def line(event, step, elapsed, **values):
    return json.dumps({"event": event, "step": step, "elapsed_seconds": elapsed, **values}) + "\n"


def test_write_replaces_the_content_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "new" / "a.json"
    records.write_atomic(path, "first")
    records.write_atomic(path, "second")
    assert path.read_text() == "second"
    assert os.listdir(path.parent) == ["a.json"]


def test_a_crash_before_the_rename_keeps_the_old_file_and_cleans_up(tmp_path, monkeypatch):
    path = records.write_atomic(tmp_path / "a.json", "old")

    def crash(source, target):
        raise OSError("disk gone")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk gone"):
        records.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_written_files_have_the_users_permissions(tmp_path):
    old = os.umask(0o022)
    try:
        path = records.write_atomic(tmp_path / "a", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_values_json_lacks_are_written_as_text_and_never_as_invalid_json(tmp_path):
    value = {
        "nan": math.nan,
        "inf": [math.inf, -math.inf],
        "tensor": torch.tensor(0.5),
        "tensors": torch.tensor([1, 2]),
        "numpy": numpy.float32(0.25),
        "path": tmp_path,
        1: None,
        "set": {"b", "a"},
    }
    text = records.write_json(tmp_path / "a.json", value).read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == {
        "nan": "NaN",
        "inf": ["Infinity", "-Infinity"],
        "tensor": 0.5,
        "tensors": [1, 2],
        "numpy": 0.25,
        "path": str(tmp_path),
        "1": None,
        "set": ["a", "b"],
    }


def test_half_a_surrogate_pair_survives_the_round_trip(tmp_path):
    path = records.write_jsonl(tmp_path / "a.jsonl", [{"completion": "ok \ud83d, 数"}])
    assert json.loads(path.read_text(encoding="utf-8")) == {"completion": "ok \ud83d, 数"}


def test_metrics_of_a_resumed_run_are_those_of_the_attempt_that_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = line("start", 0, 0) + "".join(line("log", step, step * 10, loss=1.0) for step in (1, 2, 3))
    second = line("start", 2, 0) + line("log", 3, 10, loss=2.0) + line("log", 4, 25, loss="NaN", grad_norm="Infinity")
    path.write_text(first + second)
    events = records.read_metrics(path)
    assert [(event["step"], event["loss"]) for event in events[:3]] == [(1, 1.0), (2, 1.0), (3, 2.0)]
    assert events[3]["step"] == 4 and math.isnan(events[3]["loss"]) and events[3]["grad_norm"] == math.inf
    # 30 s of the first attempt, one of its steps lost, and 25 s of the second.
    assert records.training_seconds(path) == 55


def test_a_run_started_anew_in_the_same_folder_forgets_the_old_curves(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line("start", 0, 0) + line("log", 5, 9) + line("start", 0, 0) + line("log", 1, 2))
    assert [event["step"] for event in records.read_metrics(path)] == [1]


def test_a_torn_last_line_is_left_out_and_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = line("start", 0, 0) + line("log", 1, 2)
    path.write_text(whole + '{"event": "log", "st')
    assert [event["step"] for event in records.read_metrics(path)] == [1]
    assert records.cut_after(path, 1) == {} and path.read_text() == whole


def test_what_is_done_again_is_cut_and_its_seconds_stay_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert records.cut_after(path, 2) == {}
    path.write_text(line("start", 0, 0) + "".join(line("log", step, step * 10) for step in (1, 2, 3, 4)))
    cut = records.cut_after(path, 2)
    assert cut == {"cut_lines": 2, "cut_seconds": 20}
    assert path.read_text() == line("start", 0, 0) + line("log", 1, 10) + line("log", 2, 20)
    with path.open("a") as file:
        file.write(line("start", 2, 0, **cut) + line("log", 3, 7))
    assert records.training_seconds(path) == 20 + 20 + 7
    # It is stopped again, and goes on from before the first stop: seconds that were cut earlier are not forgotten.
    assert records.cut_after(path, 1) == {"cut_lines": 3, "cut_seconds": 10 + 20 + 7}


@pytest.mark.parametrize("content", ["broken\n", '{"step": 1}\n', "[1]\n"])
def test_a_file_that_no_run_has_written_is_put_aside(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    assert records.cut_after(path, 0) == {"set_aside": "metrics.damaged.jsonl"}
    assert not path.exists() and (tmp_path / "metrics.damaged.jsonl").read_text() == content


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line("start", 0, 0) + "broken\n" + line("log", 1, 2))
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: not a JSON object"):
        records.read_metrics(path)


def test_no_file_means_no_events(tmp_path):
    assert records.read_metrics(tmp_path / "none.jsonl") == []
    assert records.training_seconds(tmp_path / "none.jsonl") == 0
