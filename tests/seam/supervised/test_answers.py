"""Rows with further answers to their prompt: how they lie in a batch, what is counted, what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset

from posttrain.data.demonstrations import encode_row
from posttrain.errors import DataError, SupportError
from posttrain.losses.reductions import LossOutput, reduce_loss
from posttrain.seam.groups.row_index import blank_rows, row_spans
from posttrain.seam.supervised.trainer import SupervisedConfig, SupervisedTrainer
from tests.batteries.runs import build, dataset, gradients, relative_difference

ONE_STEP = {"max_steps": 1, "max_grad_norm": 0.0}


@dataclass
class PairConfig(SupervisedConfig):
    answer_columns: ClassVar[tuple[str, ...]] = ("other",)


class PairTrainer(SupervisedTrainer):
    """Learns the demonstration, and half of the other answer away."""

    config_class = PairConfig

    def token_loss(self, log_probs: torch.Tensor, label_mask: torch.Tensor, batch: dict[str, Any]) -> LossOutput:
        weight = torch.ones(len(log_probs), 1)
        weight[1::2] = -0.5
        return LossOutput(-log_probs * weight, "seq_mean_token_mean")


def rows(count: int = 8) -> Dataset:
    data = dataset(count)
    return data.add_column("other", ["no" + "o" * (i % 3) for i in range(count)])


def make(folder, tiny_dir, **options):
    data = options.pop("data", None)
    arguments = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "learning_rate": 1e-3, **options}
    arguments.setdefault("per_device_train_batch_size", 2)
    from transformers import AutoTokenizer

    return PairTrainer(
        str(tiny_dir), PairConfig(**arguments), rows() if data is None else data,
        processing_class=AutoTokenizer.from_pretrained(tiny_dir),
    )  # fmt: skip


def test_answers_lie_below_their_rows_as_they_are_encoded_alone(tiny_dir, tmp_path):
    trainer = make(tmp_path, tiny_dir)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in (3, 5)])
    assert batch["input_ids"].size(0) == 4
    data, found = rows(), []
    for place in (3, 5):
        for column in ("solution", "other"):
            given, learnt = encode_row(trainer.tokenizer, data[place]["prompt"], data[place][column], column=column)
            found.append((given + learnt, [-100] * len(given) + learnt))
    for row, (ids, labels) in enumerate(found):
        assert batch["input_ids"][row, : len(ids)].tolist() == ids
        assert batch["labels"][row, : len(ids)].tolist() == labels
        assert (batch["labels"][row, len(ids) :] == -100).all()


@pytest.mark.parametrize("is_numbered", [False, True])
def test_rows_that_fill_up_a_batch_lose_the_labels_of_their_answers_too(is_numbered, tiny_dir, tmp_path):
    trainer = make(tmp_path, tiny_dir)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    if is_numbered:
        batch |= {"row_index": [0, 1, 2], "row_length": [len(trainer.train_dataset[i]["input_ids"]) for i in range(3)]}
        width = batch["labels"].size(1)
        assert [span for _, span in row_spans(batch)] == [slice(2 * i * width, 2 * (i + 1) * width) for i in range(3)]
    blank_rows(batch, 1, below=2)
    assert (batch["labels"] != -100).any(dim=1).tolist() == [True, True, False, False, False, False]


def test_the_step_is_the_literal_loss_in_any_split(tiny_dir, tmp_path):
    found = [
        gradients(
            make(
                tmp_path / f"{size}",
                tiny_dir,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=8 // size,
                **ONE_STEP,
            )  # fmt: skip
        )
        for size in (8, 4, 2)
    ]
    assert relative_difference(found[1], found[0]) < 1e-5 and relative_difference(found[2], found[0]) < 1e-5
    trainer = make(tmp_path / "literal", tiny_dir, **ONE_STEP)
    loss = torch.zeros(())
    for row in trainer.train_dataset:
        for name, sign in (("", 1.0), ("other_", -0.5)):
            ids, labels = torch.tensor([row[name + "input_ids"]]), torch.tensor(row[name + "labels"])
            logps = trainer.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            learnt = labels[1:] != -100
            loss = loss - sign * logps[torch.arange(len(learnt))[learnt], labels[1:][learnt]].mean() / 16
    trainer.model.zero_grad()
    loss.backward()
    ours = {name: value.grad for name, value in trainer.model.named_parameters() if value.grad is not None}
    assert relative_difference({name: found[0][name] for name in ours}, ours) < 1e-5


def test_the_loss_of_validation_reads_answers(tiny_dir, tmp_path):
    trainer = make(tmp_path, tiny_dir)
    encoded = trainer._encoded(rows(2), trainer.processing_class, trainer.args)
    batch = trainer.data_collator([dict(row) for row in encoded])
    trainer.model.eval()
    trainer._scoring.outputs = ("log_probs",)
    out = trainer.model(**batch, use_cache=False, fused_lm_head=True)
    counts = trainer._count([batch["labels"]], torch.device("cpu"))
    assert counts.rows == 4
    direct = reduce_loss(
        trainer.token_loss(out.log_probs, out.label_mask, batch), out.label_mask.float(), counts=counts
    )
    assert float(trainer.compute_loss(trainer.model, dict(batch))) == pytest.approx(float(direct), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"packing": True, "max_length": 64}, SupportError, "trainer.packing: a packed row holds several"),
        ({"padding_free": True, "max_length": None}, SupportError, "trainer.padding_free: a packed row holds several"),
        (
            {"data": dataset(4)},
            DataError,
            "that the method reads is missing .*got 'other'; allowed: columns: .*prompt",
        ),
        (
            {"data": rows(4).map(lambda row: {"other": " "})},
            DataError,
            "an answer is empty in 4 of 4 rows .row 0, column 'other'",
        ),
        (
            {"max_length": 36, "data": rows(4).map(lambda row: {"other": "x" * 40})},
            DataError,
            "longer than a row may be",
        ),
        ({"data": rows(4).map(lambda row: {"other": "ok"}), "max_length": 8}, DataError, "longer than a row may be"),
    ],
)
def test_what_is_refused(change, error, message, tiny_dir, tmp_path):
    with pytest.raises(error, match=message):
        make(tmp_path, tiny_dir, **change)


def test_check_names_answers_that_cannot_be_used(tiny_dir, tmp_path):
    trainer = make(tmp_path, tiny_dir, max_length=40)
    data = rows(4)
    long = data.map(lambda row, index: {"other": "x" * (60 if index == 2 else 2)}, with_indices=True)
    empty = data.map(lambda row, index: {"other": "" if index else "a"}, with_indices=True)

    def told(found: Dataset) -> list[str]:
        return [
            str(e) for e in trainer.args.data_findings({"train": found}, world_size=1, tokenizer=trainer.tokenizer)
        ]

    assert told(data) == []
    assert "prompt and answer of row 2, column 'other', are longer" in told(long)[0] and "at most 40" in told(long)[0]
    assert "an answer is empty in 3 of 4 rows (row 1, column 'other')" in told(empty)[0]
    assert "got 'other'; allowed: columns: prompt, answer, solution" in told(dataset(2))[0]
    same = data.map(lambda row, index: {"other": row["solution"] if index == 3 else "a"}, with_indices=True)
    assert "'solution' and 'other' are the same in 1 of 4 rows (row 3)" in told(same)[0]


@dataclass
class WeightedConfig(SupervisedConfig):
    @property
    def number_columns(self) -> tuple[str, ...]:
        return ("weight",)


class WeightedTrainer(SupervisedTrainer):
    config_class = WeightedConfig

    def token_loss(self, log_probs: torch.Tensor, label_mask: torch.Tensor, batch: dict[str, Any]) -> LossOutput:
        return LossOutput(-log_probs * batch["weight"].unsqueeze(1), "seq_mean_token_mean")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "a column that the method reads is missing .*got 'weight'"),
        ([1.0, None, 2.0, 3.0], r"no finite number in 1 of 4 rows \(row 1, column 'weight'\)"),
        ([1.0, 2.0, float("inf"), float("nan")], r"no finite number in 2 of 4 rows \(row 2"),
        ([1.0, 2.0, 3.0, 4.0], None),
    ],
)
def test_a_number_for_every_row(values, message, tiny_dir, tmp_path):
    from transformers import AutoTokenizer

    data = dataset(4) if values is None else dataset(4).add_column("weight", values)
    args = WeightedConfig(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, per_device_train_batch_size=4, max_steps=1
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    if message is not None:
        assert len(list(args.data_findings({"train": data}, world_size=1))) == 1
        with pytest.raises(DataError, match=message):
            WeightedTrainer(str(tiny_dir), args, data, processing_class=tokenizer)
        return
    trainer = WeightedTrainer(str(tiny_dir), args, data, processing_class=tokenizer)
    batch = trainer.data_collator([dict(trainer.train_dataset[i]) for i in (2, 0)])
    assert batch["weight"].tolist() == [3.0, 1.0]


def test_methods_without_answers_are_as_before(tiny_dir, tmp_path):
    trainer = build("sft", tiny_dir, tmp_path)
    assert trainer.data_collator([trainer.train_dataset[0]])["input_ids"].size(0) == 1
