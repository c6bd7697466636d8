"""Cells are read as they stand in the file; what cannot be read is told in one line with file, row and column."""

from __future__ import annotations

import bz2
import datetime
import decimal
import gzip
import io
import json
import lzma
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from posttrain.data.sources import load_source
from posttrain.data.streams import RowStream
from posttrain.errors import DataError


def write(path: Path, content: str | bytes) -> dict[str, str]:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return {"path": str(path)}


def both(source: dict, column: str = "answer") -> list:
    """Cells of a column, the same in memory and as a stream."""
    rows = load_source(source)
    stream = RowStream("a", source)
    assert [stream.row(n)[column] for n in range(len(rows))] == rows[column][:]
    return rows[column][:]


# ---- text as it stands ----

WORDS = [
    "000",
    "0.00",
    "1.10",
    "1e5",
    "NA",
    "null",
    "None",
    "nan",
    "true",
    "TRUE",
    "2024-01-02",
    "-0",
    " 7 ",
    "9" * 30,
]


def test_cells_of_a_csv_are_text(tmp_path):
    source = write(tmp_path / "a.csv", "prompt,answer\n" + "".join(f"q,{word}\n" for word in [*WORDS, ""]))
    assert both(source) == [*WORDS, ""]


LITERALS = ["0", "0.5", "1", "1.10", "1e3", "0.1000000000000000055", "-0", "-0.0", "1E400", "9" * 30, "true", "false"]


@pytest.mark.parametrize("ending", ["jsonl", "json", "jsonl.gz", "jsonl.xz", "jsonl.bz2", "zip"])
def test_numbers_of_json_keep_their_literal(ending, tmp_path):
    lines = [f'{{"prompt": "q", "answer": {text}}}' for text in [*LITERALS, '"2024-01-01T00:00:00"', "null"]]
    content = (f"[{','.join(lines)}]" if ending == "json" else "\n".join(lines)).encode()
    pack = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zip": _zipped}.get(ending.split(".")[-1])
    name = "a.jsonl.zip" if ending == "zip" else f"a.{ending}"
    source = write(tmp_path / name, pack(content) if pack else content)
    assert both(source) == [*LITERALS, "2024-01-01T00:00:00", ""]


def _zipped(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("rows.jsonl", content)
    return packed.getvalue()


def test_nested_fields_messages_and_prompts_keep_theirs_too(tmp_path):
    chat = '[{"role": "user", "content": "2024-01-01 00:00:00"}]'
    rows = [f'{{"prompt": {chat}, "a": {{"b": 1.10}}}}', '{"prompt": 1.0, "a": {"b": "007"}}']
    source = write(tmp_path / "a.jsonl", "\n".join(rows)) | {"columns": {"answer": "a.b"}}
    assert both(source) == ["1.10", "007"]
    assert [prompt[0]["content"] for prompt in both(source, "prompt")] == ["2024-01-01 00:00:00", "1.0"]


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        (pa.array([0.1, 1], pa.float32()), ["0.1", "1.0"]),
        (pa.array([2**64 - 1, None], pa.uint64()), ["18446744073709551615", ""]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([datetime.date(2024, 1, 2), None]), ["2024-01-02", ""]),
        (pa.array([datetime.datetime(2024, 1, 2, 3), None]), ["2024-01-02T03:00:00", ""]),
        (pa.array([decimal.Decimal("1.10"), decimal.Decimal("100.00")]), ["1.10", "100.00"]),
        (pa.array([[{"role": "assistant", "content": "07"}], None]), ["07", ""]),
    ],
)
def test_cells_of_parquet_are_written_out(cells, texts, tmp_path):
    pq.write_table(pa.table({"prompt": ["q", "q"], "answer": cells}), tmp_path / "a.parquet")
    assert both({"path": str(tmp_path / "a.parquet")}) == texts


