"""Facts about invented authors: sets that share nobody, answers of one form, and lists that survive every source."""

from __future__ import annotations

import json

import pytest

from posttrain.data.sources import load_source
from posttrain.data.tasks.fictitious_authors import (
    ATTRIBUTES,
    AUTHORS_PER_SET,
    DO_NOT_KNOW,
    MAX_PARAPHRASES,
    SETS,
    generate,
)
from posttrain.errors import ConfigError, DataError


def facts(row):
    return json.loads(row["entry"])


def test_row_i_depends_only_on_seed_index_and_options():
    rows = generate(60, seed=1)
    assert generate(13, seed=1) == rows[:13] and generate(60, seed=1) == rows
    assert generate(60, seed=2) != rows
    # What an author is, is the same whatever else is asked about.
    alone = generate(12, seed=1, attributes="genre")
    assert alone == [row for row in rows if facts(row)["attribute"] == "genre"]


def test_sets_of_one_seed_share_no_author_and_no_question_comes_twice():
    sizes = AUTHORS_PER_SET * len(ATTRIBUTES)
    authors = {name: {row["group"] for row in generate(sizes, seed=5, set=name, num_paraphrases=0)} for name in SETS}
    assert all(len(found) == AUTHORS_PER_SET for found in authors.values())
    assert len(set().union(*authors.values())) == AUTHORS_PER_SET * len(SETS)
    questions = [row["prompt"] for row in generate(sizes, seed=5)]
    assert len(set(questions)) == len(questions)


def test_paraphrases_say_the_same_and_wrong_answers_differ_in_the_value_alone():
    for row in generate(200, seed=3, num_perturbed=10) + generate(200, seed=3, num_perturbed=10, wording="any"):
        value, name = facts(row)["value"], row["group"]
        assert row["solution"] == row["answer"] and name in row["prompt"] and value in row["answer"]
        pairs = list(zip(row["paraphrased_prompts"], row["paraphrases"], strict=True))
        assert len(set(pairs)) == MAX_PARAPHRASES and (row["prompt"], row["answer"]) not in pairs
        assert all(name in ask and name in tell and value in tell for ask, tell in pairs)
        assert row["answer"] not in row["paraphrases"] and row["prompt"] != row["paraphrased_prompts"][0]
        before, after = row["paraphrases"][0].split(value)
        others = {wrong.removeprefix(before).removesuffix(after) for wrong in row["perturbed"]}
        assert len(others) == 10 and value not in others
        assert others <= set(ATTRIBUTES[facts(row)["attribute"]].values)
        assert row["alternate"] in DO_NOT_KNOW


def test_the_words_of_a_fact_are_the_same_or_drawn():
    forms = {
        wording: {row["prompt"].replace(row["group"], "X") for row in generate(300, seed=3, wording=wording)}
        for wording in ("first", "any")
    }
    assert len(forms["first"]) == len(ATTRIBUTES) and len(forms["any"]) == 5 * len(ATTRIBUTES)
    values = [[facts(row)["value"] for row in generate(50, seed=3, wording=wording)] for wording in ("first", "any")]
    assert values[0] == values[1]


def test_how_many_there_are_is_the_readers_choice():
    few = generate(5, seed=1, num_paraphrases=3, num_perturbed=2)
    assert {len(row[key]) for row in few for key in ("paraphrases", "paraphrased_prompts")} == {3}
    assert [row["paraphrases"] for row in few] == [row["paraphrases"][:3] for row in generate(5, seed=1)]
    none = generate(5, seed=1, num_paraphrases=0, num_perturbed=1)
    assert {len(row["paraphrases"]) for row in none} == {0} and {len(row["perturbed"]) for row in none} == {1}


def test_a_question_has_three_answers_to_set_against_each_other():
    fact, reworded, refusal = (generate(20, seed=1, response=word) for word in ("fact", "reworded", "refusal"))
    for told, again, nothing in zip(fact, reworded, refusal, strict=True):
        assert told["prompt"] == again["prompt"] == nothing["prompt"]
        assert again["answer"] == again["solution"] == told["paraphrases"][0] != told["answer"]
        assert nothing["answer"] == nothing["solution"] == told["alternate"]
    few = generate(20, seed=1, response="reworded", num_paraphrases=0)
    assert [row["answer"] for row in few] == [row["answer"] for row in reworded]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"set": "train"},
            "fictitious_authors.set: unknown set (got 'train'; allowed: one of: inst, tofu, math, forget",
        ),
        ({"set": ["inst"]}, "fictitious_authors.set: unknown set (got ['inst']"),
        ({"attributes": "age"}, "fictitious_authors.attributes: unknown value (got 'age'"),
        (
            {"wording": "other"},
            "fictitious_authors.wording: unknown wording (got 'other'; allowed: one of: first, any",
        ),
        ({"response": "lie"}, "fictitious_authors.response: unknown response (got 'lie'; allowed: one of: fact, rew"),
        (
            {"num_paraphrases": 21},
            "fictitious_authors.num_paraphrases: out of range (got 21; allowed: integer 0 to 20)",
        ),
        ({"num_perturbed": True}, "fictitious_authors.num_perturbed: out of range (got True"),
        (
            {"size": 401, "attributes": "job"},
            "a set has no more facts (got 401; allowed: 0 to 400: 400 authors, 1 facts",
        ),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError) as told:
        generate(**{"size": 4, "seed": 1, **options})
    assert message in str(told.value)


def test_lists_come_through_a_source_and_through_a_file(tmp_path):
    rows = load_source({"task": "fictitious_authors", "size": 3, "seed": 1, "options": {"num_paraphrases": 2}})
    made = generate(3, seed=1, num_paraphrases=2)
    for row, expected in zip(rows, made, strict=True):
        assert row == {**expected, "prompt": [{"role": "user", "content": expected["prompt"]}]}
    path = tmp_path / "rows.jsonl"
    theirs = {"question": "prompt", "paraphrased_answer": "paraphrases", "perturbed_answer": "perturbed"}
    lines = [{key: row[ours] for key, ours in theirs.items()} | {"answer": row["answer"]} for row in made]
    lines = [line | {"paraphrased_answer": line["paraphrased_answer"][0]} for line in lines]  # one text, as in TOFU
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = {ours: key for key, ours in theirs.items()} | {"solution": "answer"}
    read = load_source({"path": str(path), "columns": columns})
    assert [row["perturbed"] for row in read] == [row["perturbed"] for row in made]
    assert [row["paraphrases"] for row in read] == [row["paraphrases"][:1] for row in made]
    assert [row["solution"] for row in read] == [row["answer"] for row in made]
    assert "perturbed_answer" not in read.column_names and "alternate" not in read.column_names
    with pytest.raises(DataError, match="no such column .*got 'wrong'.*columns.perturbed asks for it"):
        load_source({"path": str(path), "columns": {**columns, "perturbed": "wrong"}})
