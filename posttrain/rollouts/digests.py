"""Whether two programs hold the same weights, told from one number for each tensor.

A digest covers every element and its place, so that one stale row of an embedding is seen. Training and engine may
keep tensors under other names and in other groupings: the engine joins the projections of attention into one matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

_CHUNK = 2**22  # elements at a time, which bounds the memory that widening to 64 bits takes
_FACTOR = 0x5851F42D4C957F2D  # odd and large, so that neighbouring places get unrelated weights
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
HEADS = ("lm_head.weight", "language_model.lm_head.weight")
EMBEDDINGS = ("model.embed_tokens.weight", "language_model.model.embed_tokens.weight")


def digest(tensor: Tensor) -> int:
    """64-bit number that depends on the bits and the order of all elements; the same on every device.

    Not cryptographic: it finds mistakes, not forgeries. 0 for an empty tensor.
    """
    flat = tensor.detach().contiguous().view(-1)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, flat.numel(), _CHUNK):
        bits = flat[start : start + _CHUNK].view(_BITS[flat.element_size()]).to(torch.int64)
        places = torch.arange(start, start + len(bits), device=bits.device, dtype=torch.int64)
        weights = (places + 1) * _FACTOR
        weights = weights ^ (weights >> 29) | 1
        total += ((bits + 1) * weights).sum()
    return int(total) % 2**64


def model_digest(parameters: Iterable[Tensor]) -> int:
    """One number for many tensors in order, e.g. all of a model that this rank holds."""
    total = 0
    for parameter in parameters:
        total = (total * 1_000_003 + digest(parameter)) % 2**64
    return total


@dataclass(frozen=True)
class EngineTensors:
    """What an engine holds: for each tensor its precision and shape, and how it joins several of the checkpoint's.

    Args:
        tensors: name -> (dtype as in "float32", shape); a tensor shared by two modules stands under both names.
        packed: joined module -> the checkpoint's modules in it, in the order of their rows.
        parts: processes that each hold a part of the model.
    """

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    packed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    parts: int = 1

    @classmethod
    def of(cls, facts: Mapping[str, object]) -> EngineTensors:
        """From the answer of `EngineWorker.posttrain_tensors`."""
        return cls(
            tensors={name: (dtype, tuple(shape)) for name, (dtype, shape) in facts["tensors"].items()},  # type: ignore[attr-defined]
            packed={name: tuple(parts) for name, parts in facts["packed"].items()},  # type: ignore[attr-defined]
            parts=int(facts["parts"]),  # type: ignore[call-overload]
        )

    def holder(self, name: str) -> str | None:
        """Name of the engine's tensor that a tensor of the checkpoint goes into, None if there is no such."""
        if name in self.tensors:
            return name
        *path, module, kind = name.split(".") if name.count(".") else ("", name, "")
        for joined, modules in self.packed.items():
            candidate = ".".join([*path, joined, kind])
            if module in modules and candidate in self.tensors:
                return candidate
        return None

    def dtype(self, name: str) -> torch.dtype | None:
        """Precision in which the engine keeps a tensor of the checkpoint."""
        holder = self.holder(name)
        return None if holder is None else getattr(torch, self.tensors[holder][0])


@dataclass(frozen=True)
class Slice:
    """Rows of an engine's tensor that are to have a digest."""

    source: str  # the checkpoint's name
    name: str  # the engine's
    first: int
    rows: int  # 0 = a tensor without dimensions

    @property
    def question(self) -> list[object]:
        """As `EngineWorker.posttrain_digests` takes it."""
        return [self.name, self.first, self.rows]


def comparable(engine: EngineTensors, sent: Mapping[str, tuple[int, ...]]) -> tuple[list[Slice], list[str]]:
    """Which rows of which engine tensor hold each tensor that was sent.

    A tied output head is never sent; the embedding's rows are looked for under its name too. With a model in several
    parts only tensors that each part holds whole can be compared.

    Args:
        engine: what the engine holds.
        sent: the checkpoint's name -> shape.

    Returns:
        The slices, and the names that have no counterpart.
    """
    found: list[Slice] = []
    missing: list[str] = []
    for name, shape in sent.items():
        holder = engine.holder(name)
        held = engine.tensors[holder][1] if holder is not None else ()
        first = 0
        if holder is not None and holder != name:
            first = _rows_before(engine, name, sent)
        rows = shape[0] if shape else 0
        fits = holder is not None and held[1:] == shape[1:] and (not shape or first + rows <= held[0])
        if engine.parts > 1:
            fits = fits and held == shape and len(shape) == 1
        if not fits or holder is None:
            missing.append(name)
            continue
        found.append(Slice(source=name, name=holder, first=first, rows=rows))
    return found + _tied_heads(engine, sent, found), missing


def unsent(engine: EngineTensors, sent: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Tensors of the engine of which a part, or all, has no counterpart among those that were sent.

    Rows of an embedding or a head beyond the vocabulary are padding, and a tied head is not sent. Where something was
    sent under a name that the engine does not have, nothing is said: which tensors it went into is not known then.
    """
    rows: dict[str, int] = {}
    for name, shape in sent.items():
        holder = engine.holder(name)
        if holder is None:
            return []
        rows[holder] = rows.get(holder, 0) + (shape[0] if shape else 1)
    if any(name in sent for name in EMBEDDINGS):
        rows |= {name: 0 for name in HEADS if name not in rows}
    found = []
    for name, (_, shape) in engine.tensors.items():
        is_part = engine.parts == 1 and name not in sent and name not in HEADS and bool(shape)
        if name not in rows or (is_part and rows[name] < shape[0]):
            found.append(name)
    return found


def _rows_before(engine: EngineTensors, name: str, sent: Mapping[str, tuple[int, ...]]) -> int:
    *path, module, kind = name.split(".")
    modules = next(modules for modules in engine.packed.values() if module in modules)
    before = modules[: modules.index(module)]
    shapes = [sent.get(".".join([*path, other, kind]), (0,)) for other in before]
    return sum(shape[0] for shape in shapes)


def _tied_heads(engine: EngineTensors, sent: Mapping[str, object], found: list[Slice]) -> list[Slice]:
    heads = [name for name in HEADS if name in engine.tensors and name not in sent]
    embeddings = [part for part in found if part.source in EMBEDDINGS]
    return [Slice(source=part.source, name=head, first=0, rows=part.rows) for head in heads for part in embeddings]
