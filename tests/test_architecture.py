"""The house rules a machine can check: how large things are, what a method consists of.

The files are parsed, not imported. A size limit is lifted for one place by a line in `SIZE_EXCEPTIONS` with a reason.
"""

from __future__ import annotations

import ast
import re
import subprocess
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import pytest

from posttrain import registry
from tests.source_tree import (
    FLOORS,
    MODULES,
    PACKAGE,
    RECIPES,
    ROOT,
    SIZE_EXCEPTIONS,
    TOP_LEVEL_FILES,
    TOP_LEVEL_FOLDERS,
    body_lines,
    dotted_of,
    file_limit,
    imports_of,
    is_private,
    name_of,
    room_of,
    tree_of,
)

# --- private names of other people's code ---------------------------------------------------------------------------


def names_defined_in(tree: ast.AST) -> set[str]:
    """Functions, classes, variables, and attributes set on `self` or `cls`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {node.attr} if getattr(node.value, "id", None) in ("self", "cls") else set()
    return names


def room_files(path: Path) -> list[Path]:
    """The files of the room: those of the folder, or this one alone where every file is a room."""
    return [path] if path.parent in (PACKAGE, PACKAGE / "methods") else sorted(path.parent.glob("*.py"))


# What runs in vLLM's own processes cannot import the seam, which imports trl; the engine's tests hold vLLM's names.
VLLM_PARTS = {"posttrain/rollouts/cpu.py", "posttrain/rollouts/colocated.py"}
OUTSIDE = [path for path in MODULES if room_of(dotted_of(path)) != "seam" and name_of(path) not in VLLM_PARTS]


@pytest.mark.parametrize("path", OUTSIDE, ids=name_of)
def test_private_third_party_names_are_used_in_the_seam_only(path: Path):
    """Private: a name with a leading underscore that the file's own room does not define."""
    tree = tree_of(path)
    own = set().union(*(names_defined_in(tree_of(file)) for file in room_files(path)))
    found = [
        f"line {line}: {name}"
        for name, line in imports_of(tree)
        if any(map(is_private, name.split("."))) and not name.startswith(("posttrain.", "__future__"))
    ]
    found += [
        f"line {node.lineno}: .{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own | {"_exit"}  # os._exit
    ]
    assert not found, f"{name_of(path)}: {found}; give the seam a hook or an accessor for it"


