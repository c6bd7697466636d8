"""The record of a run: the right commit, content hashes, and no secret whatever way it came in."""

import subprocess

import datasets
import pytest

import posttrain
from posttrain.hidden import without_secrets
from posttrain.reports.provenance import HIDDEN, command_line, data_fingerprint, git_state, versions, world_layout


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_versions_name_every_library_that_decides_the_numbers():
    found = versions()
    assert {"python", "posttrain", "torch", "transformers", "trl", "accelerate", "peft", "datasets"} <= set(found)
    assert found["posttrain"] == posttrain.__version__
    assert found["datasets"] == datasets.__version__


def test_commit_and_dirty_flag_of_a_git_tree(tmp_path):
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1")
    assert git_state(tmp_path) is None  # nothing tracked: an installed package in somebody's repository
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "first")
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "a.py").write_text("2")
    assert git_state(tmp_path) == {"commit": clean["commit"], "dirty": True}


def test_what_is_new_beside_the_source_and_results_of_a_study_are_no_change(tmp_path):
    git(tmp_path, "init", "-q")
    source, results = tmp_path / "posttrain", tmp_path / "recipes" / "hpt" / "RESULTS.json"
    for file in (source / "a.py", results):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    results.write_text("2")
    (tmp_path / "recipes" / "new").mkdir()
    for name in ("new/RESULTS.json", "hpt/notes.txt"):
        (tmp_path / "recipes" / name).write_text("1")
    assert git_state(source)["dirty"] is False
    (source / "b.py").write_text("1")
    assert git_state(source)["dirty"] is True
    (source / "b.py").unlink()
    (tmp_path / "recipes" / "hpt" / "claims.yaml").write_text("1")
    git(tmp_path, "add", ".")
    assert git_state(source)["dirty"] is True, "a recipe that is staged belongs to the tree"


def test_the_commit_does_not_follow_a_hooks_environment(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        git(tmp_path / name, "init", "-q")
        (tmp_path / name / "a").write_text(name)
        git(tmp_path / name, "add", "a")
        git(tmp_path / name, "commit", "-qm", name)
    expected = git_state(tmp_path / "one")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "two" / ".git"))
    assert git_state(tmp_path / "one") == expected


def test_fingerprint_follows_content_and_order_not_the_container():
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2"}]
    expected = data_fingerprint(rows)
    assert (expected["rows"], expected["columns"]) == (2, ["answer", "prompt"])
    assert data_fingerprint(datasets.Dataset.from_list(rows)) == expected
    assert data_fingerprint(datasets.Dataset.from_list(rows * 2).select(range(2))) == expected
    assert data_fingerprint(rows[::-1])["sha256"] != expected["sha256"]
    assert data_fingerprint([rows[0], {**rows[1], "answer": "3"}])["sha256"] != expected["sha256"]


def test_world_layout_of_one_process():
    layout = world_layout()
    assert layout["num_processes"] == 1 and layout["device"] in ("cpu", "cuda") and layout["cpu_threads"] >= 1


@pytest.mark.parametrize(
    "name",
    ["hub_token", "token", "hub.token", "HF_TOKEN", "wandb_api_key", "apikey", "password", "aws_secret", "secret_key"],
)
def test_values_under_secret_names_are_hidden(name):
    assert without_secrets({"a": [{name: "open sesame"}]}) == {"a": [{name: HIDDEN}]}
    assert command_line(["posttrain", "train", f"x.{name}=open sesame"]) == [
        "posttrain",
        "train",
        f"x.{name}={HIDDEN}",
    ]


def test_ordinary_names_and_numbers_are_kept():
    config = {
        "eos_token": "<end>",
        "pad_token": "p",
        "max_new_tokens": 5,
        "token": None,
        "tokenizer": "x",
        "keys": "k",
    }
    assert without_secrets(config) == config
    assert without_secrets({"model": {"path": "org/hf_model-7b"}, "seed": 3}) == {
        "model": {"path": "org/hf_model-7b"},
        "seed": 3,
    }


@pytest.mark.parametrize(
    "text", ["hf_" + "a1B2" * 8, "sk-" + "x" * 32, "ghp_" + "a" * 36, "github_pat_" + "a" * 40, "AKIA" + "A" * 16]
)
def test_values_that_look_like_access_tokens_are_hidden_anywhere(text):
    assert without_secrets({"note": f"use {text} here"}) == {"note": f"use {HIDDEN} here"}
    assert text not in " ".join(command_line(["run", f"data.path={text}", text]))


def test_passwords_in_addresses_and_flags_are_hidden():
    assert without_secrets("https://me:pass1@host/x") == f"https://{HIDDEN}@host/x"
    assert command_line(["run", "--hub-token", "abc", "--seed", "1"]) == ["run", "--hub-token", HIDDEN, "--seed", "1"]
    assert command_line(["run", "--token=abc"]) == ["run", f"--token={HIDDEN}"]


def test_a_secret_expanded_from_the_environment_is_hidden_under_any_name(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct-horse-battery")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    assert without_secrets({"headers": "Bearer correct-horse-battery, a"}) == {"headers": f"Bearer {HIDDEN}, a"}
