"""Streams give row n of a file as n, whatever was read before, and find their place again."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset

from posttrain.data.mixture import SOURCE_COLUMN
from posttrain.data.sources import load_source
from posttrain.data.streams import RowStream, RowStreams, load_streams
from posttrain.errors import ConfigError, DataError


def lines(path: Path, count: int, *, word: str = "row", **cells) -> str:
    rows = [{"prompt": f"{word} {n}", "solution": f"answer {n}", **cells} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def stream(path: str, **source) -> RowStream:
    return RowStream("a", {"path": path, "format": "text", **source})


@pytest.fixture
def file(tmp_path: Path) -> str:
    return lines(tmp_path / "rows.jsonl", 25)


@pytest.mark.parametrize("limit", [None, 10])
def test_rows_are_those_of_the_file_in_its_order(limit, file):
    source = {"path": file, "format": "text", "limit": limit}
    whole = load_source(source)
    found = stream(**source)
    assert [found.row(n) for n in range(len(whole))] == list(whole)
    assert found.row(len(whole) + 3) == whole[3], "after the last comes the first"


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_every_kind_of_file(ending, file, tmp_path):
    rows = load_dataset("json", data_files=file, split="train")
    place = str(tmp_path / f"same.{ending}")
    getattr(rows, f"to_{'json' if ending == 'jsonl' else ending}")(place)
    assert [stream(place).row(n)["prompt"] for n in (0, 24, 25)] == ["row 0", "row 24", "row 0"]


def test_numbers_in_any_order(file):
    found = stream(file)
    assert [found.row(n)["prompt"] for n in (7, 3, 24, 0, 60)] == ["row 7", "row 3", "row 24", "row 0", "row 10"]


def test_columns_chats_and_system_prompts_as_of_rows_in_memory(tmp_path):
    path = tmp_path / "rows.jsonl"
    cells = [{"question": f"q {n}", "reply": {"text": f"#### {n}"}, "source": "web", "tags": [n]} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in cells))
    source = {"path": str(path), "columns": {"prompt": "question", "answer": "reply.text"}, "answer_after": "####"}
    whole = load_source(source, system_prompt="Be brief.")
    found = RowStream("a", source, system_prompt="Be brief.")
    assert [found.row(n) for n in range(3)] == list(whole)
    assert found.row(1)["answer"] == "1" and found.row(1)["tags"] == [1]


@pytest.mark.parametrize("stop", [0, 999, 1000, 2500])
def test_a_stream_continues_where_it_stood(stop, tmp_path, monkeypatch):
    path = lines(tmp_path / "rows.jsonl", 3000)
    first = stream(path)
    for n in range(0, stop, 3):
        first.row(n)
    state = json.loads(json.dumps(first.state()))
    rest = stream(path)
    rest.load(state)
    assert rest.row(stop)["prompt"] == f"row {stop}"
    assert rest.row(3100)["prompt"] == "row 100"


def test_a_continued_stream_does_not_read_what_lies_before_its_mark(tmp_path):
    path = lines(tmp_path / "rows.jsonl", 5000)
    first = stream(path)
    first.row(4500)
    rest = stream(path)
    rest.load(first.state())
    rest._seek(4400)
    assert rest._at == 4000


def test_what_the_loader_read_ahead_is_found_again(tmp_path):
    path = lines(tmp_path / "rows.jsonl", 3000)
    first = stream(path)
    first.row(2100)  # the checkpoint is of a step before
    rest = stream(path)
    rest.load(first.state())
    assert rest.row(1990)["prompt"] == "row 1990"


def test_numbers_of_several_streams(file, tmp_path):
    other = lines(tmp_path / "other.jsonl", 5, word="other")
    mixture = [{"name": "b", "path": file, "format": "text"}, {"name": "a", "path": other, "format": "text"}]
    streams = load_streams({"mixture": mixture})
    assert streams.names == ["a", "b"]
    number = streams.number(1, 7)
    assert streams[number]["prompt"] == "row 7" and streams[number][SOURCE_COLUMN] == "b"
    assert streams.group_of(number) == 1
    assert streams.where(number) == "mixture source 'b', row 7"
    head = streams.head(3)
    assert head["prompt"] == ["other 0", "other 1", "other 2", "row 0", "row 1", "row 2"]
    streams.order(["b", "a"])
    assert streams[number]["prompt"] == "other 2", "place 7 of 5"
    with pytest.raises(DataError, match="not the sources of the mixture .got 'a, c'"):
        streams.order(["a", "c"])


def test_the_fingerprint_is_that_of_the_rows(file, tmp_path):
    def of(path: str, **source) -> str:
        return RowStreams([stream(path, **source)]).fingerprint()["sha256"]

    folder = tmp_path / "elsewhere"
    folder.mkdir()
    assert of(file) == of(lines(folder / "rows.jsonl", 25))
    assert of(file) != of(lines(folder / "rows.jsonl", 26)), "the size tells"
    assert of(file) != of(lines(folder / "rows.jsonl", 25, word="raw")), "the first rows tell"
    long = Path(lines(tmp_path / "rows.jsonl", 400))
    before = of(str(long))
    long.write_text(long.read_text().replace("row 399", "row 398"))
    assert of(str(long)) != before, "as does a row that is not among the first"
    assert of(file) != of(file, limit=20)


def test_files_of_a_folder_are_part_of_the_fingerprint(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in range(3):
        lines(folder / f"part{part}.jsonl", 250)

    def sha() -> str:
        return RowStreams([stream(str(folder))]).fingerprint()["sha256"]

    before = sha()
    assert sha() == before
    lines(folder / "part2.jsonl", 249)
    assert sha() != before
    lines(folder / "part2.jsonl", 250)
    assert sha() == before
    (folder / "part1.jsonl").rename(folder / "part9.jsonl")
    assert sha() != before


def test_numbers_in_a_csv_keep_their_text(tmp_path):
    path = tmp_path / "rows.csv"
    cells = [str(n) for n in range(10000)] + [""] + [str(n) for n in range(5)]
    path.write_text("prompt,solution\n" + "".join(f"q,{cell}\n" for cell in cells))
    found = stream(str(path))
    assert [found.row(n)["solution"] for n in (3, 9999, 10001, 10005)] == ["3", "9999", "0", "4"]


def test_columns_that_no_table_can_hold_are_left_out_of_the_head(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "x", "meta": "text"}\n{"prompt": "y", "meta": {"a": 1}}\n')
    head = RowStreams([stream(str(path))]).head(5)
    assert head["prompt"] == ["x", "y"] and "meta" not in head.column_names


# ---- what is refused ----


def test_a_truncated_archive_is_told(tmp_path):
    folder = tmp_path / "packed"
    folder.mkdir()
    whole = gzip.compress("".join(json.dumps({"prompt": f"row {n} {n**5}"}) + "\n" for n in range(5000)).encode())
    (folder / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        stream(str(folder)).row(4999)


def test_a_row_that_cannot_be_used_is_named_when_it_comes(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "" if n == 3 else f"row {n}"}) + "\n" for n in range(5)))
    found = stream(str(path))
    assert found.row(2)["prompt"] == "row 2"
    with pytest.raises(DataError, match=r"rows.jsonl, row 3, column 'prompt': the text is empty"):
        found.row(4 - 1)


def test_a_line_that_is_broken_is_told_with_its_place(tmp_path):
    path = Path(lines(tmp_path / "rows.csv", 2))
    path = tmp_path / "rows.jsonl"
    good = "".join(json.dumps({"prompt": "x" * 1000}) + "\n" for _ in range(20000))
    path.write_text(good + "{broken\n")
    with pytest.raises(DataError, match=r"rows.jsonl, row 20000 \(line 20001\): not valid JSON"):
        stream(str(path)).row(20000)


def test_sources_without_rows_and_with_other_columns(tmp_path):
    empty = tmp_path / "empty.csv"
    empty.write_text("prompt\n")
    with pytest.raises(DataError, match="the stream has no row"):
        stream(str(empty))
    path = lines(tmp_path / "rows.jsonl", 3)
    with pytest.raises(DataError, match="no such column .*'question'"):
        stream(path, columns={"prompt": "question"})
    with pytest.raises(ConfigError, match="unknown column of ours"):
        stream(path, columns={"promt": "prompt"})
    with pytest.raises(DataError, match="no such file"):
        stream(str(tmp_path / "no.jsonl"))
    Dataset.from_list([{"prompt": "x"}]).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="need no stream"):
        stream(str(tmp_path / "saved"))


def test_text_and_chats_do_not_go_together(file):
    chats = RowStream("b", {"path": file})
    with pytest.raises(DataError, match="the cells of column 'prompt' do not go together"):
        RowStreams([stream(file), chats]).head(3)


def test_a_file_that_is_replaced_is_noticed(tmp_path):
    path = tmp_path / "rows.jsonl"
    found = stream(lines(path, 30))
    found.row(31)
    lines(path, 10)
    with pytest.raises(DataError, match="the file was changed while it is read"):
        found.row(30 + 29)
        found.row(0)
