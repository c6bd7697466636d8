"""Fields of the config classes: what each may hold, which recipe block it is written in, and the check of both.

A posttrain config declares its fields with `option`, which carries meaning and range; the ranges of inherited fields
stand in `upstream_fields.py`. This module imports neither torch nor trl.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from posttrain.errors import ConfigError, nearest
from posttrain.hidden import without_secrets
from posttrain.seam.upstream_fields import ROLLOUT_FIELDS, SET_BY, UPSTREAM_RANGES, Block, Range, upstream_block

__all__ = [
    "UPSTREAM_RANGES",
    "FieldSpec",
    "Range",
    "WithoutSecrets",
    "check_options",
    "check_value",
    "field_specs",
    "literal_choices",
    "option",
]

_META = "posttrain"
_PLAIN = (type(None), bool, int, float, str, list, tuple, dict)


@dataclass(frozen=True)
class FieldSpec:
    """One field of a config class. `set_by` names what decides it where a recipe may not write it."""

    name: str
    annotation: Any
    default: Any
    help: str
    block: Block
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[Any, ...] | None = None
    never: tuple[Any, ...] = ()
    set_by: str | None = None
    upstream: bool = False

    @property
    def allowed(self) -> str:
        """What the field accepts, in words: "float >= 0 and < 1, or null"."""
        if self.choices is not None:
            text = "one of: " + ", ".join(_word(choice) for choice in self.choices)
            kinds = [kind for kind in _members(self.annotation) if kind in (int, float)]
            text += "".join(f", or {_type_name(kind)}{self._limits}" for kind in kinds)
        else:
            text = _type_name(self.annotation) + self._limits
        nullable = type(None) in _members(self.annotation) and None not in self.never
        return text + (", or null" if nullable else "")

    @property
    def _limits(self) -> str:
        signs = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        parts = [f"{sign} {limit}" for sign, limit in signs if limit is not None]
        parts += [f"not {value}" for value in self.never if value is not None]
        return (" " + " and ".join(parts)) if parts else ""


def option(
    default: Any,
    *,
    help: str,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[Any, ...] | list[Any] | None = None,
    block: Block | None = None,
) -> Any:
    """Dataclass field with its meaning and range; the recipe loader and `check_options` read both.

    Args:
        default: the default; a list or dict is copied for each instance.
        help: one line, with the unit or range in words.
        ge, gt, le, lt: limits of a number, or of each number in a list.
        choices: the accepted names; not needed where the annotation is a `Literal`.
        block: recipe block the field is written in. None = "method", or for a redeclared upstream field the block
            it already had.

    Returns:
        A `dataclasses.field`.
    """
    meta = {
        "help": help,
        _META: {"range": Range(ge, gt, le, lt, tuple(choices) if choices is not None else None), "block": block},
    }
    if isinstance(default, (list, dict, set)):
        return field(default_factory=lambda: type(default)(default), metadata=meta)
    return field(default=default, metadata=meta)


@functools.cache
def _field_specs(config_class: Any) -> types.MappingProxyType[str, FieldSpec]:
    hints = typing.get_type_hints(config_class)
    specs = {
        item.name: _spec(item, hints[item.name], config_class)
        for item in dataclasses.fields(config_class)
        if item.init
    }
    return types.MappingProxyType(specs)


def field_specs(config_class: type) -> dict[str, FieldSpec]:
    """Every field a config class accepts, by name, with block, meaning and range.

    Args:
        config_class: a dataclass; fields declared in modules of trl or transformers count as upstream.

    Returns:
        A new dict in declaration order.
    """
    hashable: Any = config_class
    return dict(_field_specs(hashable))


def _spec(item: dataclasses.Field, annotation: Any, config_class: type) -> FieldSpec:
    owner = _upstream_owner(config_class, item.name)
    own = item.metadata.get(_META, {})
    limits = Range()
    if owner is not None:
        limits = _upstream_range(config_class, item, annotation)
    mine: Range = own.get("range", Range())
    merged = {
        f.name: getattr(mine, f.name) if getattr(mine, f.name) not in (None, ()) else getattr(limits, f.name)
        for f in dataclasses.fields(Range)
    }
    if merged["choices"] is None:
        merged["choices"] = literal_choices(annotation)
    default = item.default if item.default is not dataclasses.MISSING else None
    if item.default_factory is not dataclasses.MISSING:
        default = item.default_factory()
    block = own.get("block") or (upstream_block(item.name) if owner or item.name in ROLLOUT_FIELDS else "method")
    return FieldSpec(
        name=item.name,
        annotation=annotation,
        default=default,
        help=" ".join(str(item.metadata.get("help", "")).split()),
        block=block,
        set_by=_set_by(config_class, item.name, is_upstream=owner is not None),
        upstream=owner is not None,
        **merged,
    )


def _set_by(config_class: type, name: str, *, is_upstream: bool) -> str | None:
    keys = [f"{base.__name__}.{name}" for base in config_class.__mro__]
    return next((SET_BY[key] for key in [*keys, *([name] if is_upstream else [])] if key in SET_BY), None)


def _upstream_owner(config_class: type, name: str) -> type | None:
    """The most derived trl or transformers class that declares the field."""
    for base in config_class.__mro__:
        if base.__module__.split(".")[0] in ("trl", "transformers") and name in base.__dict__.get(
            "__annotations__", {}
        ):
            return base
    return None


def _upstream_range(config_class: type, item: dataclasses.Field, annotation: Any) -> Range:
    for base in config_class.__mro__:
        if f"{base.__name__}.{item.name}" in UPSTREAM_RANGES:
            return UPSTREAM_RANGES[f"{base.__name__}.{item.name}"]
    if item.name in UPSTREAM_RANGES:
        return UPSTREAM_RANGES[item.name]
    names = [str(member.value) for kind in _members(annotation) if _is_enum(kind) for member in kind]
    names = names or [str(choice) for choice in item.metadata.get("choices") or ()]
    return Range(choices=tuple(names) or None)


class WithoutSecrets:
    """Arguments that tell no secret: loggers get them from `to_dict`, training_args.bin is written of `shown`."""

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, with "<hidden>" for secrets."""
        return without_secrets(super().to_dict())  # type: ignore[misc]

    def shown(self) -> Self:
        """A copy in which secrets are "<hidden>"."""
        found = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, str | int | float | dict | list):
                # Past checks of assignments: this copy is written, not used.
                found.__dict__[name] = without_secrets(value, name=name)
        return found


