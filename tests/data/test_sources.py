"""Any source gives the same columns; what cannot be used is named by file, row and column, with the remedy."""

from __future__ import annotations

import json
from types import SimpleNamespace

import datasets
import pytest

from posttrain.data.sources import COLUMNS, load_source, with_one_kind_of_messages
from posttrain.errors import ConfigError, DataError
from posttrain.reports.provenance import data_fingerprint

ROWS = [
    {"question": "1+1?", "answer": "one and one\n#### 2", "target": [{"role": "assistant", "content": "two"}]},
    {"question": "2+2?", "answer": "#### 4", "target": [{"role": "assistant", "content": "four"}]},
]
MAP = {"prompt": "question", "answer": "answer", "solution": "target"}


@pytest.fixture
def places(tmp_path):
    """The same rows as a file of every kind, and as folders."""
    table = datasets.Dataset.from_list(ROWS)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=table).save_to_disk(tmp_path / "splits")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "a.csv").write_text("prompt,answer\n1+1?,2\n2+2?,4\n")
    (tmp_path / "code.py").write_text("raise SystemExit('ran')")
    return tmp_path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "saved", "splits", "folder"])
def test_every_kind_of_file_gives_the_same_rows(places, name):
    rows = load_source({"path": str(places / name), "columns": MAP})
    assert rows.column_names == list(COLUMNS)
    assert rows["prompt"][:] == [[{"role": "user", "content": text}] for text in ("1+1?", "2+2?")]
    assert rows["answer"][:] == ["2", "4"]
    assert rows["solution"][:] == ["two", "four"]
    assert rows["group"][:] == rows["entry"][:] == ["", ""]
    # The folder is where the run took place; the name is what the rows are.
    assert rows["task"][:] == [name, name]


def test_a_csv_with_our_names_needs_no_mapping_and_numbers_become_text(places):
    rows = load_source({"path": str(places / "a.csv")}, system_prompt="Be brief.")
    assert rows["answer"][:] == ["2", "4"]
    assert rows[0]["prompt"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]


def test_objects_with_attributes_work_like_mappings(places):
    source = SimpleNamespace(path=str(places / "a.jsonl"), columns=MAP, limit=1, task=None, size=None)
    assert load_source(source)["answer"][:] == ["2"]


def test_text_format_keeps_prompts_as_text(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "once upon a time"}\n')
    rows = load_source({"path": str(tmp_path / "t.jsonl"), "format": "text"})
    assert rows[0]["prompt"] == "once upon a time"
    task = load_source({"task": "arithmetic", "size": 1, "seed": 1, "format": "text"})
    assert isinstance(task[0]["prompt"], str)
    with pytest.raises(ConfigError, match="text has no system message"):
        load_source({"path": str(tmp_path / "t.jsonl"), "format": "text"}, system_prompt="x")


def test_message_prompts_keep_their_own_system_message_and_nested_fields_can_be_mapped(tmp_path):
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "hi"}]
    row = {"messages": own, "reward": {"truth": 7.5}}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    columns = {"prompt": "messages", "answer": "reward.truth"}
    rows = load_source({"path": str(tmp_path / "m.jsonl"), "columns": columns}, system_prompt="ours")
    assert rows[0]["prompt"] == own
    assert rows[0]["answer"] == "7.5"


def test_fields_of_messages_and_inputs_of_rows_are_kept_as_they_were_written(tmp_path):
    """One row calls with a text, the other with a number: neither takes over the other's fields or types."""
    calls = [[{"name": "look", "arguments": {"place": "a"}}], [{"name": "add", "arguments": {"left": 1}}]]
    turns = [{"role": "assistant", "content": None, "tool_calls": call, "thinking": "so"} for call in calls]
    prompts = [[{"role": "user", "content": "hi"}, turn, {"role": "developer", "content": "x"}] for turn in turns]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    rows = load_source({"path": str(tmp_path / "m.jsonl")})
    assert [row["prompt"][1] for row in rows] == [{**turn, "content": ""} for turn in turns]
    assert rows[0]["prompt"][0] == {"role": "user", "content": "hi"}
    plain = load_source({"task": "arithmetic", "size": 2, "seed": 1})
    joined = with_one_kind_of_messages({"a": rows, "b": plain})
    assert joined["a"].features["prompt"] == joined["b"].features["prompt"]
    assert joined["b"][:] == plain[:]


def test_null_fields_that_are_left_out_are_counted(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "look", "arguments": {"unit": None}}]}
    plain = {"prompt": [{"role": "user", "content": "hi", "name": None}], "tools": [{"name": "look"}]}
    rows = [plain, {"prompt": [call], "tools": [{"name": "look", "default": None}]}, plain]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes: list[str] = []
    found = load_source({"path": str(tmp_path / "m.jsonl")}, notes=notes)
    assert found[1]["prompt"][0]["tool_calls"] == [{"name": "look", "arguments": {}}]
    (told,) = notes
    assert "left out, in 2 cells (the first: " in told and "m.jsonl, row 1, column 'prompt')" in told


def test_rows_of_texts_alone_are_told_of_their_format(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "A document."}))
    with pytest.raises(DataError, match="got 'prompt'; allowed: present: text.*set format: text in the source"):
        load_source({"path": str(tmp_path / "a.jsonl")})


