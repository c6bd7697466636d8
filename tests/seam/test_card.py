"""The model card, tried without a model: what it says, and that a text which cannot be written raises."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from posttrain.registry import get, trained
from posttrain.seam.card import paper_of, try_card


@pytest.mark.parametrize("key", trained())
def test_the_card_of_every_method_names_its_paper_and_can_be_read(key, tmp_path):
    trainer = get(key).load_trainer()
    try_card(trainer, tmp_path, base_model="owner/base", hub_model_id="owner/tuned")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "owner/base" and {"trl", "posttrain"} <= set(card.data.tags)
    assert get(key).paper.title in card.text and get(key).paper.arxiv in card.text and "owner/tuned" in card.text


def test_a_class_made_from_a_methods_trainer_has_its_paper_unless_it_names_one():
    made = type("Mine", (get("hpt").load_trainer(),), {})
    assert paper_of(made)["id"] == "2509.04419"
    assert paper_of(made)["citation"].startswith("@article{lv2025hpt, author={Lv and others}, title={Towards a")
    assert paper_of(type("Named", (made,), {"paper": {"id": "1"}})) == {"id": "1"}
    assert paper_of(SimpleNamespace(paper={})) == {}


def test_a_folder_is_no_base_model_of_the_hub(tmp_path):
    try_card(get("sft").load_trainer(), tmp_path, base_model=str(tmp_path), hub_model_id=None)
    assert ModelCard.load(tmp_path / "README.md").data.base_model is None


def test_a_text_that_no_file_can_hold_raises(tmp_path):
    trainer = SimpleNamespace(name="x", paper={"title": "half a pair \ud800", "id": "1"})
    with pytest.raises(UnicodeEncodeError):
        try_card(trainer, tmp_path, base_model=None, hub_model_id=None)
