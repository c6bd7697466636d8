"""The package as files: which modules there are, what they import, and on which floor they lie."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from posttrain import _PUBLIC
from posttrain.registry import KEYS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "posttrain"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))

# A module imports from floors below, and on its own floor only from rooms further left. Rooms that later papers bring
# are listed so that they land on theirs.
FLOORS = {
    1: "__init__ errors hidden registry console",
    2: "losses algorithms optim merging",
    3: "rewards rollouts models data evaluation reports",
    4: "seam",
    5: "config preflight training run commands certificate reproduce jobs",
    6: "methods cli __main__",
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}
PLACE_OF = {room: (floor, place) for floor, rooms in FLOORS.items() for place, room in enumerate(rooms.split())}
# The rooms of the seam, left to right; what is in none of them stands left of all.
SEAM_ROOMS = ("", "checkpoint", "engine", "groups", "supervised", "policy")
TRAINING = {"trl", "transformers", "accelerate", "peft", "datasets", "vllm", "deepspeed"}
FORBIDDEN_LIBRARIES = {
    1: TRAINING | {"huggingface_hub"},
    2: TRAINING | {"huggingface_hub"},
    3: {"trl", "accelerate", "deepspeed"},
}
SILENCES = "posttrain/console.py"  # `quiet_libraries` names them, inside a function
HEAVY = TRAINING | {"torch", "matplotlib", "scipy"}
# What `posttrain --help` loads: nothing slow at its top, so these import inside functions what their verbs need.
DOOR = (
    *("posttrain", "__main__", "errors", "registry", "console", "cli", "commands.options"),
    *(f"methods.{key}{part}" for key in KEYS for part in ("", ".commands")),
)
# All others import at their top, but for packages of an extra, and:
LATE = {
    "posttrain/rewards/math.py": "a reward process that compares by our own rules starts without sympy",
    "posttrain/rewards/math_lenient.py": "the same: math-verify brings sympy",
    "posttrain/seam/engine/link.py": "the client of a vLLM server needs the extra vllm",
}

SIZE_EXCEPTIONS: dict[str, tuple[int, str]] = {
    # "posttrain/seam/x.py": (450, "why it cannot be split"), or "posttrain/seam/x.py:function": (60, "why")
    "posttrain/seam/policy/trainer.py": (
        450,
        "one class: TRL's trainer with our loss, normaliser, order and checkpoint",
    ),
    "posttrain/seam/supervised/trainer.py": (450, "a config and its trainer: one class with its hooks"),
}
TOP_LEVEL_FILES = {".gitignore", "AGENTS.md", "LICENSE", "README.md", "SECURITY.md", "pyproject.toml"}
TOP_LEVEL_FOLDERS = {".ci", "accelerate_configs", "docs", "posttrain", "recipes", "scripts", "tests"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(dotted: str) -> str:
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def dotted_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported name, dotted and in full ("trl.trainer.utils.pad"), wherever it stands, and its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def own_imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Imports of posttrain, and strings that name one of its modules for later ("posttrain.seam.policy.trainer:X")."""
    for name, line in imports_of(tree_of(path)):
        if name.split(".")[0] == "posttrain":
            public = _PUBLIC.get(name.removeprefix("posttrain."))
            yield public or name, line
    for node in ast.walk(tree_of(path)):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and re.fullmatch(r"posttrain(\.\w+)+(:\w+)?", text):
            yield text.partition(":")[0], node.lineno


@cache
def graph() -> dict[str, set[str]]:
    """Module -> modules of posttrain that it imports, wherever in it; those for types do not count."""
    known = {dotted_of(path) for path in MODULES}
    found: dict[str, set[str]] = {}
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [name for name, _ in imports_of(_WithoutTypes().visit(tree)) if name.split(".")[0] == "posttrain"]
        parts = [name.split(".") for name in names]
        longest = [next(p for n in range(len(name), 0, -1) if (p := ".".join(name[:n])) in known) for name in parts]
        found[dotted_of(path)] = set(longest) - {dotted_of(path)}
    return found


class _WithoutTypes(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node


def place_of(dotted: str) -> tuple[int, int]:
    """(floor, place on it) of a module's room."""
    room = room_of(dotted)
    is_module = (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()
    return PLACE_OF[room if is_module else "__init__"]  # `from posttrain import __version__`


def floor_of(dotted: str) -> int:
    return place_of(dotted)[0]


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, the docstring left out: the house asks for up to fifteen lines of that."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def file_limit(path: Path) -> int:
    name = name_of(path)
    if name in SIZE_EXCEPTIONS:
        return SIZE_EXCEPTIONS[name][0]
    if name == "posttrain/run.py":
        return 200
    if path.suffix == ".yaml":
        return 90
    if name.startswith("tests/"):
        return 400
    return {2: 250}.get(floor_of(dotted_of(path)), 400)
