"""Several sources as one data set: how much of each, how often, and what came of it in rows and tokens.

A source has N rows. Four numbers decide what an epoch holds of it, in this order, and mean different things:

- `fraction` f: which rows there are. The source is put into one random order, which follows from the mixture's seed
  and the source's name alone; its first floor(f*N) rows are used, at least one if f > 0. So a smaller fraction's rows
  are among a larger one's, and renaming a source moves no other source's rows. 0 leaves the source out.
- `max_rows`: no more than this many of them (the first, so that it nests as well).
- `replay_fraction`: of those, the part that is used here: floor(replay_fraction * rows), at least one if it is above
  0; 0 leaves the source out. Meant for a later stage that repeats part of an earlier stage's rows. With
  `replay_measure: tokens` the part is counted in tokens: the longest beginning with at most that share of them.
- how often a row comes in an epoch: `repeat` times (mixing concat_shuffle), or as `weight` has it (mixing
  interleave_weighted): the sources take turns so that their shares of the rows are as their weights, until every row
  of every source has come once; a source that is through begins again.

What is left out: streams, whose fractions are not defined (`posttrain.data.streams` has what is), and weights on the
loss of a source.
Source: arXiv 2310.05492, subsets and strategies (sections 3 and 4); names of the settings are ours.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from datasets import Dataset, concatenate_datasets

from posttrain.data.demonstrations import encode_prompt, encode_row, template_inputs
from posttrain.data.sources import load_source, with_one_kind_of_messages
from posttrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset

SOURCE_COLUMN = "mixture_source"
SUBSET_SEED = 42
MIXINGS = ("concat_shuffle", "interleave_weighted")
TokenCount = Callable[[Mapping[str, Any]], int]


@dataclass(frozen=True)
class Part:
    """What a mixture takes of one source; the module says what the numbers mean."""

    name: str
    fraction: float = 1.0
    max_rows: int | None = None
    replay_fraction: float | None = None
    replay_measure: str = "rows"
    repeat: int = 1
    weight: float | None = None
    role: str | None = None

    @classmethod
    def of(cls, entry: Any) -> Part:
        """From a mapping, or an object with attributes; what is None there has its default."""
        given = {name: field_of(entry, name) for name in cls.__dataclass_fields__}
        return cls(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class SourceShare:
    """What an epoch holds of one source. `tokens` is None until they are counted; `rows` counts repetitions."""

    name: str
    role: str | None
    available: int
    used: int
    rows: int
    indices_sha256: str
    tokens: int | None = None


@dataclass(frozen=True)
class Mixture:
    """The rows of an epoch with the column `SOURCE_COLUMN`, and each source's share of them."""

    dataset: Dataset
    shares: tuple[SourceShare, ...]
    warnings: tuple[str, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())

    def with_tokens(self, count: TokenCount) -> Mixture:
        """The same with the tokens of each source counted, repetitions included."""
        totals = dict.fromkeys((share.name for share in self.shares), 0)
        for row in self.dataset:
            totals[row[SOURCE_COLUMN]] += count(row)
        shares = tuple(SourceShare(**{**vars(share), "tokens": totals[share.name]}) for share in self.shares)
        return Mixture(self.dataset, shares, self.warnings, self.notes)

    def record(self) -> dict[str, dict[str, Any]]:
        """For `run.json`: numbers of each source by its name, with its share of rows and, if counted, of tokens."""
        rows, tokens = len(self.dataset), sum(share.tokens or 0 for share in self.shares)
        found: dict[str, dict[str, Any]] = {}
        for share in self.shares:
            numbers = {key: value for key, value in vars(share).items() if key != "name"}
            found[share.name] = {**numbers, "row_fraction": share.rows / rows}
            if share.tokens is not None:
                found[share.name]["token_fraction"] = share.tokens / tokens if tokens else 0.0
        return found

    def lines(self) -> list[str]:
        """The table that `posttrain check` shows, one line for each source."""
        width = max(len(share.name) for share in self.shares)
        told = []
        for name, numbers in self.record().items():
            role = f" ({numbers['role']})" if numbers["role"] else ""
            line = f"{name:<{width}}{role}: {numbers['used']} of {numbers['available']} rows, "
            line += f"{numbers['rows']} an epoch ({numbers['row_fraction']:.2%})"
            if numbers["tokens"] is not None:
                line += f", {numbers['tokens']} tokens ({numbers['token_fraction']:.2%})"
            told.append(line)
        return told


