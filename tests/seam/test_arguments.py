"""Field specs: where a field belongs, what it may hold, and how a wrong value is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from posttrain.errors import ConfigError
from posttrain.seam.arguments import UPSTREAM_RANGES, check_options, check_value, field_specs, option
from posttrain.seam.upstream_fields import ROLLOUT_FIELDS, SET_BY


@dataclass
class Own:
    """A config without an upstream parent."""

    gate: float = option(0.0, help="share", ge=0, lt=1)
    mode: Literal["a", "b"] | None = option(None, help="mode")
    table: list[float] | None = option(None, help="numbers", ge=0)
    bounds: tuple[float, float] | None = option(None, help="pair")
    names: list[str] = option(["x"], help="names", choices=["x", "y"])
    moved: int = option(1, help="rows", ge=1, block="trainer")

    def __post_init__(self) -> None:
        check_options(self)


def spec(name: str) -> Any:
    return field_specs(Own)[name]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gate": 1.0}, "Own.gate: out of range (got 1.0; allowed: float >= 0 and < 1)."),
        ({"gate": "0.5"}, "Own.gate: wrong type (got '0.5'; allowed: float >= 0 and < 1). Remove the quotes"),
        ({"gate": float("nan")}, "Own.gate: not a finite number (got nan"),
        ({"gate": float("inf")}, "Own.gate: not a finite number (got inf"),
        ({"gate": True}, "Own.gate: wrong type (got True"),
        ({"gate": None}, "Own.gate: null is not a value of this field"),
        ({"mode": "c"}, "Own.mode: unknown name (got 'c'; allowed: one of: a, b, or null)"),
        ({"table": [0.5, -1.0]}, "Own.table: out of range (got [0.5, -1.0]; allowed: list of float >= 0, or null)"),
        ({"table": 0.5}, "Own.table: wrong type (got 0.5"),
        ({"bounds": [1.0]}, "Own.bounds: wrong type (got (1.0,)"),
        ({"names": ["x", "z"]}, "Own.names: unknown name (got ['x', 'z']"),
        ({"moved": 2.0}, "Own.moved: wrong type (got 2.0; allowed: int >= 1). Write 2."),
    ],
)
def test_a_wrong_value_is_told_with_field_value_and_what_is_allowed(values: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        Own(**values)
    assert message in str(caught.value)


def test_right_values_pass_and_lists_become_tuples_where_the_field_is_one():
    Own(gate=0, mode="b", table=[0.0, 2], names=["y"], moved=3)
    assert check_value(spec("bounds"), [0.5, 2], where="x") == (0.5, 2)
    assert check_value(spec("bounds"), [0.5, float("inf")], where="x")[1] == float("inf")


def test_a_mutable_default_is_not_shared():
    first, second = Own(), Own()
    first.names.append("y")
    assert second.names == ["x"] and field_specs(Own)["names"].default == ["x"]


def test_blocks_of_own_fields():
    assert {name: s.block for name, s in field_specs(Own).items() if name in ("gate", "moved")} == {
        "gate": "method",
        "moved": "trainer",
    }


def test_blocks_of_upstream_fields():
    from posttrain.seam.policy.trainer import PolicyConfig

    specs = field_specs(PolicyConfig)
    blocks = {
        name: specs[name].block for name in ("preset", "temperature", "beta", "epsilon", "hub_model_id", "verifier")
    }
    assert blocks == {
        "preset": "method",
        "temperature": "rollout",
        "beta": "trainer",
        "epsilon": "trainer",  # redeclared by us, but still the parent's field
        "hub_model_id": "hub",
        "verifier": "rollout",
    }
    assert specs["epsilon"].default is None and specs["epsilon"].ge == 0.0
    assert specs["use_vllm"].set_by == "rollout.engine"


def test_one_name_with_two_meanings_upstream():
    from trl import GRPOConfig, SFTConfig

    assert field_specs(SFTConfig)["loss_type"].choices == ("nll", "dft")
    assert "dr_grpo" in field_specs(GRPOConfig)["loss_type"].choices


def test_the_tables_name_only_fields_that_exist():
    """A field that upstream renames or removes must leave the tables, or its check would silently end."""
    from posttrain.seam.policy.trainer import PolicyConfig
    from posttrain.seam.supervised.trainer import SupervisedConfig

    known = set(field_specs(PolicyConfig)) | set(field_specs(SupervisedConfig))
    assert {name.split(".")[-1] for name in (*UPSTREAM_RANGES, *SET_BY, *ROLLOUT_FIELDS)} <= known


def test_choices_agree_with_upstream():
    from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.training_args import trainer_log_levels

    assert set(UPSTREAM_RANGES["report_to"].choices) == {"none", "all", *INTEGRATION_TO_CALLBACK}
    assert set(UPSTREAM_RANGES["log_level"].choices) == set(trainer_log_levels)
    assert set(UPSTREAM_RANGES["cache_implementation"].choices) == {*ALL_CACHE_IMPLEMENTATIONS, "paged"}


def test_every_upstream_default_is_accepted():
    from trl import GRPOConfig, SFTConfig

    for config_class in (GRPOConfig, SFTConfig):
        for name, found in field_specs(config_class).items():
            check_value(found, found.default, where=name)


def test_trl_itself_accepts_what_is_refused_here():
    """The reason for the ranges: the day this fails, upstream has begun to check and a range can go."""
    from trl import GRPOConfig

    config = GRPOConfig(
        output_dir="x", use_cpu=True, bf16=False, loss_type="x", epsilon=-1.0, beta="abc", vllm_mode="y"
    )
    assert config.beta == "abc" and config.loss_type == "x"
