from __future__ import annotations
from dataclasses import dataclass
import torch
from posttrain.losses.reductions import LossOutput
@dataclass(frozen=True)
class UPGEConfig:
    reference_policy: str = "rollout"
    advantage_estimator: str = "group_norm"
    advantage_group: str = "on_policy"
    stabilization_mask: str = "ppo_clip"
    is_truncation: tuple|None = None
    epsilon_low: float = .2
    epsilon_high: float = .2
    epsilon_dual: float|None = None
    shaping: str|None = None
    shaping_gamma: float = .1
    loss_aggregation: str = "token_mean"
    advantage_eps: float = 1e-6
UPGE_PRESETS = {"dr_grpo": UPGEConfig(advantage_estimator="group_mean", loss_aggregation="seq_mean_token_sum_norm"), "grpo": UPGEConfig(loss_aggregation="seq_mean_token_mean"),"dapo": UPGEConfig(epsilon_high=.28), "luffy_offline": UPGEConfig(reference_policy="one", stabilization_mask="none", shaping="p_over_p_plus_gamma", advantage_group="all")}
def group_advantages(rewards, num_generations, *, config):
    g = rewards.view(-1, num_generations)
    m = g.nanmean(1, keepdim=True); a = g-m
    if config.advantage_estimator=="group_norm":
        a = a/(g.std(1,keepdim=True)+config.advantage_eps)
    return a.nan_to_num(0).reshape(-1)
def upge_loss(logps, old, adv, mask, *, config):
    a = adv if adv.dim()==2 else adv.unsqueeze(1)
    if config.reference_policy=="one":
        p=logps.detach().exp(); w=a*p*.1/(p+.1)**2
    else:
        r=(logps-old).exp().detach(); w=a*r
        w=torch.where(((a>0)&(r>1+config.epsilon_high))|((a<0)&(r<1-config.epsilon_low)),0.,w)
    return LossOutput(-(w*mask)*logps, config.loss_aggregation, {})