def subset_size(size: int, fraction: float) -> int:
    """floor(fraction * size) of the decimal number as it is written, but at least 1 if the fraction is above 0.

    Raises:
        ConfigError: a fraction outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ConfigError("a fraction is a part of the rows", where="fraction", got=fraction, allowed="0 to 1")
    exact = int(Fraction(repr(float(fraction))) * size)
    return max(exact, 1) if fraction > 0 and size else exact


def source_order(name: str, size: int, *, seed: int) -> list[int]:
    """Random order of a source's rows; it follows from seed, name and size alone."""
    order = list(range(size))
    random.Random(f"{seed}/{name}").shuffle(order)
    return order


def subset_indices(part: Part, size: int, *, seed: int, token_counts: Sequence[int] | None = None) -> list[int]:
    """Rows of a source that an epoch uses, in the source's random order.

    Args:
        part: what to take.
        size: N, rows of the source.
        seed: of the mixture.
        token_counts: tokens of every row of the source; needed with `replay_measure: tokens`.
    """
    chosen = source_order(part.name, size, seed=seed)[: subset_size(size, part.fraction)]
    chosen = chosen if part.max_rows is None else chosen[: part.max_rows]
    if part.replay_fraction is None:
        return chosen
    if part.replay_measure == "rows":
        return chosen[: subset_size(len(chosen), part.replay_fraction)]
    if token_counts is None:
        raise ConfigError("tokens cannot be counted without a tokenizer", where=f"{part.name}.replay_measure")
    budget = Fraction(repr(part.replay_fraction)) * sum(token_counts[index] for index in chosen)
    count, spent = 0, 0
    while count < len(chosen) and spent + token_counts[chosen[count]] <= budget:
        spent += token_counts[chosen[count]]
        count += 1
    return chosen[: max(count, 1) if part.replay_fraction > 0 else 0]


def interleaved(sizes: Sequence[int], weights: Sequence[float]) -> list[tuple[int, int]]:
    """(source, place in it) of every row of an epoch in which sources take turns by weight until each is through.

    At every step comes the source that is furthest behind its share; ties go to the first. A source that is through
    before the others begins again.

    Args:
        sizes: rows of each source, >= 1.
        weights: > 0; their sum need not be 1.
    """
    exact = [Fraction(repr(float(weight))) for weight in weights]
    shares = [int(weight * math.lcm(*(other.denominator for other in exact))) for weight in exact]
    total = sum(shares)
    taken = [0] * len(sizes)
    order: list[tuple[int, int]] = []
    while any(count < size for count, size in zip(taken, sizes, strict=True)):
        behind = [share * (len(order) + 1) - total * count for share, count in zip(shares, taken, strict=True)]
        source = behind.index(max(behind))
        order.append((source, taken[source] % sizes[source]))
        taken[source] += 1
    return order


