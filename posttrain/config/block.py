"""What the blocks of a recipe are made of: strict mappings and the types that many keys share."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints

Name = Annotated[str, StringConstraints(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
# What a paper fills, see `posttrain.registry.SLOTS`: its key as `name`, beside settings of its own.
Slot = dict[str, Any] | None


def _day(text: str | None) -> str | None:
    try:
        datetime.fromisoformat(text or "2000-01-01")
    except ValueError:
        raise ValueError("a date such as 2026-01-31, or with the time 2026-01-31T12:00:00") from None
    return text


Day = Annotated[str | None, AfterValidator(_day)]


class Block(BaseModel):
    """A mapping with fixed keys and strict types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class OpenBlock(Block):
    """A block that also takes fields of the method's config class."""

    model_config = ConfigDict(extra="allow")
    _defaults: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def fields(self) -> dict[str, Any]:
        """The written fields of the method's config class."""
        return dict(self.__pydantic_extra__ or {})

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            extra = object.__getattribute__(self, "__pydantic_extra__") or {}
            if name in extra:
                return extra[name]
            private = object.__getattribute__(self, "__pydantic_private__") or {}
            if name in private.get("_defaults", {}):
                return private["_defaults"][name]
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")
