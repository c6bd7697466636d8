"""Names of columns that mean something to the libraries below, where the user's column means something else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from posttrain.data.mixture import SOURCE_COLUMN
from posttrain.errors import DataError

_IMAGES = "trl takes its cells for images of the prompt, and the models here read text"
_REWARDS = "reward functions get something else under this name"
_KEPT = "trl does not hand a column of this name to reward functions"
# trl 1.16: GRPOTrainer._generate_and_score_completions and _calculate_rewards.
MEANINGS = {
    "image": _IMAGES,
    "images": _IMAGES,
    **dict.fromkeys(("prompts", "completions", "trainer_state", "log_extra", "log_metric", "environments"), _REWARDS),
    **dict.fromkeys(("completion", "completion_ids"), _KEPT),
}


def name_findings(columns: Iterable[str], where: str, *, is_mixed: bool = False) -> Iterator[DataError]:
    """Columns of prompts that are completed and scored, whose names are taken.

    Args:
        columns: of the rows. where: their place, for the message.
        is_mixed: whether the rows are a mixture, whose own column is no fault.
    """
    for name in columns:
        what = MEANINGS.get(name)
        if name == SOURCE_COLUMN and not is_mixed:
            what = "a mixture notes there which source a row is from"
        if what is not None:
            fix = "Rename the column in the data, or leave it out"
            yield DataError(f"the name of the column is taken: {what}", where=where, got=name, fix=fix)


def refuse_taken_names(dataset: object, processing_class: object = None) -> None:
    """Raise DataError for the first such column of a data set that has columns.

    Args:
        dataset: of a trainer. processing_class: its tokenizer; images go with one that processes them, or with none,
            which upstream chooses by the model.
    """
    columns = getattr(dataset, "column_names", None)
    sees = processing_class is None or hasattr(processing_class, "image_processor")
    for error in name_findings(columns if isinstance(columns, list) else [], "train_dataset", is_mixed=True):
        if not (sees and error.got in ("image", "images")):
            raise error