def mix(
    sources: Mapping[str, Dataset],
    parts: Iterable[Any],
    *,
    mixing: str = "concat_shuffle",
    seed: int = SUBSET_SEED,
    count_tokens: TokenCount | None = None,
) -> Mixture:
    """Mix loaded data sets.

    Args:
        sources: rows of each source by its name. A column that only some sources have is None in the others' rows.
        parts: a `Part`, or a mapping with its fields, for every source, in order.
        mixing: "concat_shuffle" (all rows, shuffled once; a trainer shuffles them again in every epoch) or
            "interleave_weighted" (in turn by weight).
        seed: of every source's random order and of the shuffling.
        count_tokens: tokens of a row; needed with `replay_measure: tokens`.

    Raises:
        ConfigError: settings that contradict each other, duplicate names.
        DataError: an empty source, a stream, no rows at all, or sources whose columns do not go together.
    """
    wanted = [part if isinstance(part, Part) else Part.of(part) for part in parts]
    _check_parts(wanted, mixing)
    warnings: list[str] = []
    indices: dict[str, list[int]] = {}
    for part in wanted:
        indices[part.name] = _chosen(part, sources[part.name], seed, count_tokens, warnings)
    used = [part for part in wanted if indices[part.name]]
    if not used:
        raise DataError("every source is left out", where="mixture", fix="Raise a fraction")
    _check_columns({part.name: sources[part.name] for part in used})
    order = _order(used, {part.name: len(indices[part.name]) for part in used}, mixing, seed)
    dataset = _joined({part.name: (sources[part.name], indices[part.name]) for part in used}, order)
    counts = [0] * len(used)
    for source, _ in order:
        counts[source] += 1
    rows = {part.name: count for part, count in zip(used, counts, strict=True)}
    shares = tuple(
        SourceShare(
            name=part.name,
            role=part.role,
            available=len(sources[part.name]),
            used=len(indices[part.name]),
            rows=rows.get(part.name, 0),
            indices_sha256=hashlib.sha256(json.dumps(indices[part.name]).encode()).hexdigest(),
        )
        for part in wanted
    )
    return Mixture(dataset, shares, tuple(warnings))


def build_mixture(
    block: Any, *, system_prompt: str | None = None, texts: Sequence[str] = (), count_tokens: TokenCount | None = None
) -> Mixture:
    """The mixture that a recipe's `data.train` describes.

    Args:
        block: mapping or object with `mixture` (entries with the fields of `Part` and of a source), `mixing`, `seed`.
        system_prompt, texts, count_tokens: as in `load_source` and `mix`.
    """
    entries = list(field_of(block, "mixture"))
    sources = {}
    told: dict[str, list[str]] = {}
    for entry in entries:
        name = str(field_of(entry, "name"))
        if name in sources:
            raise _duplicate(name)
        fields = entry if isinstance(entry, Mapping) else entry.model_dump()
        given, told[name] = {**fields, "name": field_of(entry, "configuration")}, []
        sources[name] = load_source(given, system_prompt=system_prompt, texts=texts, notes=told[name])
    seed = field_of(block, "seed")
    mixed = mix(
        with_one_kind_of_messages(sources),
        entries,
        mixing=field_of(block, "mixing") or "concat_shuffle",
        seed=SUBSET_SEED if seed is None else seed,
        count_tokens=count_tokens,
    )
    return replace(mixed, notes=tuple(f"source {name!r}: {note}" for name, notes in told.items() for note in notes))


def token_counter(tokenizer: Any, *, column: str, **chat_template_kwargs: Any) -> TokenCount:
    """Counts a row's tokens: those of the prompt, and of the demonstration in `column` if the row has one."""

    def count(row: Mapping[str, Any]) -> int:
        text, inputs = row.get(column), template_inputs(row, chat_template_kwargs)
        if not isinstance(text, str) or not text.strip():
            return len(encode_prompt(tokenizer, row["prompt"], **inputs))
        given, learnt = encode_row(tokenizer, row["prompt"], text, column=column, **inputs)
        return len(given) + len(learnt)

    return count


# ---- steps of `mix` ----


def field_of(entry: Any, name: str) -> Any:
    """A field of a source, which is a mapping or has attributes; None where it is not there."""
    return entry.get(name) if isinstance(entry, Mapping) else getattr(entry, name, None)


def _duplicate(name: str) -> ConfigError:
    return ConfigError("two sources have this name", where="mixture", got=name, fix="Rename one")