def test_a_message_with_neither_text_nor_anything_else_is_refused(tmp_path):
    (tmp_path / "m.jsonl").write_text(json.dumps({"prompt": [{"role": "user", "content": None}]}))
    with pytest.raises(DataError, match="a message lacks role or content"):
        load_source({"path": str(tmp_path / "m.jsonl")})


def test_packaged_tasks_come_with_all_columns_filled():
    rows = load_source({"task": "arithmetic", "size": 4, "seed": 1, "options": {"digits": [1, 2]}})
    assert rows.column_names == list(COLUMNS)
    assert all(value for row in rows for value in row.values())
    assert rows["group"][:] == ["1 digit", "2 digits"] * 2
    assert json.loads(rows[0]["entry"])["level"] == ["+", 1]


def test_the_fingerprint_is_of_the_content(places):
    one, other = (load_source({"path": str(places / name), "columns": MAP}) for name in ("a.jsonl", "a.parquet"))
    strip = {"column_names": "task"}
    assert data_fingerprint(one.remove_columns(**strip)) == data_fingerprint(other.remove_columns(**strip))
    assert data_fingerprint(one) != data_fingerprint(one.select([1, 0]))
    assert data_fingerprint(one) != data_fingerprint(one.select([0]))
    assert data_fingerprint(one) == data_fingerprint(one.select_columns(sorted(one.column_names)))
    # Frozen: a change of this number means that every recorded data fingerprint has changed.
    assert data_fingerprint(datasets.Dataset.from_dict({"b": ["x"], "a": [1]}))["sha256"] == (
        "f864aef47ea9133a545b72728144121f7aa5ec0e65379198b1e7b96f15884395"
    )


@pytest.mark.parametrize(
    ("source", "messages"),
    [
        ({}, ["exactly one place", "task, reasoning_gym, path"]),
        ({"task": "arithmetic", "path": "x"}, ["exactly one place"]),
        ({"task": "arithmetik", "size": 2}, ["unknown task (got 'arithmetik'", "Perhaps you mean 'arithmetic'"]),
        ({"task": "arithmetic"}, ["size: generated rows need a number"]),
        (
            {"task": "arithmetic", "size": 2, "options": {"digit": 2}},
            ["no such option (got 'digit'", "Perhaps you mean 'digits'"],
        ),
        ({"path": "{}/none.json"}, ["no such file or folder"]),
        ({"path": "{}/code.py"}, ["cannot be read", ".json, .jsonl, .csv, .parquet"]),
        (
            {"path": "{}/a.jsonl"},
            ["a.jsonl: no such column (got 'prompt'; allowed: present: question, answer, target)", "prompt: question"],
        ),
        (
            {"path": "{}/a.jsonl", "columns": {"prompt": "questions"}},
            ["no such column (got 'questions'", "columns.prompt asks for it. Perhaps you mean 'question'"],
        ),
        ({"path": "{}/a.jsonl", "columns": {"promt": "question"}}, ["got 'promt'", "Perhaps you mean 'prompt'"]),
        ({"path": "{}/a.jsonl", "columns": {"prompt": "question", "answer": "target"}}, []),
        ({"path": "{}/splits", "split": "test"}, ["no such split (got 'test'; allowed: one of: train)"]),
        ({"path": "{}/a.jsonl", "split": "test"}, ["no such split (got 'test'; allowed: one of: train)"]),
        ({"path": "nobody/nothing"}, ["nobody/nothing: cannot be read"]),
    ],
)
def test_sources_that_cannot_be_used_are_refused_in_one_line(places, source, messages):
    source = {key: value.replace("{}", str(places)) if key == "path" else value for key, value in source.items()}
    if not messages:
        assert load_source(source)["answer"][:] == ["two", "four"]
        return
    with pytest.raises((ConfigError, DataError)) as error:
        load_source(source)
    assert "\n" not in str(error.value)
    for message in messages:
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "", "answer": "1"}, "row 1, column 'prompt': the prompt is empty"),
        ({"prompt": None, "answer": "1"}, "row 1, column 'prompt': the prompt is empty"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, row, message):
    (tmp_path / "r.jsonl").write_text(json.dumps({"prompt": "fine", "answer": "1"}) + "\n" + json.dumps(row))
    with pytest.raises(DataError) as error:
        load_source({"path": str(tmp_path / "r.jsonl")})
    assert message in str(error.value)


def test_messages_without_a_known_role_are_named(tmp_path):
    (tmp_path / "r.jsonl").write_text(json.dumps({"prompt": [{"role": "human", "content": "hi"}]}))
    with pytest.raises(DataError, match="row 0, column 'prompt': a message lacks role or content"):
        load_source({"path": str(tmp_path / "r.jsonl")})
    (tmp_path / "s.jsonl").write_text(json.dumps({"prompt": "hi", "answer": {"a": 1}}))
    with pytest.raises(DataError, match="row 0, column 'answer': the cell is neither text nor a number"):
        load_source({"path": str(tmp_path / "s.jsonl")})


def test_further_columns_reach_a_reward_of_ones_own(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "answer": "b", "points": 3}\n{"prompt": "c", "answer": "d", "points": 4}\n')
    rows = load_source({"path": str(path)})
    assert rows["points"] == [3, 4]
    assert rows[0]["prompt"] == [{"role": "user", "content": "a"}]
