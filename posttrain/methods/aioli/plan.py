"""Every way to choose the proportions of groups, as ordinary stages of the method aioli that are compared.

    stages: {preset: mixing, groups: [a, b, c], draws: 6, variants: [stratified, dml, doremi, aioli]}

All stages start from the recipe's model and have its steps; nothing but the proportions differs. What a variant needs
beforehand comes with it, once: runs with static proportions (`only_<n>`, `draw_<nn>`) for grid, dml, regmix and
skillit; `doremi_search` and `doge_search`, whose mean proportions the variants doremi and doge then keep.

`corners: false` leaves the runs on a group alone out of what grid, dml and regmix are found on: they are far from any
mixture that could be best, and a law that has to fit them fits worse where it matters.

The recipe's method block has the settings of the controller aioli. Further options: `seed` of the draws, `prior` with
`prior_steps` for aioli_prior, and `doremi_step_size`, `doge_step_size`, `skillit_eta`.
Source: arXiv 2411.05735, section 5 and table 2 (the methods compared); which variants are variants is our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from posttrain.errors import ConfigError
from posttrain.methods.aioli.readers import kept_for

NAME = "mixing"
# variant -> method.controller and what else it sets
_AIOLI: dict[str, dict[str, Any]] = {
    "aioli": {},
    "aioli_ema": {"ema": 0.5},
    "aioli_static": {"static_matrix": True},
    "aioli_diagonal": {"diagonal": True},
    "aioli_prior": {},
}
_ON_A_SWEEP = ("grid", "dml", "regmix")
VARIANTS = ("stratified", "natural", *_ON_A_SWEEP, "skillit", "doremi", "doge", *_AIOLI)
_OPTIONS = ("preset", "groups", "draws", "corners", "seed", "variants", "prior", "prior_steps")
_SIZES = ("doremi_step_size", "doge_step_size", "skillit_eta")
# What is not for all variants: other controllers would read the prior, too.
_OWN = ("controller", "prior", "prior_steps")
Stage = dict[str, Any]


def mixing_stages(values: Mapping[str, Any]) -> list[Stage]:
    """The stages of a recipe whose `stages` block names this preset.

    Args:
        values: the recipe as plain dicts, of the method aioli.

    Raises:
        ConfigError: another method, unknown options or variants, no groups, or a prior without its variant.
    """
    block, method = dict(values["stages"]), values.get("method")
    _check(block, method)
    assert isinstance(method, Mapping)
    return _Variants(block, method).stages()


class _Variants:
    def __init__(self, block: Mapping[str, Any], method: Mapping[str, Any]):
        self.block = block
        self.variants = list(block.get("variants", VARIANTS))
        self.base = {key: value for key, value in method.items() if key not in _OWN}
        self.own = {key: value for key, value in method.items() if key in _OWN and key != "controller"}
        self.base["groups"] = list(block["groups"])
        self.sweep_corners = bool(block.get("corners", True))

    def stages(self) -> list[Stage]:
        found = [self.stage("stratified", {"controller": "stratified"})]
        found += self.sweep()
        for variant in self.variants:
            found += self.variant(variant)
        return found

    def stage(self, name: str, method: Mapping[str, Any], mix: Mapping[str, Any] | None = None) -> Stage:
        own = kept_for(str(method["controller"]), {**self.base, **method})
        return {"name": name, "method": own, **({} if mix is None else {"mix": dict(mix)})}

    @property
    def corners(self) -> list[str]:
        return [f"only_{place}" for place in range(len(self.block["groups"]))]

    def sweep(self) -> list[Stage]:
        """Runs with static proportions that some variant is found on."""
        m, wanted = len(self.block["groups"]), set(self.variants)
        found = []
        if "skillit" in wanted or (wanted & set(_ON_A_SWEEP) and self.sweep_corners):
            for place, name in enumerate(self.corners):
                shares = [1.0 if group == place else 0.0 for group in range(m)]
                found.append(self.stage(name, {"controller": "static", "proportions": shares}))
        if wanted & set(_ON_A_SWEEP):
            for name, shares in self.drawn():
                found.append(self.stage(name, {"controller": "static", "proportions": shares}))
        return found

    def drawn(self) -> list[tuple[str, list[float]]]:
        m, seed = len(self.block["groups"]), int(self.block.get("seed", 0))
        found = []
        for place in range(int(self.block.get("draws", 6))):
            shares = np.random.default_rng([seed, place]).dirichlet(np.ones(m)).round(6)
            found.append((f"draw_{place:02d}", (shares / shares.sum()).tolist()))
        return found

    def variant(self, name: str) -> list[Stage]:
        if name == "stratified":
            return []  # it is the first stage of all
        if name == "natural":
            return [self.stage(name, {"controller": "natural"})]
        if name in _ON_A_SWEEP:
            corners = self.corners if self.sweep_corners else []
            runs = ["stratified", *corners, *(draw for draw, _ in self.drawn())]
            return [self.stage(name, {"controller": "static"}, {"find": name, "runs": runs})]
        if name == "skillit":
            runs = ["stratified", *self.corners]
            changed = {"eta": self.block["skillit_eta"]} if "skillit_eta" in self.block else {}
            return [self.stage(name, {"controller": name, **changed}, {"find": "skill_graph", "runs": runs})]
        if name in ("doremi", "doge"):
            size = f"{name}_step_size"
            changed = {"step_size": self.block[size]} if size in self.block else {}
            mix = {"find": "reference", "runs": ["stratified"]} if name == "doremi" else None
            search = self.stage(f"{name}_search", {"controller": name, **changed}, mix)
            again = {"find": "proportions", "runs": [f"{name}_search"]}
            return [search, self.stage(name, {"controller": "static"}, again)]
        changed = {**self.own, **_AIOLI[name], "controller": "aioli"}
        if name == "aioli_prior":
            changed |= {"prior": list(self.block["prior"]), "prior_steps": self.block["prior_steps"]}
        return [self.stage(name, changed)]


def _check(block: Mapping[str, Any], method: Any) -> None:
    if not isinstance(method, Mapping) or method.get("name") != "aioli":
        raise ConfigError("only the method aioli mixes groups", where="method.name", fix="Set method.name: aioli")
    for key in block:
        if key not in (*_OPTIONS, *_SIZES):
            allowed = ", ".join((*_OPTIONS, *_SIZES))
            raise ConfigError("unknown option of the preset mixing", where=f"stages.{key}", got=key, allowed=allowed)
    groups = block.get("groups")
    if not isinstance(groups, list) or len(groups) < 2 or len(set(map(str, groups))) < len(groups):
        allowed = "a list of two or more names"
        raise ConfigError("the groups must be known beforehand", where="stages.groups", got=groups, allowed=allowed)
    variants = block.get("variants", list(VARIANTS))
    unknown = (
        [variant for variant in variants if variant not in VARIANTS] if isinstance(variants, list) else [variants]
    )
    if unknown or not variants or len(set(variants)) < len(variants):
        got = unknown[0] if unknown else variants
        raise ConfigError("not a list of variants", where="stages.variants", got=got, allowed=", ".join(VARIANTS))
    for key, least in (("draws", 0), ("seed", 0), ("prior_steps", 1)):
        value = block.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError("out of range", where=f"stages.{key}", got=value, allowed=f"integer >= {least}")
    if not isinstance(block.get("corners", True), bool):
        raise ConfigError("out of range", where="stages.corners", got=block["corners"], allowed="true or false")
    prior = block.get("prior", [])
    if not isinstance(prior, list) or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in prior):
        allowed = "a list of numbers, one for each group"
        raise ConfigError("these are no proportions", where="stages.prior", got=prior, allowed=allowed)
    for key, variant in (("doremi_step_size", "doremi"), ("doge_step_size", "doge"), ("skillit_eta", "skillit")):
        if key in block and variant not in variants:
            raise ConfigError(f"the variant {variant} is not there to read it", where=f"stages.{key}", got=block[key])
    has_prior = [key for key in ("prior", "prior_steps") if key in block]
    if len(has_prior) != (2 if "aioli_prior" in variants else 0):
        raise ConfigError(
            "the variant aioli_prior and the options prior and prior_steps go together",
            where="stages.prior",
            got=", ".join(has_prior) or None,
        )
