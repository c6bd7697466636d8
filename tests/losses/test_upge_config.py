"""Which mixes of the four parts are accepted, refused or warned about; and what the presets are."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.losses.reductions import AGGREGATIONS
from posttrain.losses.upge import UPGE_PRESETS, UPGEConfig, group_advantages, upge_weights

REFERENCES = ("current", "rollout", "one", "sequence_geometric")
ESTIMATORS = ("one", "sign", "group_norm", "group_mean", "rloo", "remax", "external")
MASKS = ("none", "ppo_clip", "sequence_clip", "dual_clip")
TRUNCATIONS = (None, (0.0, 1.28), (0.3, 0.7))


def meaningless(reference, estimator, group, mask, truncation, dual):
    """Start of the refusal that a mix deserves, or None; written from the documentation."""
    if (mask == "dual_clip") != (dual is not None):
        return "epsilon_dual: the dual_clip mask needs this bound, and nothing else uses it"
    if truncation is not None and reference == "current":
        return "is_truncation: the reference is the current policy, so the ratio is always 1"
    if truncation == (0.0, 1.28) and reference == "one":
        return "is_truncation: clamps nothing"
    if group == "all" and estimator in ("one", "sign", "remax", "external"):
        return f"advantage_group: advantage_estimator {estimator} has no group mean"
    return None


def test_every_combination_gives_finite_weights_or_is_refused_with_the_reason():
    logps = torch.tensor([[-0.1, -2.0, -60.0], [-0.5, -1.0, float("nan")], [-1.0, -1.0, -1.0], [-9.0, -0.2, -3.0]])
    old = torch.tensor([[-0.1, -90.0, -0.1], [-0.5, -0.8, 0.0], [-2.0, -2.0, -2.0], [-0.1, -7.0, float("inf")]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0], [1, 1, 0]])
    rewards = torch.tensor([1.0, 0.0, float("nan"), 0.5])
    refused = accepted = 0
    choices = (REFERENCES, ESTIMATORS, ("on_policy", "all"), MASKS, TRUNCATIONS, (None, 3.0))
    for parts in itertools.product(*choices):
        reference, estimator, group, stabilization_mask, truncation, dual = parts
        reason = meaningless(*parts)
        for shaping, aggregation in itertools.product((None, "p_over_p_plus_gamma"), AGGREGATIONS):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    config = UPGEConfig(
                        reference_policy=reference,
                        advantage_estimator=estimator,
                        advantage_group=group,
                        stabilization_mask=stabilization_mask,
                        is_truncation=truncation,
                        epsilon_dual=dual,
                        shaping=shaping,
                        loss_aggregation=aggregation,
                    )
            except ConfigError as error:
                assert reason is not None and str(error).startswith(reason), (parts, str(error))
                refused += 1
                continue
            assert reason is None, parts
            accepted += 1
            if aggregation == "token_mean":  # the weights do not depend on the aggregation
                greedy = torch.full((4,), 0.5) if estimator == "remax" else None
                advantages = group_advantages(rewards, 4, config=config, greedy_rewards=greedy)
                weights = upge_weights(logps, old, advantages, mask, config=config)
                assert torch.isfinite(weights).all(), config
                assert (weights[mask == 0] == 0).all(), config
    assert refused > 1000 and accepted > 1000 and refused + accepted == 4 * 7 * 2 * 4 * 3 * 2 * 2 * 4


def test_every_pair_of_preset_and_replaced_part_is_accepted_or_refused_by_a_config_error():
    """What a recipe does: a preset and one part of it replaced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for preset, (name, values) in itertools.product(
            UPGE_PRESETS.values(),
            {
                "reference_policy": REFERENCES,
                "advantage_estimator": ESTIMATORS,
                "stabilization_mask": MASKS,
                "is_truncation": TRUNCATIONS,
                "loss_aggregation": AGGREGATIONS,
                "epsilon_high": (0.0, 0.4),
            }.items(),
        ):
            for value in values:
                try:
                    assert getattr(replace(preset, **{name: value}), name) == value
                except ConfigError as error:
                    assert ":" in str(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reference_policy": "old"},
            "reference_policy: unknown choice (got 'old'; allowed: one of: current, rollout",
        ),
        ({"advantage_estimator": "gae"}, "advantage_estimator: unknown choice (got 'gae'; allowed: one of: one, sign"),
        ({"advantage_group": "off"}, "advantage_group: unknown choice (got 'off'; allowed: one of: on_policy, all)"),
        (
            {"stabilization_mask": None},
            "stabilization_mask: unknown choice (got None; allowed: one of: none, ppo_clip",
        ),
        ({"shaping": "log"}, "shaping: unknown choice (got 'log'; allowed: one of: None, p_over_p_plus_gamma)"),
        ({"loss_aggregation": "mean"}, "loss_aggregation: unknown choice (got 'mean'; allowed: one of: token_mean"),
        ({"epsilon_low": -0.1}, "epsilon_low: out of range (got -0.1; allowed: a finite number >= 0)"),
        ({"epsilon_high": float("nan")}, "epsilon_high: out of range (got nan; allowed: a finite number >= 0)"),
        ({"epsilon_high": "0.2"}, "epsilon_high: out of range (got '0.2'; allowed: a finite number >= 0)"),
        ({"epsilon_low": True}, "epsilon_low: out of range (got True; allowed: a finite number >= 0)"),
        ({"advantage_eps": float("inf")}, "advantage_eps: out of range (got inf; allowed: a finite number >= 0)"),
        (
            {"shaping": "p_over_p_plus_gamma", "shaping_gamma": 0},
            "shaping_gamma: out of range (got 0; allowed: a finite number > 0)",
        ),
        (
            {"stabilization_mask": "dual_clip", "epsilon_dual": 1.0},
            "epsilon_dual: out of range (got 1.0; allowed: a number > 1)",
        ),
        ({"stabilization_mask": "dual_clip"}, "epsilon_dual: the dual_clip mask needs this bound"),
        (
            {"epsilon_dual": 3.0},
            "epsilon_dual: the dual_clip mask needs this bound, and nothing else uses it (got '3.0",
        ),
        ({"is_truncation": 1.28}, "is_truncation: needs two numbers (got 1.28; allowed: (low, high))"),
        ({"is_truncation": (0, 1, 2)}, "is_truncation: needs two numbers"),
        ({"is_truncation": (0, "1")}, "is_truncation: needs two numbers"),
        ({"is_truncation": (1.2, 0.8)}, "is_truncation: is an empty range (got (1.2, 0.8); allowed: 0 <= low < high)"),
        ({"is_truncation": (-0.5, 2)}, "is_truncation: is an empty range"),
        ({"is_truncation": (0, float("inf"))}, "is_truncation: clamps nothing"),
        (
            {"reference_policy": "one", "stabilization_mask": "none", "is_truncation": (1.0, 2.0)},
            "is_truncation: with reference one a probability is clamped, and none exceeds 1",
        ),
        (
            {"reference_policy": "current", "is_truncation": (0.0, 2.0)},
            "is_truncation: the reference is the current policy, so the ratio is always 1 and there is nothing",
        ),
        (
            {"advantage_estimator": "sign", "advantage_group": "all"},
            "advantage_group: advantage_estimator sign has no group mean that demonstrations could enter (got 'all'; "
            "allowed: on_policy, or an advantage_estimator out of: group_norm, group_mean, rloo)",
        ),
        (
            {"shaping_gamma": 0.3},
            "shaping_gamma: nothing uses it without shaping (got 0.3). Set shaping or remove it.",
        ),
    ],
)
def test_refusals_name_the_field_the_value_and_the_reason(changes, message):
    with pytest.raises(ConfigError) as caught:
        UPGEConfig(**changes)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("gspo", {"loss_aggregation": "token_mean"}, "the weights are not normalised per sequence"),
        ("gspo", {"loss_aggregation": "seq_mean_token_sum"}, "the weights are not normalised per sequence"),
        ("dft", {"stabilization_mask": "ppo_clip"}, "stabilization_mask ppo_clip with reference_policy one"),
        ("grpo", {"shaping": "p_over_p_plus_gamma"}, "shaping with reference_policy rollout"),
        ("cispo", {"is_truncation": (0.0, 0.9)}, "excludes 1: on-policy tokens are rescaled"),
        ("dapo", {"stabilization_mask": "none"}, "epsilon_low and epsilon_high are not used"),
    ],
)
def test_odd_mixes_warn_at_the_line_that_makes_them(preset, changes, message):
    parts = {**vars(UPGE_PRESETS[preset]), **changes}
    with pytest.warns(UserWarning, match=message) as caught:
        UPGEConfig(**parts)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_presets_are_silent_when_made_again():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for preset in UPGE_PRESETS.values():
            assert UPGEConfig(**vars(preset)) == preset


