"""A reference is cut only where the source says so, or where all have the form of GSM8K; how many is told."""

from __future__ import annotations

import json

import pytest

from posttrain.data.references import cut_references
from posttrain.data.sources import load_source

GSM8K = ["2 and 2\n#### 4", "#### 1,000", "x\n#### -$3.50"]
HEADINGS = ["#### Step 1\nadd\n#### Result\nit is 4", "#### Result\n5"]


def test_references_of_gsm8k_are_cut_and_told():
    found, note = cut_references(GSM8K, None)
    assert found == ["4", "1,000", "-$3.50"]
    assert note is not None and note.startswith("3 of 3 references are cut, as all end in one line '#### <number>'")
    assert r"'2 and 2\n#### 4' became '4'" in note


@pytest.mark.parametrize("texts", [HEADINGS, ["#### 1\n#### 2"], ["#### 4\nis it"], ["see\n#### Result"], ["plain"]])
def test_other_references_stay_whole(texts):
    assert cut_references(texts, None) == (texts, None)


def test_one_other_reference_keeps_all_whole_and_that_is_told():
    found, note = cut_references([*GSM8K, *HEADINGS], None)
    assert found == [*GSM8K, *HEADINGS]
    assert note == (
        "3 of 5 references end in a line '#### <number>', the others do not; all stay whole. To cut them, set "
        "answer_after: '####'"
    )


def test_a_source_names_its_mark(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": "q", "answer": text}) + "\n" for text in ["a\nA: 1", "A: 2\nb", "c"])
    )
    notes: list[str] = []
    rows = load_source({"path": str(path), "answer_after": "A:"}, notes=notes)
    assert rows["answer"][:] == ["1", "2", "c"]
    assert notes == [
        r"2 of 3 references are cut, answer_after 'A:', e.g. 'a\nA: 1' became '1'; 1 have no such line and stay whole"
    ]
