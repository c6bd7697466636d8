"""Which combinations there are, and the selection that the tests run."""

from __future__ import annotations

from itertools import combinations

import pytest

from posttrain.certificate.plan import ENGINES, OFFLOADS, SPLITS, Cell, Group, covering, groups, refusal, whole_table
from posttrain.registry import trained

TRAINS = {
    "ddp": {"none"},
    "zero1": {"none", "optimizer"},
    "zero2": {"none", "optimizer"},
    "zero3": {"none", "optimizer", "parameters", "both"},
    "fsdp2": {"none", "parameters"},
}


def factors(group: Group, cell: Cell) -> dict[str, object]:
    return {
        "engine": group.engine,
        "offload": group.offload,
        "processes": group.processes,
        "trainer": cell.trainer,
        "split": cell.split,
    }


def pairs(plan) -> set:
    found = set()
    for group, cells in plan.items():
        for cell in cells:
            found |= {frozenset(pair) for pair in combinations(factors(group, cell).items(), 2)}
    return found


def test_every_combination_trains_or_is_refused():
    able, refused = groups()
    assert len(able) + len(refused) == len(ENGINES) * len(OFFLOADS) * 2
    assert {(g.engine, g.offload) for g in able} == {(e, o) for e, offloads in TRAINS.items() for o in offloads}


@pytest.mark.parametrize(
    ("group", "told"),
    [
        (Group("ddp", "optimizer"), "data parallelism has no offload of the optimizer"),
        (Group("zero1", "parameters"), "zero1 has no offload of the parameters"),
        (Group("zero2", "both", 2), "zero2 has no offload of the parameters"),
        (Group("fsdp2", "optimizer"), "fsdp2 has no offload of the optimizer"),
    ],
)
def test_a_refusal_is_one_line_with_what_to_do(group, told):
    line = refusal(group)
    assert told in line and "Train with accelerate_configs/" in line and "\n" not in line


def test_the_selection_meets_every_pair_that_the_whole_table_has():
    able, _ = groups()
    keys = list(trained())
    chosen = covering(keys, able)
    assert pairs(chosen) == pairs(whole_table(keys, able))
    assert {cell.trainer for cells in chosen.values() for cell in cells} == set(keys)
    assert sum(map(len, chosen.values())) < 0.15 * len(able) * len(keys) * len(SPLITS)
    assert all(cells and len(set(cells)) == len(cells) for cells in chosen.values())


def test_the_selection_prefers_several_micro_batches():
    """In which alone one can be lost."""
    chosen = covering(list(trained()), groups()[0])
    assert all(max(cell.split[1] for cell in cells) > 1 for cells in chosen.values())


def test_a_smaller_selection_is_as_complete():
    able = [group for group in groups()[0] if group.engine in ("ddp", "zero3")]
    assert pairs(covering(["one", "two"], able)) == pairs(whole_table(["one", "two"], able))
