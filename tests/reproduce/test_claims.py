"""claims.yaml: what it reads, and every mistake by its message with the line it stands in."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.errors import ConfigError
from posttrain.reproduce.claims import load_claims, studies_in
from tests.config.recipes import REMOVE, changed
from tests.reproduce.studies import CLAIMS, study_folder


def refusal(tmp_path: Path, changes: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as refused:
        load_claims(study_folder(tmp_path, claims=changed(CLAIMS, changes)))
    return str(refused.value)


def test_a_study_is_read(tmp_path):
    study = load_claims(study_folder(tmp_path))
    assert (study.name, study.variants) == ("main", {"grpo": "grpo", "hpt": "HPT, gate 0"})
    assert study.recipe == tmp_path / "recipes" / "hpt" / "reproduce.yaml"
    assert [claim.kind for claim in study.claims] == ["difference", "change"]
    assert study.metrics() == ["accuracy"] and study.block.minutes_limit == 20


def test_a_sentence_over_several_lines_becomes_one(tmp_path):
    path = study_folder(tmp_path)
    text = path.read_text().replace("setting: A model", "setting: >\n  A model\n  of two lines,")
    path.write_text(text)
    assert load_claims(path).block.setting.startswith("A model of two lines, of no size")


def test_several_studies_of_one_method(tmp_path):
    first = study_folder(tmp_path)
    (first.parent / "claims_smollm2.yaml").write_text(first.read_text())
    assert studies_in(first.parent) == ["main", "smollm2"]
    assert load_claims(first.parent / "claims_smollm2.yaml").name == "smollm2"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": [0, 1]}, "seeds: too few seeds to tell a difference from chance (got [0, 1]; allowed: 3 or more)"),
        ({"seeds": [0, 1, 1]}, "seeds: a seed is listed twice (got [0, 1, 1]). Keep one of them."),
        ({"seeds": [0, 1, -2]}, "seeds.2: not accepted (got -2; allowed: greater than or equal to 0)"),
        ({"seeds": [0, 1, "two"]}, "seeds.2: not accepted (got 'two'; allowed: a valid integer)"),
        ({"seedz": [0, 1, 2], "seeds": REMOVE}, "seedz: unknown key. Perhaps you mean seeds."),
        ({"path": "x"}, "path: unknown key (allowed: recipe, paper_claim, setting, title, seeds, metric"),
        ({"paper_claim": REMOVE}, "the key paper_claim is missing"),
        ({"setting": ""}, "setting: must not be empty"),
        ({"minutes_limit": 0}, "minutes_limit: out of range (got 0; allowed: int >= 1)"),
        ({"variants": []}, "variants: must not be empty"),
        ({"variants": ["grpo", "hpt", "grpo"]}, "variants: a variant is listed twice (got 'grpo')"),
        ({"variants": ["hpt", {"stage": "grpo", "label": "hpt"}]}, "two variants have one label (got 'hpt')"),
        ({"variants.1.lable": "x"}, "variants.1.lable: unknown key. Perhaps you mean variants.1.label."),
        ({"unequal": {"gpo": "it is"}}, "unequal.gpo: not one of the variants (got 'gpo'; allowed: grpo, hpt)."),
        ({"claims": []}, "claims: must not be empty. Write the paper's claim first."),
        ({"claims.0.treatment": "htp"}, "claims.0.treatment: not one of the variants (got 'htp'; allowed: grpo, hpt). "
         "Perhaps you mean 'hpt'."),
        ({"claims.0.baselines": ["sft"]}, "claims.0.baselines.0: not one of the variants (got 'sft'"),
        ({"claims.0.baselines": ["grpo", "hpt"]}, "claims.0.baselines.1: the treatment cannot be its own baseline"),
        ({"claims.0.baselines": ["grpo", "grpo"]}, "claims.0.baselines.1: listed twice (got 'grpo'). Remove it."),
        ({"claims.0.baselines": []}, "claims.0.baselines: must not be empty"),
        ({"claims.0.margn": 0.1}, "claims.0.margn: unknown key. Perhaps you mean claims.0.margin."),
        ({"claims.0.direction": "more"}, "claims.0.direction: "),
        ({"claims.0.margin": "big"}, "claims.0.margin: wrong type (got 'big'"),
        ({"claims.1.kind": "chnge"}, "claims.1.kind: unknown kind of claim (got 'chnge'; allowed: kind: difference"),
        ({"claims.1.name": "beats_grpo"}, "claims.1.name: two claims have this name (got 'beats_grpo')"),
        ({"claims.1.variant": "hpd"}, "claims.1.variant: not one of the variants (got 'hpd'"),
        ({"claims.1.first_fraction": 0.9}, "claims.1.first_fraction: out of range (got 0.9"),
        ({"claims.1.margin": -0.1}, "claims.1.margin: out of range (got -0.1"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(tmp_path, changes, expected):
    text = refusal(tmp_path, changes)
    assert expected in text
    assert "claims.yaml:" in text or "is missing" in text


def test_all_mistakes_are_told_at_once(tmp_path):
    text = refusal(tmp_path, {"minutes_limit": 0, "claims.0.margn": 1, "seedz": 1})
    assert len(text.splitlines()) == 3
