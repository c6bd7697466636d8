"""What the pages say is so: links lead somewhere, commands can be typed, examples run, tables are the code's."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from posttrain.cli import app
from posttrain.config.loader import parse
from posttrain.registry import METHODS
from posttrain.reproduce.claims import studies_in
from posttrain.reproduce.ledger import written_pages
from posttrain.reproduce.problems import problems
from posttrain.reproduce.results import read_results

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *(ROOT / name for name in ("AGENTS.md", "SECURITY.md", "tests/README.md", "recipes/README.md"))]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "recipes").glob("*/README.md"))]
PAGES += [ROOT / "accelerate_configs" / "GRADIENTS.md"]
# (method, study) that has a claims file and no results -> why
NOT_MEASURED: dict[tuple[str, str], str] = {}
BLOCK = re.compile(r"<!-- example:(\w+) -->\n```\w+\n(.*?)```\n<!-- /example:\1 -->", re.DOTALL)
OWN = re.compile(r"^(?:\.venv/bin/)?(?:python -m )?posttrain (.+)$")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_readme_is_short():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150 and len(text.encode()) <= 10_000


def test_python_example_trains_and_saves(tmp_path: Path):
    script = tmp_path / "example.py"
    script.write_text(dict(BLOCK.findall(README.read_text(encoding="utf-8")))["python"], encoding="utf-8")
    done = typed([sys.executable, str(script)], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "runs" / "example" / "final" / "model.safetensors").is_file()


def test_tables_and_lists_are_those_of_the_code():
    stale = [name(path) for path, text in written_pages(ROOT).items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"run `posttrain reproduce --ledger`: {stale}"


def test_results_files_follow_from_their_own_numbers_and_are_up_to_date():
    """Schema, means, differences, intervals, verdicts and sentences; and the claims and recipe they were run with."""
    found = [line for path in (ROOT / "recipes").glob("*/RESULTS.json") for line in problems(path)]
    assert not found, "\n".join(found)


def test_every_study_is_measured():
    """A claims file without its results is a claim nobody has tested."""
    missing = []
    for key in METHODS:
        folder = ROOT / "recipes" / key
        results = read_results(folder / "RESULTS.json")
        measured = results.studies if results else {}
        missing += [(key, study) for study in studies_in(folder) if study not in measured]
    assert set(missing) == set(NOT_MEASURED), "run `posttrain reproduce`, or say in NOT_MEASURED why not"
    assert ("hpt", "main") not in missing


# ---- links ----


def anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads)
    return set(plain)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), f"{name(page)}: {target}"
        assert not anchor or anchor in anchors(place.read_text(encoding="utf-8")), f"{name(page)}: {target}"


def test_every_page_can_be_reached_from_the_readme():
    seen, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        targets = re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8"))
        waiting += [place for t in targets if (place := (page.parent / t).resolve()).exists()]
    assert not [name(page) for page in PAGES if page not in seen]


# ---- commands ----


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line in a shell block, and of every inline `posttrain verb ...`."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            whole = block.replace("\\\n", " ")
            found += [(name(page), line.strip()) for line in whole.splitlines() if line.strip() and line[0] != "#"]
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        inline = [" ".join(span.split()) for span in re.findall(r"`(posttrain [a-z][^`]+)`", text)]
        found += [(name(page), span) for span in inline if not re.search(r"[|…]|\.\.\.", span)]
    return list(dict.fromkeys(found))


COMMANDS = commands()


def test_there_are_commands():
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: value[:60])
def test_a_command_can_be_typed(page: str, command: str):
    """Verbs, options and files are there; what a command does is tested where its code is."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # R=recipes/..., an environment variable
        words = words[1:]
    if not words or words[0] in ("pip", "export", "source", "cd", "git", "cat", "hf"):
        return
    files = [word for word in words if re.fullmatch(r"[\w./-]+\.(yaml|sh|py|md|json)", word) and "/" in word]
    made = ("runs/", "my_", "/")
    gone = [word for word in files if not word.startswith(made) and not (ROOT / word).exists()]
    assert not gone, f"{page}: {command}: there is no {gone}"
    if words[0] in (".venv/bin/python", "python") and words[1:3] == ["-m", "posttrain"]:
        words = ["posttrain", *words[3:]]
    if Path(words[0]).name == "posttrain" and len(words) > 1:
        is_mention = f"`{command}`" in " ".join((ROOT / page).read_text(encoding="utf-8").split())
        name_verb(words[1:]) if is_mention else parse_verb(words[1:])
        return
    known = ("accelerate", ".venv/bin/python", ".venv/bin/ruff", "python", "torchrun", ".venv-vllm/bin/python")
    assert words[0] in known or words[0].startswith("scripts/"), f"{page}: {command}: who knows {words[0]}?"


