"""Training on streams: the rows are those of the files in their order, whatever the split, and after a stop."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from posttrain.data.streams import load_streams
from posttrain.data.tasks.markov_text import generate
from posttrain.errors import DataError, PosttrainError, ResumeError, SupportError
from posttrain.seam.groups.sampler import GroupMixtureSampler
from posttrain.seam.supervised.trainer import SupervisedConfig, SupervisedTrainer
from tests.batteries.runs import COMMON, fresh_model, weights
from tests.methods.aioli.test_trainer import GROUPS, Watched, build, compare_splits, documents, shown

SIZES = {"easy": 40, "hard": 7, "hardest": 200}
ROWS = {name: generate(size, seed=1, length=24, groups=[name]) for name, size in SIZES.items()}


def files(folder: Path, rows=ROWS) -> dict:
    """The mixture of a recipe, with a file for each group."""
    folder.mkdir(exist_ok=True)
    for name, found in rows.items():
        cells = [{"prompt": row["prompt"], "group": name} for row in found]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    return {"mixture": [{"name": n, "path": str(folder / f"{n}.jsonl"), "format": "text"} for n in rows]}


@pytest.fixture
def streams(tmp_path):
    block = files(tmp_path / "files")
    return lambda: load_streams(block)


def validation() -> Dataset:
    rows = documents(30, 2, "eval")
    return rows.add_column("mixture_source", rows["group"])


def streamed(model, folder, streams, **overrides) -> Watched:
    return build(model, folder, train=streams(), validation=validation(), **overrides)


def texts(trainer: Watched) -> list[list[str]]:
    return [[trainer.tokenizer.decode(row) for row in step] for step in trainer.steps]


def test_every_group_gives_its_rows_in_the_order_of_its_file(streams, tiny_dir, tmp_path):
    trainer = streamed(tiny_dir, tmp_path, streams, controller="static", proportions=[0.5, 0.25, 0.25])
    trainer.train()
    expected = {name: [row["prompt"] for row in rows] for name, rows in ROWS.items()}
    counts = {"easy": 4 * 18, "hard": 2 * 18, "hardest": 2 * 18}
    drawn = [text for step in texts(trainer) for text in step]
    for name, count in counts.items():
        own = expected[name] * 12
        assert Counter(own[:count]) == Counter(text for text in drawn if text in expected[name])
    found = shown(trainer, "mixture/")
    assert {name: found[f"mixture/{name}_rows"] for name in GROUPS} == counts
    assert found["mixture/hard_loss"] > 0


class InOrder(GroupMixtureSampler):
    """Rows in memory, drawn in the order of the data as those of a stream are."""

    def _row(self, group, cursors, orders):
        place = int(cursors[group]) % int(self.sizes[group])
        cursors[group] += 1
        return int(self._by_group[self._starts[group] + place])


@pytest.mark.parametrize("controller", ["aioli", "doge"])
def test_a_run_learns_what_it_does_from_rows_in_memory(controller, streams, tiny_dir, tmp_path, monkeypatch):
    found = streamed(tiny_dir, tmp_path / "streams", streams, controller=controller)
    found.train()
    monkeypatch.setattr("posttrain.methods.aioli.trainer.GroupMixtureSampler", InOrder)
    rows = [{"prompt": row["prompt"], "mixture_source": name} for name in GROUPS for row in ROWS[name]]
    memory = build(
        tiny_dir,
        tmp_path / "memory",
        train=Dataset.from_list(rows),
        validation=validation(),
        controller=controller,
    )
    memory.train()
    assert found.steps == memory.steps
    assert all(torch.equal(value, weights(memory)[name]) for name, value in weights(found).items())
    assert found.rounds.records == memory.rounds.records


def test_rows_of_a_step_do_not_depend_on_the_split(streams, tiny_dir, tmp_path):
    compare_splits(lambda **layout: streamed(tiny_dir, tmp_path, streams, **layout))


@pytest.mark.parametrize("stop", [7, 13])
def test_a_stopped_run_continues_bit_equal(stop, streams, tiny_dir, tmp_path):
    layout = {"save_strategy": "steps", "save_steps": stop}
    whole = streamed(tiny_dir, tmp_path / "run", streams, **layout)
    whole.train()
    rest = streamed(tiny_dir, tmp_path / "run", streams, **layout)
    rest.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{stop}"))
    assert rest.steps == whole.steps[stop:]
    assert all(torch.equal(value, weights(rest)[name]) for name, value in weights(whole).items())
    assert rest.rounds.records == whole.rounds.records
    assert shown(rest, "mixture/") == shown(whole, "mixture/")


def test_ranks_draw_the_rows_of_one_process():
    """Each rank reads the streams for itself: row numbers, not the order of reading, decide."""
    order = GroupMixtureSampler(None, proportions=[0.5, 0.3, 0.2], rows_per_step=8, num_steps=50, seed=3)
    numbers = list(order)
    per_group = [[n % (1 << 40) for n in numbers if n // (1 << 40) == group] for group in range(3)]
    assert per_group == [list(range(len(found))) for found in per_group]
    assert [len(found) for found in per_group] == [200, 120, 80]
    assert np.array_equal(numbers, list(order)), "drawn again it is the same"


# ---- what is refused ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packing": True, "packing_strategy": "wrapped"}, r"trainer.packing: rows are packed before training"),
        (
            {"dataloader_num_workers": 1, "proportions_lag": 3},
            r"dataloader_num_workers: a stream is read by the process",
        ),
        ({"controller": "natural"}, r"method.controller: proportions by the number of rows"),
        ({"groups": ["easy", "hard"]}, r"method.groups: these are not the sources of the mixture"),
        ({"demonstration_column": "reply"}, r"train_dataset: the demonstration column is missing .got 'reply'"),
        ({"max_length": 8}, r"mixture source 'easy', row 0: prompt and demonstration are longer than a row may be"),
    ],
)
def test_what_does_not_go_with_streams(changes, message, streams, tiny_dir, tmp_path):
    with pytest.raises(PosttrainError, match=message):
        streamed(tiny_dir, tmp_path, streams, **changes)


def test_other_methods_and_other_streams_are_refused(streams, tiny_dir, tmp_path):
    args = SupervisedConfig(output_dir=str(tmp_path), max_steps=2, demonstration_column="prompt", **COMMON)
    with pytest.raises(SupportError, match="drawn group by group, and this method puts its rows into a random order"):
        SupervisedTrainer(fresh_model(tiny_dir), args, streams())


def test_a_row_that_cannot_be_trained_stops_the_run_by_name(streams, tiny_dir, tmp_path):
    rows = {**ROWS, "hard": [*ROWS["hard"][:5], {"prompt": ROWS["hard"][5]["prompt"] * 20}]}
    block = files(tmp_path / "long", rows)
    trainer = streamed(tiny_dir, tmp_path, lambda: load_streams(block), max_length=40, controller="stratified")
    with pytest.raises(DataError, match="mixture source 'hard', row 5: prompt and demonstration are longer"):
        trainer.train()
    assert 0 < trainer.state.global_step < 18


def test_other_files_are_not_continued_with(streams, tiny_dir, tmp_path):
    layout = {"save_strategy": "steps", "save_steps": 7}
    streamed(tiny_dir, tmp_path / "run", streams, **layout).train()
    other = files(tmp_path / "other", {**ROWS, "hard": ROWS["hard"][::-1]})
    rest = streamed(tiny_dir, tmp_path / "run", lambda: load_streams(other), **layout)
    with pytest.raises(ResumeError, match="the run to continue was laid out differently: streams was"):
        rest.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-7"))
