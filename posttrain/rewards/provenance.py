"""What a user's own reward is made of, for the record: its file, and the local files that it imports or names."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from posttrain.rewards import locate_reward

_MOST_FILES = 100


def reward_files(names: Iterable[str], base_dir: str | Path = ".") -> dict[str, str]:
    """SHA-256 by path, relative to `base_dir` where it lies below, of every local file that rewards are seen to use.

    Seen are the modules beside a file, or in the working folder, that it imports, and files there whose name stands
    in it as text. What a function opens under a name that it makes, or fetches, cannot be seen.

    Args:
        names: of rewards, as in a recipe; packaged ones are left out. base_dir: folder that paths start from.
    """
    found = {file: hashlib.sha256(content).hexdigest() for file, content in _contents(names, base_dir).items()}
    base = Path(base_dir).resolve()
    return {
        file.relative_to(base).as_posix() if file.is_relative_to(base) else file.name: digest
        for file, digest in sorted(found.items())
    }


def own_sources(name: str, base_dir: str | Path = ".") -> list[tuple[Path, bytes]]:
    """The Python files among `reward_files` of one reward, with their content."""
    found = _contents([name], base_dir)
    return [(file, content) for file, content in sorted(found.items()) if file.suffix == ".py"]


def _contents(names: Iterable[str], base_dir: str | Path) -> dict[Path, bytes]:
    found: dict[Path, bytes] = {}
    waiting = [place for name in names if isinstance(place := locate_reward(name, base_dir)[0], Path)]
    while waiting and len(found) < _MOST_FILES:
        file = waiting.pop().resolve()
        if file in found:
            continue
        found[file] = file.read_bytes()
        if file.suffix == ".py":
            waiting += _used(found[file], [file.parent, Path.cwd(), Path(base_dir).resolve()])
    return found


def _used(source: bytes, folders: list[Path]) -> Iterator[Path]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # told when the reward is loaded
    for node in ast.walk(tree):
        for name in _names(node):
            for folder in folders:
                try:
                    if (path := folder / name).is_file():
                        yield path
                except (OSError, ValueError):
                    continue  # a text that is no file name


def _names(node: ast.AST) -> Iterator[str]:
    """Names of files that a piece of code may mean."""
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        modules = [node.module or "", *(f"{node.module or ''}.{alias.name}".strip(".") for alias in node.names)]
    else:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) < 256:
            yield node.value
        return
    for module in modules:
        if module:
            path = module.replace(".", "/")
            yield f"{path}.py"
            yield f"{path}/__init__.py"
