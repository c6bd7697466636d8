"""The methods posttrain knows: key -> what it is, where its config and trainer live, and where it is supported.

A method that is not listed here does not exist. Entries hold strings only; nothing is imported until it is asked for.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from posttrain.errors import ConfigError

Kind = Literal["policy", "supervised", "adapter", "stages", "offline"]
FEATURES = ("ddp", "zero1", "zero2", "zero3", "fsdp2", "peft", "packing", "vllm", "resume", "multi_node")


@dataclass(frozen=True)
class Paper:
    """Title, arXiv id and year of the paper a method comes from."""

    title: str
    arxiv: str
    year: int


@dataclass(frozen=True)
class Entry:
    """One method. `config` and `trainer` are "module:Name"; `supports` is a subset of `FEATURES`; `reads` says whether
    its training rows are prompts or documents that it makes its own prompts from, `reads_retain` whether it has rows
    to keep beside those to forget, `reads_streams` whether it draws rows group by group, as streams allow.
    """

    key: str
    kind: Kind
    summary: str
    config: str
    trainer: str
    paper: Paper
    supports: frozenset[str] = field(default_factory=frozenset)
    reads: Literal["prompts", "documents"] = "prompts"
    reads_retain: bool = False
    reads_streams: bool = False

    def load_config(self) -> Any:
        """The config class; imports trl and torch."""
        return _load(self.config)

    def load_trainer(self) -> Any:
        """The trainer class; imports trl and torch."""
        return _load(self.trainer)


METHODS: dict[str, Entry] = {
    entry.key: entry
    for entry in (
        Entry(
            key="sft",
            kind="supervised",
            summary="supervised fine-tuning on demonstrations",
            config="posttrain.seam.supervised:SupervisedConfig",
            trainer="posttrain.seam.supervised:SupervisedTrainer",
            paper=Paper("Training language models to follow instructions with human feedback", "2203.02155", 2022),
            supports=frozenset({"ddp", "zero1", "zero2", "zero3", "fsdp2", "peft", "resume"}),
        ),
        Entry(
            key="grpo",
            kind="policy",
            summary="group-relative policy gradient with every preset of the unified estimator",
            config="posttrain.seam.policy:PolicyConfig",
            trainer="posttrain.seam.policy:PolicyTrainer",
            paper=Paper("DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open LMs", "2402.03300", 2024),
            supports=frozenset({"ddp", "zero1", "zero2", "zero3", "fsdp2", "peft", "vllm", "resume"}),
        ),
        Entry(
            key="hpt",
            kind="policy",
            summary="RL where the model solves the prompt, a demonstration where it does not",
            config="posttrain.methods.hpt:HPTConfig",
            trainer="posttrain.methods.hpt:HPTTrainer",
            paper=Paper("Towards a Unified View of Large Language Model Post-Training", "2509.04419", 2025),
            supports=frozenset({"ddp", "zero1", "zero2", "zero3", "fsdp2", "peft", "vllm", "resume"}),
        ),
        Entry(
            key="luffy",
            kind="policy",
            summary="each prompt's demonstration in the group of its rollouts, learnt off-policy",
            config="posttrain.methods.luffy:LUFFYConfig",
            trainer="posttrain.methods.luffy:LUFFYTrainer",
            paper=Paper("Learning to Reason under Off-Policy Guidance", "2504.14945", 2025),
            supports=frozenset({"ddp", "zero1", "zero2", "zero3", "fsdp2", "peft", "vllm", "resume"}),
        ),
        Entry(
            key="srft",
            kind="policy",
            summary="supervised and policy losses in every step, weighted by entropy",
            config="posttrain.methods.srft:SRFTConfig",
            trainer="posttrain.methods.srft:SRFTTrainer",
            paper=Paper(
                "SRFT: A Single-Stage Method with Supervised and Reinforcement Fine-Tuning for Reasoning",
                "2506.19767",
                2025,
            ),
            supports=frozenset({"ddp", "zero1", "zero2", "zero3", "fsdp2", "peft", "vllm", "resume"}),
        ),
        Entry(
            key="sasr",
            kind="policy",
            summary="supervised and GRPO steps in turn, the share of the first following its gradient norm",
            config="posttrain.methods.sasr.trainer:SASRConfig",
            trainer="posttrain.methods.sasr.trainer:SASRTrainer",
            paper=Paper(
                "Step-wise Adaptive Integration of Supervised Fine-tuning and Reinforcement Learning for "
                "Task-Specific LLMs",
                "2505.13026",
                2025,
            ),
            supports=frozenset({"ddp", "zero1", "zero2", "zero3", "fsdp2", "peft", "vllm", "resume"}),
        ),
        Entry(
            key="chord",
            kind="policy",
            summary="supervised and policy losses in every step, the share of the first decaying",
            config="posttrain.methods.chord:CHORDConfig",
            trainer="posttrain.methods.chord:CHORDTrainer",
            paper=Paper(
                "On-Policy RL Meets Off-Policy Experts: Harmonizing Supervised Fine-Tuning and Reinforcement "
                "Learning via Dynamic Weighting",
                "2508.11408",
                2025,
            ),
            supports=frozenset({"ddp", "zero1", "zero2", "zero3", "fsdp2", "peft", "vllm", "resume"}),
        ),
        Entry(
            key="rft_cpt",
            kind="policy",
            summary="tasks one after another by reinforcement or supervised fine-tuning, and what is forgotten",
            config="posttrain.methods.rft_cpt:RFTCPTConfig",
            trainer="posttrain.methods.rft_cpt:RFTCPTTrainer",
            paper=Paper(
                "Reinforcement Fine-Tuning Naturally Mitigates Forgetting in Continual Post-Training",
                "2507.05386",
                2025,
            ),
            supports=frozenset({"ddp", "zero1", "zero2", "zero3", "fsdp2", "peft", "vllm", "resume"}),
        ),
        Entry(
            key="masked_thought",
            kind="supervised",
            summary="supervised fine-tuning with part of the demonstration's input tokens hidden",
            config="posttrain.methods.masked_thought:MaskedThoughtConfig",
            trainer="posttrain.methods.masked_thought:MaskedThoughtTrainer",
            paper=Paper(
                "Masked Thought: Simply Masking Partial Reasoning Steps Can Improve Mathematical Reasoning Learning "
                "of Language Models",
                "2403.02178",
                2024,
            ),
            supports=frozenset({"ddp", "zero1", "zero2", "zero3", "fsdp2", "peft", "packing", "resume"}),
        ),
        Entry(
            key="rmt",
            kind="policy",
            summary="RL on raw text: think, then predict the next token, with a shrinking thinking budget",
            config="posttrain.methods.rmt.config:RMTConfig",
            trainer="posttrain.methods.rmt.trainer:RMTTrainer",
            paper=Paper("Reinforcement Mid-Training", "2509.24375", 2025),
            supports=frozenset({"ddp", "zero1", "zero2", "zero3", "fsdp2", "peft", "vllm", "resume"}),
            reads="documents",
        ),
        Entry(
            key="aioli",
            kind="supervised",
            summary="supervised training in groups whose proportions a controller measures and changes",
            config="posttrain.methods.aioli.config:AioliConfig",
            trainer="posttrain.methods.aioli.trainer:AioliTrainer",
            paper=Paper("Aioli: A Unified Optimization Framework for Language Model Data Mixing", "2411.05735", 2024),
            supports=frozenset({"ddp", "zero1", "zero2", "zero3", "fsdp2", "peft", "packing", "resume"}),
            reads_streams=True,
        ),
        Entry(
            key="unlearning_paths",
            kind="supervised",
            summary="unlearning by gradient ascent, preferences or steering, and how the order of training shapes it",
            config="posttrain.methods.unlearning_paths.config:UnlearnConfig",
            trainer="posttrain.methods.unlearning_paths.trainer:UnlearnTrainer",
            paper=Paper("On the Impossibility of Retrain Equivalence in Machine Unlearning", "2510.16629", 2025),
            supports=frozenset({"ddp", "zero1", "zero2", "zero3", "fsdp2", "peft", "resume"}),
            reads_retain=True,
        ),
        Entry(
            key="dmt",
            kind="stages",
            summary="supervised fine-tuning in two stages, the second repeating part of the first one's rows",
            config="posttrain.seam.supervised:SupervisedConfig",
            trainer="posttrain.seam.supervised:SupervisedTrainer",
            paper=Paper(
                "How Abilities in Large Language Models are Affected by Supervised Fine-tuning Data Composition",
                "2310.05492",
                2023,
            ),
            supports=frozenset({"ddp", "zero1", "zero2", "zero3", "fsdp2", "peft", "resume"}),
        ),
    )
}


def methods_table() -> str:
    """The README's table of methods, in Markdown; a test compares the two."""
    lines = ["| method | what it does | paper | runs with |", "| --- | --- | --- | --- |"]
    for entry in METHODS.values():
        paper = f"[{entry.paper.title} ({entry.paper.year})](https://arxiv.org/abs/{entry.paper.arxiv})"
        features = ", ".join(name for name in FEATURES if name in entry.supports)
        lines.append(f"| [`{entry.key}`](recipes/{entry.key}/README.md) | {entry.summary} | {paper} | {features} |")
    return "\n".join(lines)


def trained() -> dict[str, Entry]:
    """The entries that a recipe can name as its `method`; plans of stages are named under `stages.preset`."""
    return {key: entry for key, entry in METHODS.items() if entry.kind != "stages"}


def get(key: str, *, where: str | None = None) -> Entry:
    """Entry of a method.

    Args:
        key: the method's key, as in `method.name`.
        where: prefix of the error message.

    Raises:
        ConfigError: for an unknown key, with the nearest known one.
    """
    if key in METHODS:
        return METHODS[key]
    close = difflib.get_close_matches(str(key), METHODS, n=1, cutoff=0.4)
    raise ConfigError(
        "unknown method",
        where=where,
        got=key,
        allowed="one of: " + ", ".join(METHODS),
        fix=f"Perhaps you mean {close[0]!r}" if close else "`posttrain methods` lists them",
    )


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(import_module(module), name)