def _check_parts(parts: Sequence[Part], mixing: str) -> None:
    names = [part.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise _duplicate(name)
    if mixing not in MIXINGS:
        raise ConfigError("unknown mixing", where="mixing", got=mixing, allowed=f"one of: {', '.join(MIXINGS)}")
    weighted = mixing == "interleave_weighted"
    for part in parts:
        if weighted and part.weight is None:
            raise ConfigError("interleave_weighted needs a weight", where=f"{part.name}.weight", allowed="> 0")
        if weighted and part.repeat != 1:
            fix = "Remove it, or use mixing: concat_shuffle"
            raise ConfigError("the weight says how often rows come", where=f"{part.name}.repeat", fix=fix)
        if not weighted and part.weight is not None:
            fix = "Use repeat, or mixing: interleave_weighted"
            raise ConfigError("read by interleave_weighted alone", where=f"{part.name}.weight", fix=fix)


def _chosen(part: Part, rows: Any, seed: int, count_tokens: TokenCount | None, warnings: list[str]) -> list[int]:
    """Rows of one source that are used; a source of which only the least possible is left is told."""
    if not isinstance(rows, Dataset):
        raise DataError(
            "a stream has no length, so a part of it is not defined",
            where=f"mixture source {part.name!r}",
            got=type(rows).__name__,
            allowed="a datasets.Dataset",
            fix="Load the data set without streaming",
        )
    if not len(rows):
        raise DataError("the source has no rows", where=f"mixture source {part.name!r}", fix="Remove it")
    measured = part.replay_measure == "tokens" and part.replay_fraction is not None
    tokens = [count_tokens(row) for row in rows] if measured and count_tokens is not None else None
    chosen = subset_indices(part, len(rows), seed=seed, token_counts=tokens)
    floors = {"fraction": (part.fraction, len(rows))}
    if part.replay_fraction is not None and not measured:
        floors["replay_fraction"] = (
            part.replay_fraction,
            len(subset_indices(_without_replay(part), len(rows), seed=0)),
        )
    for key, (value, size) in floors.items():
        if value > 0 and int(Fraction(repr(value)) * size) == 0:
            warnings.append(f"source {part.name!r}: {key} {value:g} of {size} rows is less than one; one row is used")
    if tokens is not None and len(chosen) == 1:
        whole = sum(tokens[index] for index in subset_indices(_without_replay(part), len(rows), seed=seed))
        if tokens[chosen[0]] > Fraction(repr(part.replay_fraction)) * whole:
            warnings.append(
                f"source {part.name!r}: replay_fraction {part.replay_fraction:g} of {whole} tokens is less than the "
                f"first row's {tokens[chosen[0]]}; one row is used"
            )
    return chosen


def _without_replay(part: Part) -> Part:
    return Part(part.name, part.fraction, part.max_rows)


def _check_columns(sources: Mapping[str, Dataset]) -> None:
    """Columns of one name must have one type in all sources, and ours must be free."""
    known: dict[str, tuple[str, Any]] = {}
    clashes: dict[str, tuple[str, str]] = {}
    for name, rows in sources.items():
        if SOURCE_COLUMN in rows.column_names:
            fix = "Rename it in the data"
            raise DataError(
                "the mixture makes this column itself", where=f"mixture source {name!r}", got=SOURCE_COLUMN, fix=fix
            )
        for column, feature in rows.features.items():
            first, other = known.setdefault(column, (name, feature))
            if feature != other:
                clashes.setdefault(column, (first, name))
    if clashes:
        first, second = next(iter(clashes.values()))
        raise DataError(
            "columns of the sources do not go together",
            where=f"mixture sources {first!r} and {second!r}",
            got=", ".join(clashes),
            allowed="the same type in every source",
            fix="Give all sources one format (chat or text), and rename or convert the named columns",
        )


def _order(used: Sequence[Part], sizes: Mapping[str, int], mixing: str, seed: int) -> list[tuple[int, int]]:
    """(source, place in its used rows) of every row of the epoch."""
    if mixing == "interleave_weighted":
        return interleaved([sizes[part.name] for part in used], [float(part.weight or 0.0) for part in used])
    order = [
        (number, place)
        for number, part in enumerate(used)
        for _ in range(part.repeat)
        for place in range(sizes[part.name])
    ]
    random.Random(f"{seed}/mixture").shuffle(order)
    return order


def _joined(chosen: Mapping[str, tuple[Dataset, list[int]]], order: Sequence[tuple[int, int]]) -> Dataset:
    marked = [rows.add_column(SOURCE_COLUMN, [name] * len(rows)) for name, (rows, _) in chosen.items()]
    starts = list(itertools.accumulate((len(rows) for rows in marked), initial=0))
    places = [indices for _, indices in chosen.values()]
    return concatenate_datasets(marked).select([starts[source] + places[source][place] for source, place in order])