@pytest.mark.parametrize("key", sorted(registry.METHODS))
def test_a_method_overrides_no_private_function_of_a_library(key: str):
    entry = registry.METHODS[key]
    for loaded in (entry.load_config(), entry.load_trainer()) if entry.trains else ():
        foreign = [base for base in loaded.__mro__ if not base.__module__.startswith("posttrain.")]
        for base in loaded.__mro__:
            if base.__module__.startswith("posttrain.methods."):
                private = [name for name in vars(base) if is_private(name) and any(name in vars(f) for f in foreign)]
                assert not private, f"{base.__name__} overrides {private}; add a hook to the seam"


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*MODULES, *sorted((ROOT / "tests").rglob("*.py")), *RECIPES], ids=name_of)
def test_file_is_within_its_size(path: Path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= file_limit(path), f"{name_of(path)} has {lines} lines; the limit is {file_limit(path)}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_are_within_fifty_lines(path: Path):
    long = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = SIZE_EXCEPTIONS.get(f"{name_of(path)}:{node.name}", (50, ""))[0]
            if body_lines(node) > limit:
                long.append(f"{node.name} (line {node.lineno}): {body_lines(node)} lines, limit {limit}")
    assert not long, f"{name_of(path)}: {long}"


@pytest.mark.parametrize("path", [p for p in MODULES if "methods" in p.parts], ids=name_of)
def test_a_method_adds_at_most_fifteen_settings(path: Path):
    for node in tree_of(path).body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            settings = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            assert len(settings) <= 15, f"{node.name} has {len(settings)}"


def test_size_exceptions_are_needed_and_have_a_reason():
    for name, (limit, reason) in SIZE_EXCEPTIONS.items():
        file, _, function = name.partition(":")
        path = ROOT / file
        assert path.is_file() and reason, name
        if function:
            sizes = [body_lines(n) for n in ast.walk(tree_of(path)) if getattr(n, "name", None) == function]
            assert sizes and 50 < max(sizes) <= limit, f"{name}: {sizes}"


# --- what a method consists of --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", sorted(registry.METHODS))
def test_method_has_its_room_recipes_and_tests(key: str):
    entry, recipes = registry.METHODS[key], ROOT / "recipes" / key
    assert entry.key == key and re.fullmatch(r"[a-z][a-z0-9_]*", key)
    assert (recipes / "README.md").is_file(), f"recipes/{key}/README.md is missing"
    assert (recipes / "smoke.yaml").is_file(), f"recipes/{key}/smoke.yaml is missing"
    assert list((ROOT / "tests" / "methods" / key).glob("*.py")), f"tests/methods/{key}/ is missing"
    assert entry.supports <= set(registry.FEATURES) and entry.inputs <= set(registry.INPUTS)
    assert set(entry.slots) <= set(registry.SLOTS)


# Where else a method may be named: pattern of the file -> why. A new method needs no line here.
NAMES_METHODS = {
    "posttrain/registry.py": "the tuple of keys",
    "README.md": "the list of methods",
    "AGENTS.md": "an example of a command",
    "pyproject.toml": "a word of a comment",
    "SECURITY.md": "an example of a recipe",
    "docs/*.md": "what a reader may want to know of a method",
    "accelerate_configs/GRADIENTS.md": "the table of gradients, made by scripts/gradients.py",
    "recipes/*": "a method's recipes compare it with others, which stand in its results",
    "scripts/*": "an example, or what is timed",
    "tests/*": "an example of a run; the batteries name none",
    "posttrain/methods/*": "what a paper generalises, in words",
    "posttrain/reproduce/claims.py": "an example of a study in the docstring",
    "posttrain/reproduce/ledger.py": "an example of a sentence in a docstring",
    "posttrain/cli.py": "an example of a command in a message",
    "posttrain/__init__.py": "an example of an import in the docstring",
}
EXAMPLES = ("sft", "grpo", "hpt")  # the bases, and the method of the quickstart: plain words of the docs and tests


@pytest.mark.parametrize("key", registry.KEYS)
def test_a_method_is_named_in_four_places(key: str):
    """Its room, the tuple of keys, its recipes and its tests: in other files of the package it is a word at most."""
    own = (f"posttrain/methods/{key}/", f"recipes/{key}/", f"tests/methods/{key}/")
    listing = subprocess.run(["git", "grep", "-lwF", key], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode > 1:
        pytest.skip("not a git checkout")
    files = [name for name in listing.stdout.split() if not name.startswith(own)]
    spine = [
        name for name in files if name.startswith("posttrain/") and not any(map(partial(fnmatch, name), NAMES_METHODS))
    ]
    assert key in ("sft", "grpo") or not spine, f"the spine names {key}: {spine}; the hook it needs is missing"
    if key not in EXAMPLES:
        batteries = [name for name in files if name.startswith(("tests/batteries/", "tests/engines/"))]
        assert not batteries, f"a battery names {key}: {batteries}; say it in tests/methods/{key}/cases.py"
    assert all(any(map(partial(fnmatch, name), NAMES_METHODS)) or name in spine for name in files)


def test_recipe_folders_belong_to_methods():
    folders = {path.name for path in (ROOT / "recipes").iterdir() if path.is_dir()}
    assert folders <= set(registry.METHODS) | {"jobs"}


MATH = [path for path in MODULES if path.parent.name in FLOORS[2].split() and path.name != "__init__.py"]


@pytest.mark.parametrize("path", MATH, ids=name_of)
def test_every_math_file_is_tested_in_the_mirrored_folder(path: Path):
    """By a test that imports it, or another math file that passes its names on."""
    room = f"posttrain.{path.parent.name}."
    tests = (ROOT / "tests" / path.parent.name).glob("test_*.py")
    used = {name for test in tests for name, _ in imports_of(tree_of(test)) if name.startswith(room)}
    direct = {other for other in MATH if any(name.startswith(dotted_of(other) + ".") for name in used)}
    used |= {name for other in direct for name, _ in imports_of(tree_of(other))}
    assert any(name.startswith(dotted_of(path) + ".") for name in used), f"no test imports {dotted_of(path)}"


# --- names and words ------------------------------------------------------------------------------------------------


def tracked_files() -> list[str]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return listing.stdout.splitlines()


def test_top_level_is_fixed():
    parts = [name.split("/") for name in tracked_files()]
    assert {part[0] for part in parts if len(part) == 1} <= TOP_LEVEL_FILES
    assert {part[0] for part in parts if len(part) > 1} <= TOP_LEVEL_FOLDERS


def test_no_file_is_named_after_having_no_subject():
    assert not [name_of(path) for path in MODULES if path.stem in ("utils", "helpers", "common", "misc", "base")]


# Addresses that a reader may want to follow; a package registry or a private machine is not among them.
KNOWN_HOSTS = {"arxiv.org", "doi.org", "github.com", "huggingface.co", "www.apache.org", "127.0.0.1", "localhost"}
UNWANTED = {
    "a path of somebody's machine": r"(?<![\w.~$}*-])/(?:work|root|home|opt|mnt|Users)/",
    "unfinished work": r"\b(?:TODO|FIXME|XXX)\b",
    "how the code came about": r"(?i)\b(?:(?:previous|next|last|this) session|(?:coding|AI) (?:agent|assistant)s?)\b",
    "remote code switched on": r"trust_remote_code=True|^\s*trust_remote_code: true",
}


def test_files_hold_no_unwanted_words_or_addresses():
    found = []
    for name in tracked_files():
        path = ROOT / name
        if name == name_of(Path(__file__)) or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or other data
        for number, line in enumerate(text.splitlines(), start=1):
            found += [f"{name}:{number}: {kind}" for kind, pattern in UNWANTED.items() if re.search(pattern, line)]
            hosts = set(re.findall(r"https?://(?:[^/\s@]*@)?([\w.-]+)", line))
            # Names under .example, and those without a top-level domain, are nobody's.
            hosts = {host for host in hosts if "." in host[:-1] and not host.endswith((".example", ".invalid", ".b"))}
            found += [f"{name}:{number}: address {host}" for host in hosts - KNOWN_HOSTS]
    assert not found, "\n".join(found)
