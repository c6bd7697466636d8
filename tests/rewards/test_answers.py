"""Where the final answer is: the last marked line, the last closed box, and nothing guessed."""

from __future__ import annotations

import time

import pytest

from posttrain.rewards.answers import boxed_answer, completion_text, marked_answer, marked_block, normalise


@pytest.mark.parametrize(
    ("text", "line", "block"),
    [
        ("so\nAnswer: 85", "85", "85"),
        ("Answer: 85  \n\n", "85", "85"),
        ("  Answer: 85", "85", "85"),
        ("Answer: 84\nAnswer: 85", "85", "85"),
        ("Answer: 85\nbecause", "85", "85\nbecause"),
        ("Answer: 1 2\n3 4", "1 2", "1 2\n3 4"),
        ("#### 42", "42", "42"),
        ("Answer: 1\n#### 2", "2", "2"),
        ("Answer:\n85", "85", "85"),
        ("Answer:\n\n85\nx", "85", "85\nx"),
        ("Answer:", "", ""),
        ("the Answer: 85", None, None),
        ("answer: 85", "85", "85"),
        ("**Answer:** 85", "85", "85"),
        ("**Answer**: 85", "85", "85"),
        ("**Answer: 85**", "85", "85"),
        ("Answer: **85**", "85", "**85**"),
        ("### Answer: 85", "85", "85"),
        ("## Final Answer\n85", "85", "85"),
        ("**Final answer**\n\n85", "85", "85"),
        ("The answer is: 85", "85", "85"),
        ("> Answer: 85", "85", "85"),
        ("#### Answer: 85", "85", "85"),
        ("Answers: 85", None, None),
        ("answer 85", None, None),
        ("answer\n85", None, None),
        ("##### 85", None, None),
        ("85", None, None),
        ("", None, None),
    ],
)
def test_the_last_marker_that_begins_a_line_counts(text, line, block):
    assert marked_answer(text) == line
    assert marked_block(text) == block


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{7}", "7"),
        (r"\boxed{1} then \boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
        (r"\boxed{\text{a{b}c}}", r"\text{a{b}c}"),
        (r"\boxed{}", ""),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", None),
        (r"\boxed{7", None),
        ("boxed{7}", None),
    ],
)
def test_the_last_box_counts_if_its_braces_close(text, content):
    found = boxed_answer(text)
    assert (found[1] if found else None) == content


@pytest.mark.parametrize("line", ["\n", "x\n", " \n", "Answer\n"])
def test_a_megabyte_of_lines_is_searched_in_linear_time(line):
    started = time.perf_counter()
    assert marked_answer(line * (2**20 // len(line))) is None
    assert time.perf_counter() - started < 10  # a search that copies the rest at each line takes minutes


def test_the_text_of_a_chat_is_that_of_its_last_message():
    assert completion_text("as it is") == "as it is"
    assert completion_text([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]) == "b"
    assert completion_text([]) == ""
    assert completion_text([{"role": "assistant", "content": None}]) == ""


def test_only_space_is_forgiven():
    assert normalise("  a \n b\t c ") == "a b c"
    assert normalise("A") != normalise("a")