PRESETS = {  # reference, advantage, group, mask, aggregation
    "sft": ("current", "one", "on_policy", "none", "token_mean"),
    "reinforce": ("current", "sign", "on_policy", "none", "seq_mean_token_mean"),
    "ppo": ("rollout", "external", "on_policy", "ppo_clip", "token_mean"),
    "grpo": ("rollout", "group_norm", "on_policy", "ppo_clip", "seq_mean_token_mean"),
    "dapo": ("rollout", "group_norm", "on_policy", "ppo_clip", "token_mean"),
    "dr_grpo": ("rollout", "group_mean", "on_policy", "ppo_clip", "seq_mean_token_sum_norm"),
    "rloo": ("rollout", "rloo", "on_policy", "none", "seq_mean_token_sum"),
    "cispo": ("rollout", "group_norm", "on_policy", "none", "token_mean"),
    "gspo": ("sequence_geometric", "group_norm", "on_policy", "sequence_clip", "seq_mean_token_mean"),
    "luffy_offline": ("one", "group_norm", "all", "none", "token_mean"),
    "srft_offline": ("one", "group_norm", "all", "none", "token_mean"),
    "dft": ("one", "one", "on_policy", "none", "token_mean"),
}


def test_presets_are_the_papers_table():
    table = {
        name: (c.reference_policy, c.advantage_estimator, c.advantage_group, c.stabilization_mask, c.loss_aggregation)
        for name, c in UPGE_PRESETS.items()
    }
    assert table == PRESETS
    ranges = {name: (c.epsilon_low, c.epsilon_high) for name, c in UPGE_PRESETS.items()}
    assert ranges.pop("dapo") == (0.2, 0.28) and set(ranges.values()) == {(0.2, 0.2)}
    assert {name: c.is_truncation for name, c in UPGE_PRESETS.items() if c.is_truncation} == {"cispo": (0.0, 1.28)}
    shaped = {name: (c.shaping, c.shaping_gamma) for name, c in UPGE_PRESETS.items() if c.shaping}
    assert shaped == {"luffy_offline": ("p_over_p_plus_gamma", 0.1)}
    assert {c.advantage_eps for c in UPGE_PRESETS.values()} == {1e-6}


def test_a_config_is_frozen_and_takes_a_list_from_yaml():
    config = UPGEConfig(stabilization_mask="none", is_truncation=[0, 2])
    assert config.is_truncation == (0.0, 2.0)
    with pytest.raises(FrozenInstanceError):
        config.epsilon_low = 0.3
