"""One of several answers: each as a whole, none of the others, and no verdict without a list."""

from __future__ import annotations

import json

import pytest

from posttrain.errors import RewardError
from posttrain.rewards.one_of import one_of

ODD = json.dumps({"level": "parity", "accepted": ["1", "3", "5", "7", "9"]})


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        ("5", 1.0),
        ("7", 1.0),
        ("Answer: 9", 1.0),
        ("#### 3", 1.0),
        ("4", 0.0),
        ("1 3 5 7 9", 0.0),
        ("Answer: 1, 3", 0.0),
        ("Answer: 1 or 3", 0.0),
        ("Answer: 3\nAnswer: 4", 0.0),
        ('["1", "3"]', 0.0),
        ("", 0.0),
        ("Answer:", 0.0),
        ([{"role": "assistant", "content": "1"}], 1.0),
    ],
)
def test_verdicts(completion, verdict):
    assert one_of([""], [completion], entry=[ODD]) == [verdict]


def test_accepted_answers_may_have_several_words_and_rows_without_a_list_are_not_judged():
    words = json.dumps({"accepted": ["blue  whale", "orca"]})
    assert one_of([""] * 2, ["Answer: blue whale", "whale"], entry=[words] * 2) == [1.0, 0.0]
    assert one_of([""] * 3, ["1"] * 3, entry=[None, "", '{"level": 2}']) == [None] * 3
    assert one_of(["a"] * 2, ["x", "y"]) == [None, None]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("1, 3", "reward one_of: the entry is not JSON"),
        ('{"accepted": "13"}', "reward one_of: accepted answers are a list of texts"),
        ('{"accepted": [1, 3]}', "reward one_of: accepted answers are a list of texts"),
        ('{"accepted": [" "]}', "reward one_of: no answer is accepted"),
    ],
)
def test_entries_that_cannot_be_used_are_refused(entry, message):
    with pytest.raises(RewardError) as error:
        one_of([""], ["1"], entry=[entry])
    assert message in str(error.value)
