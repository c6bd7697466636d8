"""Settings of a stage that mixes groups, where they follow from earlier stages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from posttrain.config.block import Block, Name
from posttrain.errors import ConfigError

# find -> setting of the method it decides, file below the folder of the run it is read from; None = it is computed.
_SETTINGS: dict[str, tuple[str, str | None]] = {
    "proportions": ("proportions_from", "mixing.json"),
    "reference": ("reference_model", "model"),
    "grid": ("proportions_from", None),
    "dml": ("proportions_from", None),
    "regmix": ("proportions_from", None),
    "skill_graph": ("skill_graph", None),
}


class MixBlock(Block):
    """What a stage of the method aioli takes from earlier stages."""

    find: Literal["proportions", "reference", "grid", "dml", "regmix", "skill_graph"] = Field(
        description="proportions: those a run ended with; reference: a run's model, for the controller doremi; grid, "
        "dml, regmix: proportions found on several runs; skill_graph: for the controller skillit"
    )
    runs: Annotated[list[Name], Field(min_length=1)] = Field(
        description="stages; for skill_graph any first, whose losses before training count, then one a group, in order"
    )

    @property
    def is_computed(self) -> bool:
        """Whether the stage has to compute a file before it trains."""
        return _SETTINGS[self.find][1] is None

    def setting(self, root: Path, stage: str) -> tuple[str, str]:
        """(setting of the method, path that it is set to). The path tells runs apart, so that a change is noticed."""
        name, file = _SETTINGS[self.find]
        if file is not None:
            return name, str(root / self.runs[0] / file)
        digest = hashlib.sha256("\n".join(self.runs).encode()).hexdigest()[:8]
        return name, str(root / stage / f"{self.find}_{digest}.json")


def mix_findings(block: MixBlock, stage: Any, earlier: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], ConfigError]]:
    """(key below the block, finding): stages that do not exist yet, and settings that would be written twice."""
    for place, name in enumerate(block.runs):
        if name not in earlier:
            yield (
                ("runs", place),
                ConfigError("not the name of an earlier stage", got=name, allowed=", ".join(earlier)),
            )
    setting, file = _SETTINGS[block.find]
    if file is not None and len(block.runs) > 1:
        yield ("runs",), ConfigError("one run is enough", got=block.runs, fix="Name one stage")
    least = {"dml": 3, "regmix": 3, "skill_graph": 3}.get(block.find, 1)
    if len(set(block.runs)) < max(least, len(block.runs)):
        needed = (
            "one before training and one for each of two or more groups" if block.find == "skill_graph" else "runs"
        )
        yield ("runs",), ConfigError(f"{block.find} needs {least} or more different {needed}", got=block.runs)
    if isinstance(stage.method, dict) and setting in stage.method:
        what = f"decides method.{setting}, which the stage gives itself"
        yield (), ConfigError(what, got=block.find, fix="Remove one of them")
