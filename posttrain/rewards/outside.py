"""What a user's own reward is seen to take from outside: clock, chance, environment, network, files of made-up names.

Nothing of that stands in the record of a run, so the run cannot be repeated or continued alike. Read from the source,
nothing is run; what a library does inside is not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from posttrain.rewards.provenance import own_sources

# Kinds, and how the dotted names that mean them begin; a name with a final dot stands for all below it.
_KINDS = {
    "reads the clock": (
        *("time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.strftime", "time.ctime", "time.asctime"),
        *("datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today", "datetime.date.today"),
    ),
    "draws at random": (
        *("random.", "numpy.random.", "secrets.", "uuid.uuid1", "uuid.uuid4", "os.urandom", "torch.rand"),
        *("torch.randn", "torch.randint", "torch.randperm", "torch.bernoulli", "torch.multinomial"),
    ),
    "reads the environment": ("os.environ", "os.environb", "os.getenv"),
    "asks the network": (
        *("requests.", "httpx.", "aiohttp.", "urllib.request.", "urllib3.", "http.client.", "socket."),
        *("openai.", "anthropic.", "huggingface_hub."),
    ),
}
_SEEDED = ("random.Random", "numpy.random.default_rng", "numpy.random.RandomState", "numpy.random.Generator")
_OPENS = (
    "open",
    "io.open",
    "codecs.open",
    "gzip.open",
    "numpy.load",
    "numpy.loadtxt",
    "torch.load",
    "pandas.read_csv",
)
_PATHS = {"Path", "pathlib", "os", "str", "__file__"}


def outside_inputs(name: str, base_dir: str | Path = ".") -> list[str]:
    """Sentences such as "grade.py, line 3, reads the clock (time.time)", in order; empty for a packaged reward.

    Args:
        name: of the reward, as in a recipe. base_dir: folder that its path starts from.
    """
    found: list[str] = []
    for file, source in own_sources(name, base_dir):
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue  # told when the reward is loaded
        found += [f"{file.name}, line {line}, {what}" for line, what in sorted(set(_seen(tree)))]
    return found


def _seen(tree: ast.Module) -> Iterator[tuple[int, str]]:
    names, texts = _imported(tree), _constants(tree)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    seeded = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_seeded(node, names)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _dotted(node.func, names) in _OPENS:
            if node.args and not _is_told(node.args[0], texts):
                yield node.lineno, "opens a file under a name that it makes"
        elif isinstance(node, ast.Name | ast.Attribute) and id(node) not in inner and id(node) not in seeded:
            dotted = _dotted(node, names)
            for kind, beginnings in _KINDS.items() if dotted is not None else ():
                if any(_means(str(dotted), beginning) for beginning in beginnings):
                    yield node.lineno, f"{kind} ({dotted})"


def _means(dotted: str, beginning: str) -> bool:
    return dotted.startswith(beginning if beginning.endswith(".") else f"{beginning}.") or dotted == beginning


def _imported(tree: ast.Module) -> dict[str, str]:
    """Name in the file -> dotted name of what was imported under it."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                found[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def _dotted(node: ast.AST, names: dict[str, str]) -> str | None:
    """The dotted name of something imported, or of a builtin; None for what is made in the file."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    first = names.get(node.id, node.id if node.id in _OPENS else None)
    return None if first is None else ".".join([first, *reversed(parts)])


def _is_seeded(node: ast.Call, names: dict[str, str]) -> bool:
    return bool(node.args or node.keywords) and _dotted(node.func, names) in _SEEDED


def _constants(tree: ast.Module) -> set[str]:
    """Names that the file binds to texts or paths at its top: `reward_files` sees those."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and _is_told(node.value, found):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def _is_told(node: ast.AST, texts: Iterable[str]) -> bool:
    """Whether a name of a file is put together from texts of the source alone."""
    known = {*texts, *_PATHS}
    return all(
        item.id in known if isinstance(item, ast.Name) else not isinstance(item, ast.Subscript | ast.Lambda)
        for item in ast.walk(node)
    )
