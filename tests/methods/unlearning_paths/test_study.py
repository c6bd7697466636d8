"""`posttrain study unlearning-paths`: trains every path once, unlearns alike, goes on where it was, and reports."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain import cli
from posttrain.errors import ConfigError, DataError
from posttrain.methods.unlearning_paths.page import numbers
from posttrain.methods.unlearning_paths.study import study_unlearning_paths
from tests.config.recipes import SFT, changed, write


def facts(name: str, size: int = 4, num_paraphrases: int = 2) -> dict[str, Any]:
    options = {"set": name, "attributes": ["job"], "num_paraphrases": num_paraphrases, "num_perturbed": 2}
    return {"task": "fictitious_authors", "size": size, "seed": 1, "options": options}


def study(folder: Path, **changes: Any) -> Path:
    trainer = {"per_device_train_batch_size": 4, "learning_rate": 3e-3, "lr_scheduler_type": "constant"}
    trainer |= {"max_steps": 4, "save_strategy": "no", "use_cpu": True, "seed": 0, "output_dir": str(folder / "paths")}
    data = {"probes": {name: facts(name) for name in ("forget", "inst", "holdout")}, "max_prompt_length": 64}
    values = changed(
        SFT,
        {
            "data": data | {"eval": facts("retain"), "eval_tasks": {"kept": facts("inst")}},
            "trainer": trainer,
            "eval": {"max_new_tokens": 8, "verifier": "exact"},
            "stages": {
                "preset": "unlearning_paths",
                "learn": [{"name": "inst", "train": facts("inst")}, {"name": "math", "train": facts("math")}],
                "forget": {"train": facts("forget"), "trainer": {"max_steps": 6}},
                "positions": [1, 3],
                "unlearn": {
                    # Learning to answer "I do not know": what supervised training alone can do.
                    "algorithms": [{"name": "idk", "method": {"name": "sft", "demonstration_column": "alternate"}}],
                    "learning_rates": [0.003],
                    "probe_every_steps": 2,
                    "trainer": {"max_steps": 4},
                },
                "relearn": {"train": facts("forget", 2), "fraction": 0.5, "trainer": {"max_steps": 3}},
            },
            **changes,
        },
    )
    return write(folder, values)


def curve(folder: Path, name: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paths")
    path = study(folder)
    return path, folder / "paths", study_unlearning_paths(path)


def test_every_path_is_trained_once_and_unlearned_from_its_end(trained):
    _, root, (found, _) = trained
    stages = {path.parent.name for path in (root / "seed-0").glob("*/finished.json")}
    assert stages == {
        *("learn-forget", "learn-forget-inst", "learn-forget-inst-math"),
        *("learn-inst", "learn-inst-math", "learn-inst-math-forget"),
        *("unlearn-idk-0.003-p1", "unlearn-idk-0.003-p3", "relearn-idk-0.003-p1", "relearn-idk-0.003-p3"),
        "relearn-retrained-inst-math",
    }
    assert [path.name for path in found.plan.paths] == ["p1", "p3"] and found.last == ["p3"]
    records = [json.loads((root / f"seed-0/unlearn-idk-0.003-p{place}/run.json").read_text()) for place in (1, 3)]
    assert records[0]["data"]["train"] == records[1]["data"]["train"] and records[0]["seeds"] == records[1]["seeds"]
    assert [item["stage"] for item in records[1]["lineage"]][-2:] == ["learn-inst-math-forget", "unlearn-idk-0.003-p3"]


def test_numbers_are_those_of_the_logs(trained):
    _, root, (found, page) = trained
    folder, (variant,) = root / "seed-0", numbers(found)["variants"]
    for place in ("p1", "p3"):
        stage = folder / f"unlearn-idk-0.003-{place}"
        label, forms = curve(stage, "answers/forget_logp"), curve(stage, "answers/forget_forms_logp")
        others = curve(stage, "answers/forget_paraphrases_logp")
        assert list(label) == [0, 2, 4] and forms[4] == pytest.approx((label[4] + 2 * others[4]) / 3)
        own = variant["paths"][place]["seeds"]["0"]
        assert own["forget_score"] == pytest.approx(forms[0] - forms[4])
        assert own["squeeze_paraphrases"] == pytest.approx((others[4] - others[0]) / (label[4] - label[0]))
        # The first measurement of unlearning is of the model that the path ended with.
        learnt = folder / ("learn-forget-inst-math" if place == "p1" else "learn-inst-math-forget")
        end = list(curve(learnt, "answers/forget_logp").values())[-1]
        assert own["initial_logp"] == pytest.approx(end, abs=1e-5)
        assert json.loads((stage / "eval.json").read_text())["after"]["unlearning"]["forget_score"] == pytest.approx(
            own["forget_score"]
        )
        level = list(curve(folder / "learn-inst-math", "answers/forget_logp").values())[-1]
        recorded = json.loads((stage / "eval.json").read_text())["after"]["unlearning"]["steps_to_retrained"]
        assert (recorded == 4) if min(label.values()) > level else (0 <= recorded <= 4)
        target = label[4] + 0.5 * (label[0] - label[4])
        again = curve(folder / f"relearn-idk-0.003-{place}", "answers/forget_logp")
        expected = 0 if label[0] <= label[4] else next((step for step, v in again.items() if v >= target), None)
        assert variant["paths"][place]["steps_to_relearn"]["0"] == expected
    assert "On the way" in page.with_name("REPORT.md").read_text()
    scores = [variant["paths"][place]["seeds"]["0"]["forget_score"] for place in ("p1", "p3")]
    assert variant["spread"]["over_paths"]["mean"] == pytest.approx(max(scores) - min(scores))
    assert variant["recency"]["effect"]["mean"] == pytest.approx(scores[0] - scores[1])
    text = page.with_name("REPORT.md").read_text()
    assert "Like retrained?" in text and "cannot tell" in text and "1 seed: no interval" in text
    assert (root / "plots" / "idk-0.003-forget.png").read_bytes().startswith(b"\x89PNG")


def test_the_change_of_the_accuracy_stands_beside_the_forgetting(trained):
    _, root, (found, page) = trained
    own = numbers(found)["variants"][0]["paths"]["p1"]["seeds"]["0"]
    stages = ("learn-forget-inst-math", "unlearn-idk-0.003-p1")
    before, after = (json.loads((root / "seed-0" / name / "eval.json").read_text())["after"] for name in stages)
    assert own["accuracy"] == after["accuracy"]
    assert own["accuracy_change"] == after["accuracy"] - before["accuracy"]
    assert own["accuracy_change_kept"] == after["tasks"]["kept"]["accuracy"] - before["tasks"]["kept"]["accuracy"]
    assert "| accuracy after | its change | change on kept |" in page.with_name("REPORT.md").read_text()


def test_the_suite_has_measured_every_model_against_the_retrained_one(trained):
    _, root, (found, _) = trained
    for place in ("p1", "p3"):
        metrics = json.loads((root / f"seed-0/unlearn-idk-0.003-{place}/unlearning/unlearning.json").read_text())
        assert 0 <= metrics["metrics"]["forget_quality"]["value"] <= 1
        assert metrics["metrics"]["forget_score"]["value"] == pytest.approx(
            found.variants[0].outcomes[place].numbers[0]["forget_score"], abs=1e-4
        )
    words = {item[0] for item in numbers(found)["variants"][0]["paths"]["p1"]["behaves_like_retrained"].values()}
    assert words == {"cannot tell"}  # one seed never supports a claim


def test_a_further_seed_goes_on_and_nothing_is_trained_twice(trained, tmp_path, monkeypatch, capsys):
    path, root, _ = trained
    stamps = {file: file.stat().st_mtime_ns for file in root.glob("seed-0/*/finished.json")}
    measured = {file: file.stat().st_mtime_ns for file in root.glob("seed-0/*/unlearning/unlearning.json")}
    arguments = ["study", "unlearning-paths", str(path), "--seeds", "0,1", "--no-suite"]
    monkeypatch.setattr(sys, "argv", ["posttrain", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "Result: idk, learning rate 0.003" in shown and "report: " in shown
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in (stamps | measured).items())
    found = json.loads((root / "paths.json").read_text())
    assert found["seeds"] == [0, 1] and set(found["variants"][0]["paths"]["p3"]["seeds"]) == {"0", "1"}
    values = [found["variants"][0]["paths"]["p3"]["seeds"][seed]["initial_logp"] for seed in "01"]
    assert values[0] != values[1]
    with pytest.raises(DataError, match="the stage has not been trained"):
        study_unlearning_paths(path, seeds=[0, 2], train=False)


def test_models_that_were_trained_anew_are_measured_anew(tmp_path):
    path = study(tmp_path)
    study_unlearning_paths(path)
    root = tmp_path / "paths" / "seed-0"

    def told(place: str) -> tuple[float, float]:
        found = json.loads((root / f"unlearn-idk-0.003-{place}/unlearning/unlearning.json").read_text())["metrics"]
        logged = curve(root / f"unlearn-idk-0.003-{place}", "answers/forget_logp")[4]
        return found["forget.logp"]["value"], logged

    before = told("p1")
    study_unlearning_paths(path, ["trainer.resume=never", "trainer.learning_rate=0.01"])
    after = told("p1")
    assert after[0] != before[0] and after[0] == pytest.approx(after[1], abs=1e-4)


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match="the recipe is no path study. Write stages: {preset: unlearning_paths"):
        study_unlearning_paths(write(tmp_path, SFT))
    with pytest.raises(ConfigError, match=re.escape("--seeds: each seed once (got [1, 1]")):
        study_unlearning_paths(study(tmp_path), seeds=[1, 1])
