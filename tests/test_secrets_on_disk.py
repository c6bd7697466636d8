"""What `${env:NAME}` brings into a recipe is used and stands in no file of the run, packed ones included."""

from __future__ import annotations

import gzip
import io
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from posttrain import hidden
from posttrain.config.source import read_recipe
from posttrain.hidden import without_secrets
from posttrain.run import run
from posttrain.seam.policy.trainer import PolicyConfig
from tests.config.recipes import GRPO, SFT, changed, write

SMALL = {
    "data.train.options": {"digits": 1},
    "data.max_prompt_length": 64,
    "eval.num_prompts": 2,
    "trainer.max_steps": 1,
}
# Under names that do not say that they are secret, but for the token.
SECRETS = {
    "MY_LABEL": "violet-otter-93417",
    "MY_WORD": "correct horse battery staple",
    "MY_TOKEN": "tk9",
    "PIN_KEY": "9162534710",
    "MY_BRANCH": "unguessable/branch/of/mine",
}
SETTINGS = {
    "trainer.run_name": "run of ${env:MY_LABEL}",
    "trainer.project": "${env:MY_WORD}",
    "trainer.chat_template_kwargs": {"pin": "${env:PIN_KEY}", "word": "${env:MY_WORD}"},
    "hub.repo_id": "me/${env:MY_LABEL}",
    "hub.revision": "${env:MY_BRANCH}",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden, "_VALUES", set())
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def contents(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """A file as it is, and what is inside of it if it is an archive."""
    yield name, data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.namelist():
                yield from contents(f"{name}/{member}", archive.read(member))
    elif data[:2] == b"\x1f\x8b":
        yield from contents(f"{name}/unpacked", gzip.decompress(data))


def forms(secret: str) -> list[bytes]:
    return [secret.encode(), secret.encode("utf-16-le"), pickle.dumps(secret, 0)[1:-5]]


def leaks(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files)
    return [
        f"{name}: {secret}"
        for path in files
        for name, data in contents(str(path.relative_to(folder)), path.read_bytes())
        for secret in SECRETS.values()
        if len(secret) > 4 and any(form in data for form in forms(secret))
    ]


@pytest.mark.parametrize("base", [SFT, GRPO], ids=["sft", "grpo"])
def test_no_file_of_a_run_holds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: dict):
    own = {"rollout.max_completion_length": 8} if base is GRPO else {"eval.max_new_tokens": 8}
    settings = dict(SETTINGS)
    if base is GRPO:
        settings["rollout.chat_template_kwargs"] = settings.pop("trainer.chat_template_kwargs")
    recipe = write(tmp_path, changed(base, {**SMALL, **settings, **own}))
    seen = {}
    save = torch.save

    def watched(value, *args, **kwargs):
        if hasattr(value, "run_name"):
            seen["saved"] = value.run_name
        return save(value, *args, **kwargs)

    monkeypatch.setattr(torch, "save", watched)
    run(recipe)
    assert seen == {"saved": "run of <hidden>"}, "what is saved is still the run's arguments"
    (tmp_path / recipe.name).unlink()
    assert leaks(tmp_path) == []
    # The search finds what is there.
    torch.save({"run_name": SECRETS["MY_LABEL"]}, tmp_path / "run" / "leak.bin")
    label = SECRETS["MY_LABEL"]
    assert leaks(tmp_path) == [f"run/leak.bin: {label}", f"run/leak.bin/leak/data.pkl: {label}"]


def test_a_run_with_them_is_continued(tmp_path: Path, capsys: pytest.CaptureFixture):
    """What a checkpoint says of them is compared with what it would say now."""
    own = {"eval": None, "data.eval": None, "trainer.max_steps": 2}
    recipe = write(tmp_path, changed(SFT, {**SMALL, **SETTINGS, **own}))
    run(recipe)
    folder = tmp_path / "run"
    (folder / "finished.json").unlink()
    shutil.rmtree(folder / "checkpoint-2")
    run(recipe)
    assert (folder / "checkpoint-2").is_dir() and "goes on from step 1 of 2" in capsys.readouterr().out
    run(recipe)
    assert "finished" in capsys.readouterr().out, "nor are they another recipe"


def test_the_run_itself_uses_them_and_loggers_do_not_get_them(tmp_path: Path):
    values, _ = read_recipe(write(tmp_path, changed(SFT, SETTINGS)))
    assert (
        values["trainer"]["run_name"] == "run of violet-otter-93417"
        and values["hub"]["repo_id"] == "me/violet-otter-93417"
    )
    args = PolicyConfig(output_dir=str(tmp_path), use_cpu=True, run_name="run of violet-otter-93417", bf16=False)
    assert args.run_name == "run of violet-otter-93417"
    assert args.to_dict()["run_name"] == args.shown().run_name == "run of <hidden>"
    assert "violet" not in args.to_json_string()


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("MY_LABEL", "violet-otter", "<hidden>"),
        ("MY_TOKEN", "tk99", "<hidden>"),
        ("MY_TOKEN", "1234567", "<hidden>"),
        ("LEARNING_RATE", "0.00000123", 0.00000123),
        ("LEARNING_RATE", "1.5e-06", 1.5e-6),
        ("METHOD", "grpo", "grpo"),
        ("SCRATCH", "/tmp/of mine/x", "/tmp/of mine/x"),
        ("ODD", "/Q3/notafolder+base64==", "<hidden>"),
    ],
)
def test_what_is_a_secret_and_what_a_setting(tmp_path: Path, monkeypatch, name: str, value: str, shown: object):
    monkeypatch.setenv(name, value)
    path = tmp_path / "recipe.yaml"
    path.write_text(f"a: ${{env:{name}}}\nb:\n- x\n- c: ${{env:{name}}}\n")
    values, _ = read_recipe(path)
    assert without_secrets(values) == {"a": shown, "b": ["x", {"c": shown}]}
    assert without_secrets({"a": True, "b": 1, "c": "an ordinary word"}) == {
        "a": True,
        "b": 1,
        "c": "an ordinary word",
    }
