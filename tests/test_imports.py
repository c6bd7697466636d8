"""Who imports whom: no circles, nothing from a floor above, and at the top of a file. The files are parsed."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from posttrain.errors import EXTRAS
from tests.source_tree import (
    DOOR,
    FLOOR_OF,
    FORBIDDEN_LIBRARIES,
    HEAVY,
    LATE,
    MODULES,
    PACKAGE,
    ROOT,
    SEAM_ROOMS,
    SILENCES,
    dotted_of,
    floor_of,
    graph,
    imports_of,
    is_private,
    name_of,
    own_imports_of,
    place_of,
    room_of,
    tree_of,
)


def test_no_module_imports_itself_through_others():
    order = list(TopologicalSorter(graph()).static_order())  # graphlib.CycleError names the circle
    assert len(order) == len(MODULES)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_lies_on_a_known_floor_at_most_three_folders_deep(path: Path):
    assert room_of(dotted_of(path)) in FLOOR_OF, f"{name_of(path)}: no floor is given for this room"
    assert len(path.relative_to(PACKAGE).parts) <= 4


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_stay_on_the_floor_or_go_down(path: Path):
    if path == PACKAGE / "__init__.py":
        return  # the public names, loaded on first use; test_packaging.py holds that
    here = place_of(dotted_of(path))
    upward = [f"line {line}: {name}" for name, line in own_imports_of(path) if place_of(name) > here]
    assert not upward, f"{name_of(path)} is in room {here} and imports from above, or from the right: {upward}"


@pytest.mark.parametrize("path", [path for path in MODULES if "seam" in path.parts], ids=name_of)
def test_rooms_of_the_seam_import_from_the_left(path: Path):
    def room(dotted: str) -> int:
        parts = dotted.split(".")
        known = len(parts) > 2 and parts[2] in SEAM_ROOMS
        return SEAM_ROOMS.index(parts[2]) if known else 0

    here = room(dotted_of(path))
    right = [
        f"line {line}: {name}" for name, line in own_imports_of(path) if room_of(name) == "seam" and room(name) > here
    ]
    assert not right, f"{name_of(path)} imports from the right: {right}"


def test_rooms_stand_on_few_others():
    """How many rooms stand above one another from the first to the papers."""
    rooms: dict[str, set[str]] = {}
    for module, imported in graph().items():
        own = rooms.setdefault(room_of(module), set())
        own |= {room_of(other) for other in imported} - {room_of(module), "__init__"}
    height: dict[str, int] = {}
    for room in TopologicalSorter(rooms).static_order():
        height[room] = 1 + max((height[other] for other in rooms.get(room, ())), default=0)
    assert set(rooms["methods"]) and height["methods"] <= 8, height


def test_few_files_lie_loose_in_the_package():
    assert len([path for path in MODULES if path.parent == PACKAGE]) <= 8


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_lower_floors_do_not_know_the_training_libraries(path: Path):
    forbidden = set() if name_of(path) == SILENCES else FORBIDDEN_LIBRARIES.get(floor_of(dotted_of(path)), set())
    found = [f"line {line}: {name}" for name, line in imports_of(tree_of(path)) if name.split(".")[0] in forbidden]
    assert not found, f"{name_of(path)}: {found}"


def is_door(path: Path) -> bool:
    return dotted_of(path).removeprefix("posttrain.") in DOOR


@pytest.mark.parametrize("path", list(filter(is_door, MODULES)), ids=name_of)
def test_the_door_imports_nothing_slow_at_its_top(path: Path):
    for statement in tree_of(path).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for name, line in imports_of(statement):
                slow = name.split(".")[0] in HEAVY or (name.startswith("posttrain.") and loads_heavy(name))
                assert not slow, f"{name_of(path)}, line {line}: {name}; import it in the verb that needs it"


@pytest.mark.parametrize("path", [path for path in MODULES if not is_door(path)], ids=name_of)
def test_imports_stand_at_the_top(path: Path):
    inside = [
        f"line {line}: {name}"
        for function in ast.walk(tree_of(path))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for name, line in imports_of(function)
        if name.split(".")[0] not in EXTRAS
    ]
    if name_of(path) in LATE:
        assert inside, f"{name_of(path)} is in LATE and has none"
    else:
        assert not inside, f"{name_of(path)} imports inside a function: {inside}"


def loads_heavy(dotted: str) -> bool:
    """Whether importing this module, or one it imports at its top, loads a slow library."""
    seen: set[Path] = set()
    waiting = [dotted]
    while waiting:
        parts = waiting.pop().split(".")
        folders = [ROOT.joinpath(*parts[:length]) for length in range(1, len(parts) + 1)]
        for path in [file for folder in folders for file in (folder / "__init__.py", folder.with_suffix(".py"))]:
            if path in seen or not path.is_file():
                continue
            seen.add(path)
            tops = [node for node in tree_of(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
            names = [name for node in tops for name, _ in imports_of(node)]
            if any(name.split(".")[0] in HEAVY for name in names):
                return True
            waiting += [name for name in names if name.startswith("posttrain.")]
    return False


@pytest.mark.parametrize("path", [p for p in MODULES if "methods" in p.parts], ids=name_of)
def test_a_method_does_not_reach_into_another(path: Path):
    own = ".".join(dotted_of(path).split(".")[:3])
    for name, line in own_imports_of(path):
        parts = name.split(".")
        if parts[:2] == ["posttrain", "methods"] and ".".join(parts[:3]) != own:
            assert len(parts) <= 4 and not any(map(is_private, parts)), f"{name_of(path)}, line {line}: {name}"
