"""The model card as the end of a run writes it, tried without a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from trl.trainer.utils import generate_model_card

from posttrain import registry

TAGS = ["trl", "posttrain"]  # of every card


def paper_of(trainer: type[Any]) -> dict[str, str]:
    """Title, id and citation of the paper that a trainer's class names itself, or that its method declares."""
    if trainer.paper is not None:
        return dict(trainer.paper)
    method = registry.method_of(trainer)
    return {} if method is None else method.paper.card(method.key)


def try_card(trainer: type[Any], place: str | Path, *, base_model: str | None, hub_model_id: str | None) -> None:
    """Write the card that a trainer's class would write, and read its metadata back; whatever fails raises.

    Args:
        trainer: a class of the seam's trainers. place: folder for the card.
        base_model: path or Hub id that the run starts from; None for a model that is made.
        hub_model_id: where the model will be pushed.
    """
    paper = paper_of(trainer)
    # trl 1.16: BaseTrainer.create_model_card
    card = generate_model_card(
        base_model=None if base_model is None or os.path.isdir(base_model) else base_model,
        model_name=None,
        hub_model_id=hub_model_id,
        dataset_name=None,
        tags=TAGS,
        wandb_url=None,
        trackio_url=None,
        trainer_name=trainer.name,
        trainer_citation=paper.get("citation"),
        paper_title=paper.get("title"),
        paper_id=paper.get("id"),
    )
    file = Path(place) / "README.md"
    card.save(file)
    ModelCard.load(file)