def check_options(config: Any) -> None:
    """Check type, range and choices of every field of a config instance.

    Call it at the head of `__post_init__`, before the parent's: upstream rewrites values there.

    Raises:
        ConfigError: for the first field that does not hold what it may.
    """
    config_class: Any = type(config)
    for spec in _field_specs(config_class).values():
        check_value(spec, getattr(config, spec.name), where=f"{type(config).__name__}.{spec.name}")


def check_value(spec: FieldSpec, value: Any, *, where: str) -> Any:
    """Check one value against a field's annotation, choices and range.

    Args:
        spec: the field.
        value: the value as given.
        where: prefix of the error message, the field path.

    Returns:
        The value; a list becomes a tuple where the annotation is a tuple.

    Raises:
        ConfigError: if the value does not fit.
    """
    if spec.upstream and not isinstance(value, _PLAIN):
        return value  # an object that upstream built or accepts itself, e.g. an AcceleratorConfig
    value = _typed(spec, value, where)
    if value is None:
        if None in spec.never:
            raise _null(spec, where)
        return value
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    for entry in items:
        _check_entry(spec, entry, value, where)
    return value


def _typed(spec: FieldSpec, value: Any, where: str) -> Any:
    if isinstance(value, list) and any(get_origin(kind) is tuple for kind in _members(spec.annotation)):
        value = tuple(value)
    try:
        _adapter(spec.annotation).validate_python(value, strict=True)
    except ValidationError as problem:
        if value is None:
            raise _null(spec, where) from None
        first = problem.errors()[0]
        detail = "wrong type" if first["type"] != "literal_error" else "unknown name"
        raise ConfigError(detail, where=where, got=value, allowed=spec.allowed, fix=_type_hint(spec, value)) from None
    return value


