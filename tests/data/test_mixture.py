"""Mixtures: the paper's row counts, nested subsets, what the four numbers mean, and every refusal by its message."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest
from datasets import Dataset

from posttrain.data.mixture import (
    SOURCE_COLUMN,
    Part,
    build_mixture,
    interleaved,
    mix,
    source_order,
    subset_indices,
    subset_size,
)
from posttrain.errors import ConfigError, DataError

PAPER = {  # source: rows at f = 1, 1/4, 1/16, 1/64, 1/256
    "math": (110_142, 27_535, 6_883, 1_720, 430),
    "code": (20_022, 5_005, 1_251, 312, 78),
    "general": (86_060, 21_515, 5_378, 1_344, 336),
}
FRACTIONS = (1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256)


def rows(name: str, count: int, **columns) -> Dataset:
    return Dataset.from_list(
        [{"prompt": f"{name} {i}", "solution": "s" * (i % 3 + 1), **columns} for i in range(count)]
    )


def prompts(mixture) -> list[str]:
    return list(mixture.dataset["prompt"])


@pytest.mark.parametrize("name", PAPER)
def test_row_counts_are_those_of_the_paper(name):
    assert tuple(subset_size(PAPER[name][0], fraction) for fraction in FRACTIONS) == PAPER[name]


def test_stage_two_holds_the_papers_508_replayed_rows_and_5411_steps_of_16():
    """0.59 % of 86,568 rows; 8,136 steps an epoch in stage 1, 24,408 and 16,233 in three epochs."""
    replayed = sum(PAPER[name][4] for name in ("math", "code"))
    stage_2 = PAPER["general"][0] + replayed
    assert (replayed, stage_2, round(100 * replayed / stage_2, 2)) == (508, 86_568, 0.59)
    stage_1 = PAPER["math"][0] + PAPER["code"][0]
    assert [math.ceil(count / 16) for count in (stage_1, stage_2)] == [8_136, 5_411]
    assert [3 * math.ceil(count / 16) for count in (stage_1, stage_2)] == [24_408, 16_233]
    assert [3 * math.ceil(count / 128) for count in (stage_1, stage_2)] == [3_051, 2_031]
    everything = sum(counts[0] for counts in PAPER.values())
    assert [3 * math.ceil(everything / batch) for batch in (16, 128)] == [40_542, 5_070]


def test_a_fraction_is_the_decimal_number_as_written():
    """In floating point 0.29 * 100 is 28.999999999999996."""
    assert [subset_size(100, 0.29), subset_size(10, 0.3), subset_size(7, 1), subset_size(7, 0)] == [29, 3, 7, 0]


def test_subsets_nest():
    found = [subset_indices(Part("math", fraction), 5_000, seed=42) for fraction in FRACTIONS]
    for larger, smaller in zip(found, found[1:], strict=False):
        assert smaller == larger[: len(smaller)] and len(smaller) < len(larger)
    assert len(subset_indices(Part("math", 1 / 4, max_rows=10), 5_000, seed=42)) == 10
    assert subset_indices(Part("math", 1 / 4, max_rows=10), 5_000, seed=42) == found[1][:10]


def test_replayed_rows_are_among_those_of_the_first_stage():
    first = subset_indices(Part("math", 1 / 4, max_rows=900), 5_000, seed=1)
    replayed = subset_indices(Part("math", 1 / 4, max_rows=900, replay_fraction=1 / 16), 5_000, seed=1)
    assert replayed == first[:56]  # floor(900 / 16)


def test_the_order_follows_from_seed_and_name_alone():
    assert source_order("math", 50, seed=42) == source_order("math", 50, seed=42)
    assert source_order("math", 50, seed=42) != source_order("math", 50, seed=43)
    assert source_order("math", 50, seed=42) != source_order("code", 50, seed=42)
    assert sorted(source_order("math", 50, seed=42)) == list(range(50))


def test_renaming_one_source_moves_no_rows_of_another():
    sources = {"math": rows("m", 40), "code": rows("c", 40)}
    before = mix(sources, [{"name": "math", "fraction": 0.25}, {"name": "code", "fraction": 0.25}])
    renamed = {"math": sources["math"], "programs": sources["code"]}
    after = mix(renamed, [{"name": "math", "fraction": 0.25}, {"name": "programs", "fraction": 0.25}])
    kept = [{p for p in prompts(m) if p.startswith("m")} for m in (before, after)]
    moved = [{p for p in prompts(m) if p.startswith("c")} for m in (before, after)]
    assert kept[0] == kept[1] and moved[0] != moved[1]


def test_an_epoch_of_concat_shuffle_has_every_row_once_and_repeat_times():
    mixture = mix({"a": rows("a", 7), "b": rows("b", 5)}, [{"name": "a"}, {"name": "b", "repeat": 3}])
    assert Counter(prompts(mixture)) == {**{f"a {i}": 1 for i in range(7)}, **{f"b {i}": 3 for i in range(5)}}
    assert Counter(mixture.dataset[SOURCE_COLUMN]) == {"a": 7, "b": 15}
    assert prompts(mixture) != sorted(prompts(mixture))
    record = mixture.record()
    assert (record["b"]["available"], record["b"]["used"], record["b"]["rows"]) == (5, 5, 15)
    assert record["b"]["row_fraction"] == pytest.approx(15 / 22)


def test_a_source_left_out_changes_nothing_of_the_others():
    sources = {"a": rows("a", 7), "b": rows("b", 5)}
    alone = mix({"a": sources["a"]}, [{"name": "a"}])
    for key in ("fraction", "replay_fraction"):
        mixed = mix(sources, [{"name": "b", key: 0.0}, {"name": "a"}])
        assert list(mixed.dataset) == list(alone.dataset)
        assert mixed.record()["b"]["rows"] == 0


def test_sources_take_turns_by_weight_until_each_is_through():
    """Weights 3 to 1 of 6 and 4 rows: b needs 4 turns, so the epoch has 15 rows, and a begins again twice."""
    order = interleaved([6, 4], [3.0, 1.0])
    assert [source for source, _ in order[:8]] == [0, 0, 1, 0, 0, 0, 1, 0]
    assert Counter(source for source, _ in order) == {0: 11, 1: 4}
    assert {place for source, place in order if source == 1} == set(range(4))
    assert [place for source, place in order if source == 0] == [i % 6 for i in range(11)]
    assert interleaved([6, 4], [0.75, 0.25]) == order


def test_shares_follow_the_weights():
    parts = [{"name": "a", "weight": 0.2}, {"name": "b", "weight": 0.8}]
    record = mix({"a": rows("a", 50), "b": rows("b", 50)}, parts, mixing="interleave_weighted").record()
    assert record["a"]["row_fraction"] == pytest.approx(0.2, abs=0.01) and record["a"]["rows"] == 50


def test_tokens_are_counted_for_each_source():
    mixture = mix({"a": rows("a", 3), "b": rows("b", 3)}, [{"name": "a", "repeat": 2}, {"name": "b"}])
    record = mixture.with_tokens(lambda row: len(row["solution"])).record()
    assert (record["a"]["tokens"], record["b"]["tokens"]) == (12, 6)
    assert record["a"]["token_fraction"] == pytest.approx(2 / 3)


def test_replay_measured_in_tokens_is_the_longest_beginning_within_the_share():
    counts = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    part = Part("a", replay_fraction=0.5, replay_measure="tokens")
    order = source_order("a", 10, seed=42)
    chosen = subset_indices(part, 10, seed=42, token_counts=counts)
    assert chosen == order[: len(chosen)]
    spent = sum(counts[index] for index in chosen)
    assert spent <= 27.5 < spent + counts[order[len(chosen)]]
    least = Part("a", replay_fraction=0.001, replay_measure="tokens")
    assert len(subset_indices(least, 10, seed=42, token_counts=counts)) == 1


def test_columns_of_some_sources_only_are_empty_elsewhere():
    mixture = mix({"a": rows("a", 2, level="easy"), "b": rows("b", 2)}, [{"name": "a"}, {"name": "b"}])
    assert {row["prompt"][0]: row["level"] for row in mixture.dataset} == {"a": "easy", "b": None}


def test_build_mixture_loads_its_sources():
    task = {"task": "arithmetic", "size": 12, "options": {"digits": 1}}
    block = {"mixture": [{**task, "name": "a", "seed": 1}, {**task, "name": "b", "seed": 2, "max_rows": 3}], "seed": 7}
    mixture = build_mixture(block, system_prompt="Be brief.")
    assert [(share.name, share.used) for share in mixture.shares] == [("a", 12), ("b", 3)]
    assert mixture.dataset[0]["prompt"][0] == {"role": "system", "content": "Be brief."}


def test_less_than_one_row_is_one_row_and_told():
    mixture = mix({"a": rows("a", 5), "b": rows("b", 5)}, [{"name": "a", "fraction": 0.1}, {"name": "b"}])
    assert mixture.shares[0].used == 1
    assert mixture.warnings == ("source 'a': fraction 0.1 of 5 rows is less than one; one row is used",)
    replay = mix({"a": rows("a", 100)}, [{"name": "a", "fraction": 0.5, "replay_fraction": 0.01}])
    assert replay.warnings == ("source 'a': replay_fraction 0.01 of 50 rows is less than one; one row is used",)
    measured = [{"name": "a", "replay_fraction": 0.01, "replay_measure": "tokens"}]
    tokens = mix({"a": rows("a", 100)}, measured, count_tokens=lambda row: 7).warnings
    assert tokens == (), "one row in a hundred fits"
    tokens = mix({"a": rows("a", 50)}, measured, count_tokens=lambda row: 7).warnings
    told = "source 'a': replay_fraction 0.01 of 350 tokens is less than the first row's 7; one row is used"
    assert tokens == (told,)


REFUSED = [
    ([{"name": "a"}, {"name": "a"}], {}, ConfigError, "mixture: two sources have this name (got 'a')"),
    ([{"name": "empty"}], {}, DataError, "mixture source 'empty': the source has no rows. Remove it"),
    ([{"name": "stream"}], {}, DataError, "mixture source 'stream': a stream has no length, so a part of it is not"),
    (
        [{"name": "a", "fraction": 1.5}],
        {},
        ConfigError,
        "fraction: a fraction is a part of the rows (got 1.5; allowed",
    ),
    ([{"name": "a", "fraction": 0.0}], {}, DataError, "mixture: every source is left out. Raise a fraction"),
    ([{"name": "a"}, {"name": "text"}], {}, DataError, "columns of the sources do not go together (got 'prompt'; all"),
    ([{"name": "a"}, {"name": "typed"}], {}, DataError, "sources 'a' and 'typed': columns of the sources do not go"),
    ([{"name": "marked"}], {}, DataError, "the mixture makes this column itself (got 'mixture_source')"),
    ([{"name": "a", "weight": 1.0}], {}, ConfigError, "a.weight: read by interleave_weighted alone"),
    ([{"name": "a"}], {"mixing": "interleave_weighted"}, ConfigError, "a.weight: interleave_weighted needs a weight"),
    ([{"name": "a"}], {"mixing": "stir"}, ConfigError, "mixing: unknown mixing (got 'stir'; allowed: one of: concat_"),
    (
        [{"name": "a", "weight": 1.0, "repeat": 2}],
        {"mixing": "interleave_weighted"},
        ConfigError,
        "a.repeat: the weight says how often rows come",
    ),
    (
        [{"name": "a", "replay_fraction": 0.5, "replay_measure": "tokens"}],
        {},
        ConfigError,
        "a.replay_measure: tokens cannot be counted without a tokenizer",
    ),
]


@pytest.mark.parametrize(("parts", "options", "kind", "message"), REFUSED, ids=[case[3][:40] for case in REFUSED])
def test_refusals(parts, options, kind, message):
    sources = {
        "a": rows("a", 5),
        "empty": rows("e", 1).select([]),
        "stream": rows("s", 5).to_iterable_dataset(),
        "text": Dataset.from_list([{"prompt": [{"role": "user", "content": "x"}], "solution": "s"}]),
        "typed": Dataset.from_list([{"prompt": "x", "solution": 3}]),
        "marked": rows("m", 2, **{SOURCE_COLUMN: "x"}),
    }
    with pytest.raises(kind, match=re.escape(message)):
        mix(sources, parts, **options)