def parse_verb(words: list[str]) -> None:
    """Refuses a verb or an option that is none, or an argument that lacks."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("posttrain", words[:1] if words[0].startswith("--") else [words[0]])
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"no verb {words[:1]}; there are {sorted(command.commands)}"
        command, words = command.commands[words[0]], words[1:]
    if words or not hasattr(command, "params"):
        command.make_context(command.name, list(words), parent=context, resilient_parsing="--help" in words)


def name_verb(words: list[str]) -> None:
    """A mention in a sentence: the verb and its options are there, whatever else it leaves out."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no verb {words[0]}; there are {sorted(command.commands)}"
        command, words = command.commands[words[0]], words[1:]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known | {"--help"}]
    assert not unknown, f"{command.name} has no {unknown}"


def test_a_verb_that_is_none_is_noticed():
    with pytest.raises(AssertionError, match="no verb"):
        name_verb(["trian"])
    with pytest.raises(AssertionError, match="check has no"):
        name_verb(["check", "--show-row"])
    with pytest.raises(AssertionError, match="no verb"):
        parse_verb(["trian", "recipe.yaml"])
    with pytest.raises(Exception, match="No such option"):
        parse_verb(["train", "recipe.yaml", "--sed", "1"])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_recipes_on_pages_are_recipes(page: Path):
    """YAML blocks that name a method are whole recipes; others are blocks of one."""
    for block in blocks(page, "yaml"):
        values = YAML(typ="safe", pure=True).load(block)
        assert isinstance(values, dict), block
        if "method" in values and "model" in values and "stages" not in values:
            assert parse(values).method.name in METHODS


@pytest.mark.slow
def test_the_readmes_six_commands_do_what_they_say(tmp_path: Path):
    """As they stand, in a folder with a recipe of seconds in place of the README's."""
    recipe = (ROOT / "recipes" / "hpt" / "smoke.yaml").read_text(encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(recipe.replace("runs/hpt-smoke", "runs/gsm8k"), encoding="utf-8")
    (verbs,) = [block for block in blocks(README, "bash") if "posttrain check" in block]
    lines = [shlex.split(line, comments=True) for line in verbs.splitlines()]
    assert [line[1] for line in lines] == ["check", "train", "eval", "compare", "reproduce", "doctor"]
    extra = {"reproduce": ["--dry-run"], "doctor": []}
    for words in lines:
        if words[1] == "compare":
            for folder, seed in (("seed0", 0), ("seed1", 1), ("grpo", 2)):
                more = [f"trainer.output_dir=runs/{folder}", f"trainer.seed={seed}"]
                made = typed([sys.executable, "-m", "posttrain", "train", "recipe.yaml", *more], tmp_path)
                assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
        if words[1] == "doctor":
            continue  # minutes; tests/certificate and tests/engines run it
        command = [sys.executable, "-m", "posttrain", *words[1:], *extra.get(words[1], [])]
        done = typed(command, tmp_path)
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert (tmp_path / "runs" / "gsm8k" / "REPORT.md").is_file() and (
        tmp_path / "comparison" / "report.html"
    ).is_file()
    shutil.rmtree(tmp_path / "runs")


def typed(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run from a folder of its own, so that nothing but the installed (or this) package is found."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
