"""The battery's own eyes: equal updates are equal, and each published bug is seen, on one process."""

from __future__ import annotations

import numpy as np
import pytest

from posttrain.certificate.command import DEFAULT
from posttrain.certificate.compare import TOLERANCE, worst_difference
from posttrain.certificate.recipes import STEPS, stages_of, tiny_copy
from posttrain.certificate.worker import train_cell
from posttrain.config.loader import load
from tests.certificate.seeded import average_each_micro_batch, lose_a_micro_batch

KEYS = ("sft", "grpo")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """method -> (its run, the tiny model, what one micro-batch of eight rows makes)."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "recipe.yaml").write_text(DEFAULT)
    found = {}
    for key, run in stages_of(load(folder / "recipe.yaml")).items():
        assert tiny_copy(run, folder / key) is None
        made = train_cell(run, model=folder / key, folder=folder / f"run-{key}", split=(8, 1))
        found[key] = (run, folder / key, made)
    return found


def arrays(tensors):
    return {name: value.numpy() for name, value in tensors.items()}


def compared(reference, key, folder, split, change=None):
    run, model, expected = reference[key]
    made = train_cell(run, model=model, folder=folder, split=split, change=change)
    assert len(made["losses"]) == STEPS
    return worst_difference(arrays(made["update"]), arrays(expected["update"]))[0]


@pytest.mark.parametrize("key", KEYS)
def test_four_micro_batches_make_the_update_of_one(key, reference, tmp_path):
    update = arrays(reference[key][2]["update"])
    assert all(np.abs(value).max() > 1e-5 for value in update.values())  # every tensor is told about
    assert compared(reference, key, tmp_path, (2, 4)) < TOLERANCE


@pytest.mark.parametrize("change", [lose_a_micro_batch, average_each_micro_batch])
@pytest.mark.parametrize("key", KEYS)
def test_a_seeded_bug_is_seen(key, change, reference, tmp_path):
    """By at least a hundred times the tolerance."""
    assert compared(reference, key, tmp_path, (2, 4), change) > 100 * TOLERANCE


def test_rows_of_the_battery_differ_in_length_and_some_rollouts_are_right(reference):
    """Else a mean by micro-batch would be the mean of the step, and a group would have no gradient."""
    from types import SimpleNamespace

    from transformers import AutoTokenizer

    from posttrain.certificate.recipes import replay
    from posttrain.certificate.verdict import marked_right

    tokenizer = AutoTokenizer.from_pretrained(reference["grpo"][1])
    trainer = SimpleNamespace(
        processing_class=tokenizer,
        args=SimpleNamespace(),
        accelerator=SimpleNamespace(process_index=0),
        num_generations=4,
    )
    prompts = [[{"role": "user", "content": f"{number}+1="}] for number in range(30) for _ in range(4)]
    rows = replay(prompts, trainer)["completion_ids"]
    texts = [[{"role": "assistant", "content": tokenizer.decode(row[:-1])}] for row in rows]
    right = np.array(marked_right(prompts, texts)).reshape(30, 4).sum(axis=1)
    assert {len(row) for row in rows} == {3, 4, 5, 6}
    assert set(right) == {0.0, 2.0} and 5 < (right == 0).sum() < 15
    # The same rows on the second of two processes: the second half of the batch.
    trainer.accelerator.process_index = 1
    assert replay(prompts[60:], trainer)["completion_ids"] == rows[60:]