def _null(spec: FieldSpec, where: str) -> ConfigError:
    fix = "Remove the line to get the default"
    return ConfigError("null is not a value of this field", where=where, allowed=spec.allowed, fix=fix)


def _check_entry(spec: FieldSpec, entry: Any, value: Any, where: str) -> None:
    if isinstance(entry, enum.Enum):
        entry = entry.value
    number = isinstance(entry, (int, float)) and not isinstance(entry, bool)
    numeric_too = any(kind in (int, float) for kind in _members(spec.annotation))
    if spec.choices is not None and not (number and numeric_too) and not _is_choice(entry, spec.choices):
        raise ConfigError(
            "unknown name", where=where, got=value, allowed=spec.allowed, fix=_nearest(entry, spec.choices)
        )
    if not number:
        return
    # An entry of a list may be infinite: a range that is open on one side.
    if isinstance(entry, float) and (math.isnan(entry) or (math.isinf(entry) and entry is value)):
        raise ConfigError("not a finite number", where=where, got=value, allowed=spec.allowed)
    outside = (
        (spec.ge is not None and entry < spec.ge)
        or (spec.gt is not None and entry <= spec.gt)
        or (spec.le is not None and entry > spec.le)
        or (spec.lt is not None and entry >= spec.lt)
        or entry in spec.never
    )
    if outside:
        raise ConfigError("out of range", where=where, got=value, allowed=spec.allowed)


def _is_choice(entry: Any, choices: tuple[Any, ...]) -> bool:
    return any(type(entry) is type(choice) and entry == choice for choice in choices)


def _type_hint(spec: FieldSpec, value: Any) -> str | None:
    """What to write instead, for the usual slips."""
    kinds = _members(spec.annotation)
    if isinstance(value, str):
        if bool in kinds and value.lower() in ("yes", "no", "on", "off", "true", "false"):
            return f"Write {'true' if value.lower() in ('yes', 'on', 'true') else 'false'} without quotes"
        if (int in kinds or float in kinds) and _is_number(value):
            return "Remove the quotes: a quoted number is a text"
        return _nearest(value, spec.choices or ())
    if isinstance(value, float) and value.is_integer() and int in kinds:
        return f"Write {int(value)}"
    if isinstance(value, (int, float)) and str in kinds:
        return "Put it in quotes if a text is meant"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _nearest(entry: Any, choices: tuple[Any, ...]) -> str | None:
    return nearest(entry, [str(choice) for choice in choices])


@functools.cache
def _adapter(annotation: Any) -> Any:
    return TypeAdapter(annotation)


def _members(annotation: Any) -> tuple[Any, ...]:
    """Alternatives of a union; an annotation that is no union is its own only alternative."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for arg in get_args(annotation) for member in _members(arg))
    return (annotation,)


def literal_choices(annotation: Any) -> tuple[Any, ...] | None:
    """The values of an annotation that is a `Literal` (or null); None for any other."""
    members = [kind for kind in _members(annotation) if kind is not type(None)]
    if members and all(get_origin(kind) is Literal for kind in members):
        return tuple(value for kind in members for value in get_args(kind))
    return None


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) or "''"


def _type_name(annotation: Any) -> str:
    names = []
    for kind in _members(annotation):
        if kind is type(None) or _is_enum(kind):
            continue
        origin, args = get_origin(kind), get_args(kind)
        if origin is Literal:
            names.append("one of: " + ", ".join(_word(value) for value in args))
        elif origin is list:
            names.append("list of " + ("names" if _is_enum(args[0]) else _type_name(args[0])))
        elif origin is tuple:
            names.append("list of " + ", ".join(_type_name(arg) for arg in args))
        elif kind is dict or origin is dict:
            names.append("mapping")
        else:
            names.append({bool: "true or false", str: "text"}.get(kind, getattr(kind, "__name__", str(kind))))
    return " or ".join(dict.fromkeys(names))