def test_further_columns_get_a_type_only_if_nothing_is_lost(tmp_path):
    rows = [
        "prompt,whole,part,truth,padded,price",
        "q,1,0.5,True,007,1.10",
        "q,-2,2,False,1,2.00",
        "q,,3.25,True,2,3.5",
    ]
    found = load_source(write(tmp_path / "a.csv", "\n".join(rows)))
    assert found["whole"][:] == [1, -2, None] and found["part"][:] == [0.5, 2.0, 3.25]
    assert found["truth"][:] == [True, False, True]
    assert found["padded"][:] == ["007", "1", "2"] and found["price"][:] == ["1.10", "2.00", "3.5"]
    lines = [
        '{"prompt": "q", "n": 1, "m": "5"}',
        '{"prompt": "q", "n": 2, "m": {"a": 1}}',
        '{"prompt": "q", "k": 0.5}',
    ]
    found = load_source(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert found["n"][:] == [1, 2, None] and found["k"][:] == [None, None, 0.5]
    assert found["m"][:] == ["5", {"a": 1}, None], "a text that looks like a number stays text"


def test_columns_that_a_method_names_are_text(tmp_path):
    source = write(tmp_path / "a.csv", "prompt,rationale\nq,007\nq,12\n")
    assert load_source(source, texts=["rationale"])["rationale"][:] == ["007", "12"]


# ---- no cache ----


def test_rows_are_those_on_disk_whatever_the_times_say(tmp_path):
    for sign in ("1", "2"):
        source = write(tmp_path / "rows" / "a.jsonl", f'{{"prompt": "q", "answer": "{sign}"}}\n')
        os.utime(source["path"], (1e9, 1e9))
        assert both(source) == [sign]
        assert both({"path": str(tmp_path / "rows")}) == [sign]


# ---- splits of a folder ----


def test_splits_of_a_folder_and_parts_of_them(tmp_path):
    for split, first in (("train", 0), ("test", 10)):
        lines = "".join(f"q,{first + n:03d}\n" for n in range(4))
        source = write(tmp_path / "rows" / f"{split}.csv", f"prompt,answer\n{lines}")
    folder = {"path": str(Path(source["path"]).parent)}
    assert load_source(folder | {"split": "test"})["answer"][:] == ["010", "011", "012", "013"]
    assert load_source(folder | {"split": "train[50%:]+test[:1]"})["answer"][:] == ["002", "003", "010"]
    with pytest.raises(DataError, match=r"no such split \(got 'val'; allowed: one of: train, test\)"):
        load_source(folder | {"split": "val"})


# ---- what cannot be read ----

FIRST = b'{"prompt": "q", "answer": "1"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"prompt,answer\nq,1\nq,caf\xe9\n", "row 1: byte 0xe9 in column 'answer' is not UTF-8"),
        ("a.csv", b'prompt,answer\nq,1\nq,"open\n', "row 1: a quoted cell is not closed"),
        ("a.csv", b"prompt,answer\nq,1,2\n", "row 0: the row has 3 cells and the first line names 2 columns"),
        ("a.csv", b"prompt,answer\nq\n", "row 0: the row has 1 cells"),
        ("a.csv", b"prompt,answer,answer\nq,1,2\n", "two columns have this name (got 'answer')"),
        ("a.csv", "prompt,answer\nq,1\n".encode("utf-16"), "not UTF-8 but UTF-16"),
        ("a.csv", b"prompt,answer\rq,1\r", "lines end with CR alone"),
        ("a.csv", b"prompt,answer\n", "there are no rows"),
        ("a.csv", b"prompt;answer\nq;1\n", "The cells seem to stand between semicolons: write commas"),
        ("a.csv", b"prompt;answer\nq;1,5\n", "row 0: the row has 2 cells and the first line names 1 columns"),
        ("a.csv", b"prompt\tanswer\nq\t1\n", "The cells seem to stand between tabs: write commas"),
        ("a.tsv", b"prompt\tanswer\nq\t1\n", "Write the cells between commas, as .csv"),
        ("a.jsonl", FIRST + b'{"prompt": "q", "ans', "row 1 (line 2): not valid JSON: Unterminated string"),
        ("a.jsonl", FIRST + b"\nhello\n", "row 1 (line 3): not valid JSON"),
        ("a.jsonl", FIRST + b'{"prompt": "\xe9"}\n', "row 1: byte 0xe9 in column 'prompt' is not UTF-8"),
        ("a.jsonl", b'{"prompt": "q", "answer": "\\ud83d"}\n', "row 0: column 'answer' holds half of a character"),
        ("a.jsonl", b'{"prompt": "q", "answer": NaN}\n', "row 0 (line 1): NaN is no JSON number"),
        ("a.jsonl", b'{"prompt": "q", "prompt": "r"}\n', "row 0 (line 1): the key 'prompt' is written twice"),
        ("a.jsonl", FIRST + b"5\n", "row 1: a row is a mapping of columns to cells (got 5)"),
        ("a.jsonl", b'{"prompt": "q", "n": 1e999}\n', "row 0, column 'n': the number is too large"),
        ("a.jsonl", b'{"prompt": "q", "answer": [1]}\n', "row 0, column 'answer': the cell is neither text nor"),
        ("a.jsonl", b'{"prompt": "q", "solution": [{"role": "user", "content": "x"}]}\n', "is the assistant's"),
        ("a.jsonl.gz", gzip.compress(FIRST * 1000)[:-20], "cannot be read: Compressed file ended"),
        ("a.json", b"null", "row 0: a row is a mapping of columns to cells (got None)"),
        ("a.json", b'[{"prompt": "q"},\n{"prompt"', "row 1 (line 2): not valid JSON"),
        ("a.json", b"[]", "there are no rows"),
        ("a.parquet", b"hello", "cannot be read: Parquet"),
        ("a.jsonl", b"PAR1", "this is a parquet file"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(name, content, message, tmp_path):
    source = write(tmp_path / name, content)
    with pytest.raises(DataError) as error:
        load_source(source)
    assert message in str(error.value) and name in str(error.value)
    assert "\n" not in str(error.value)


def test_byte_order_marks_line_ends_and_blank_lines_are_no_fault(tmp_path):
    rows = b'\xef\xbb\xbf{"prompt": "q", "answer": 1.0}\r\n\r\n{"prompt": "q", "answer": "\\ud83d\\ude00"}\r\n'
    assert both(write(tmp_path / "a.jsonl", rows)) == ["1.0", "\U0001f600"]
    assert both(write(tmp_path / "a.csv", b'\xef\xbb\xbfprompt,answer\r\nq,"a\nb ""c"""\r\n')) == ['a\nb "c"']
    assert both(write(tmp_path / "b.json", json.dumps({"prompt": "q", "answer": "01"}, indent=1))) == ["01"]


def test_files_of_a_folder_that_are_not_read_are_told_and_copies_refused(tmp_path):
    source = write(tmp_path / "rows" / "a.jsonl", FIRST) and {"path": str(tmp_path / "rows")}
    write(tmp_path / "rows" / "b.csv", "prompt,answer\nr,2\n")
    write(tmp_path / "rows" / ".cache.json", "[]")
    notes: list[str] = []
    assert load_source(source, notes=notes)["answer"][:] == ["1"]
    assert notes == ["the folder has files of rows that belong to no split and are not read: b.csv"]
    write(tmp_path / "rows" / "a.jsonl.bak", FIRST)
    with pytest.raises(DataError, match="cannot be read .*a.jsonl.bak"):
        load_source(source)


def test_a_column_of_parquet_that_no_data_set_can_hold_is_named(tmp_path):
    pairs = pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"prompt": ["q"], "pairs": pairs}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 'pairs': no column can have this type .*map.* Write it as JSON text"):
        load_source({"path": str(tmp_path / "a.parquet")})


@pytest.mark.parametrize("cell", [b"q", {"text": "q"}])
def test_a_prompt_of_another_type_is_told_as_it_is(cell, tmp_path):
    pq.write_table(pa.table({"prompt": [cell]}), tmp_path / "a.parquet")
    with pytest.raises(DataError) as error:
        load_source({"path": str(tmp_path / "a.parquet")})
    assert f"got {cell!r}). Write the cells as text or as lists of messages" in str(error.value)


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_no_number_is_no_text_whatever_its_width(kind, tmp_path):
    import numpy as np

    cells = pa.array(np.array([0.5, np.nan], kind.to_pandas_dtype()))
    pq.write_table(pa.table({"prompt": ["q", "q"], "answer": cells}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 1, column 'answer': the cell is neither text nor a number"):
        load_source({"path": str(tmp_path / "a.parquet")})


def test_files_of_a_folder_have_the_same_columns(tmp_path):
    write(tmp_path / "rows" / "a.jsonl", '{"prompt": "q", "answer": "1", "hint": null}\n')
    write(tmp_path / "rows" / "b.jsonl", '{"prompt": "r", "answer": "2", "hint": "h"}\n')
    source = {"path": str(tmp_path / "rows")}
    assert both(source, "hint") == [None, "h"], "nothing and text go together"
    write(tmp_path / "rows" / "c.jsonl", '{"prompt": "r", "solution": "2", "hint": "h"}\n')
    with pytest.raises(
        DataError, match="c.jsonl: the file has other columns than .*a.jsonl: it lacks column 'answer' an"
    ):
        load_source(source)
