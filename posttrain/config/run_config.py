"""The blocks of a recipe as strict models: every key, its type, default, range and meaning.

The blocks method, rollout and trainer also take the fields of the method's config class. Those are checked against
`posttrain.seam.arguments.field_specs`; here they read as attributes, with the class's default where none was written.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PrivateAttr, StringConstraints

from posttrain.config.block import Block, Count, Day, Name, OpenBlock, Seed, Slot
from posttrain.config.reward_entry import RewardEntry, distinct, named
from posttrain.config.source import Key, SourceMap

if TYPE_CHECKING:
    from posttrain.config.steps import StageStep

BLOCKS = ("method", "model", "data", "rollout", "trainer", "eval", "hub", "job")


class MethodBlock(OpenBlock):
    """Which method, and its own fields."""

    name: Name = Field(description="key of the method; `posttrain methods` lists them")


Whole = Annotated[int, Field(ge=0)]


class TinyModel(Block):
    """A small causal language model made from its configuration, with tokenizer and chat template."""

    architecture: Literal["llama", "qwen2", "qwen3"] = Field(default="llama", description="transformers architecture")
    hidden_size: Count = Field(default=64, description="width of the residual stream")
    num_layers: Count = Field(default=2, description="transformer blocks")
    num_heads: Count = Field(default=4, description="attention heads; divides hidden_size")
    intermediate_size: Count = Field(default=256, description="width of the feed-forward layer")
    max_position_embeddings: Count = Field(default=512, description="most tokens of a sequence")
    seed: Seed = Field(default=0, description="seed of the weights")


class LoraBlock(Block):
    """Low-rank adapters."""

    rank: Count = Field(default=16, description="rank of the update")
    alpha: Annotated[float, Field(gt=0)] = Field(
        default=32, description="scale; the update is multiplied by alpha / rank"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="dropout on the adapter's input")
    targets: Literal["all-linear"] | Annotated[list[Name], Field(min_length=1)] = Field(
        default="all-linear", description="module names, or all-linear"
    )
    merge_on_save: bool = Field(default=False, description="save the merged model beside the adapter at the end")


class ConfigOverrides(Block):
    """Changes to the model's own configuration."""

    rope_theta: Annotated[float, Field(gt=0)] | None = Field(default=None, description="base of the rotary embedding")
    max_position_embeddings: Count | None = Field(default=None, description="most tokens of a sequence")


class ModelBlock(Block):
    """Where the model comes from and how it is held. Exactly one of path, tiny, package."""

    path: Name | None = Field(default=None, description="local folder or Hub id")
    tiny: TinyModel | None = Field(default=None, description="model made from its configuration")
    package: Literal["smollm2-135m-instruct"] | None = Field(
        default=None, description="model shipped in a Python package"
    )
    revision: Name | None = Field(default=None, description="branch, tag or commit of a Hub model")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] | None = Field(
        default=None, description="type of the weights; null = chosen by device and stated in the run report"
    )
    attn_implementation: (
        Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] | None
    ) = Field(default=None, description="attention kernel; null = the model's own choice")
    template_date: Day = Field(
        default=None, description="date, or date and time, that a chat template reads for the clock: 2026-01-31"
    )
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model")
    new_head: bool = Field(default=False, description="start with a new output layer where the files have none")
    unused_weights: bool = Field(default=False, description="let tensors that the model does not have lie idle")
    config_overrides: ConfigOverrides | None = Field(default=None, description="changes to the model's configuration")
    lora: LoraBlock | None = Field(default=None, description="train low-rank adapters instead of all weights")
    load_in_4bit: bool = Field(
        default=False, description="hold the frozen weights in 4 bits (QLoRA); needs CUDA and lora"
    )


Column = Literal[
    "prompt", "answer", "solution", "group", "task", "entry",
    "paraphrased_prompts", "paraphrases", "perturbed", "alternate",
]  # fmt: skip


class DataSource(Block):
    """Rows from one place. Exactly one of task, reasoning_gym, path."""

    task: Name | None = Field(default=None, description="packaged task")
    reasoning_gym: Name | None = Field(default=None, description="task of the package reasoning-gym")
    path: Name | None = Field(default=None, description="Hub data set, local file or folder")
    size: Count | None = Field(default=None, description="number of generated rows (task, reasoning_gym)")
    seed: Seed | None = Field(default=None, description="seed of the generated rows (task, reasoning_gym); null = 0")
    options: dict[str, Any] | None = Field(default=None, description="options of the generator (task, reasoning_gym)")
    name: Name | None = Field(default=None, description="configuration of a Hub data set (path)")
    split: Name | None = Field(default=None, description="split (path); null = train")
    revision: Name | None = Field(default=None, description="branch, tag or commit of a Hub data set (path)")
    columns: dict[Column, Name] | None = Field(default=None, description="our column -> column of the data set (path)")
    limit: Count | None = Field(default=None, description="use only the first rows (path)")
    answer_after: Name | None = Field(
        default=None,
        description="keep of an answer what follows the last line beginning with this, such as '####' (path); null = "
        "all of it, but for GSM8K's form",
    )
    format: Literal["text", "chat"] | None = Field(
        default=None, description="text: prompts are plain text, no chat template"
    )


class MixtureEntry(DataSource):
    """One source of a mixture, and how much of it; `posttrain/data/mixture.py` says what the numbers mean."""

    name: Name = Field(description="name of the source")
    role: Literal["specialized", "general"] | None = Field(
        default=None, description="what presets of stages take the source for"
    )
    configuration: Name | None = Field(default=None, description="configuration of a Hub data set (path)")
    fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0, description="part of the source's rows that there are; 0 = leave it out"
    )
    max_rows: Count | None = Field(default=None, description="no more than this many of them")
    replay_fraction: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="part of those that this stage repeats; null = all, 0 = leave it out"
    )
    replay_measure: Literal["rows", "tokens"] | None = Field(
        default=None, description="what replay_fraction counts; null = rows"
    )
    repeat: Count | None = Field(
        default=None, description="times each row comes in an epoch (concat_shuffle); null = 1"
    )
    weight: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="share of the rows of an epoch (interleave_weighted)", allow_inf_nan=False
    )


class TrainSource(DataSource):
    """Rows to train on: from one place, or a mixture of several sources."""

    mixture: Annotated[list[MixtureEntry], Field(min_length=1)] | None = Field(
        default=None, description="several sources"
    )
    streaming: bool = Field(
        default=False,
        description="read the sources of the mixture, files or Hub data sets, while training goes on, each in its own "
        "order; for methods that draw by group (data.train)",
    )
    mixing: Literal["concat_shuffle", "interleave_weighted"] | None = Field(
        default=None, description="how the sources of a mixture come together; null = concat_shuffle"
    )
    seed: Seed | None = Field(
        default=None, description="seed of the generated rows, null = 0; of a mixture's random orders, null = 42"
    )


class TaskSource(DataSource):
    """Rows of a named task that a run is evaluated on beside its own rows."""

    verifier: Name | None = Field(
        default=None, description="reward that gives the verdict on this task; null = that of the evaluation"
    )


TaskName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class DataBlock(Block):
    """Prompts to train on and to evaluate on."""

    train: TrainSource = Field(description="rows to train on")
    validation: TrainSource | None = Field(default=None, description="held-out rows that training measures on")
    retain: TrainSource | None = Field(default=None, description="rows that unlearning is to keep; train is forgotten")
    eval: DataSource | None = Field(default=None, description="rows to evaluate on; null = no evaluation")
    eval_tasks: dict[TaskName, TaskSource] | None = Field(
        default=None, description="further tasks by name, evaluated before and after training with the eval block"
    )
    probes: dict[TaskName, DataSource] | None = Field(
        default=None,
        description="rows by name whose answers' log-probabilities are measured: by eval.probe_every_steps "
        "in training, and by eval --suite unlearning (forget, retain, holdout, real_authors, world_facts)",
    )
    system_prompt: str | None = Field(default=None, description="system message put before every prompt")
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="variables of the chat template; those of rollout or trainer come before them"
    )
    special_tokens_in_text: Literal["text", "token"] = Field(
        default="text", description="what a control token is that the data spells, as <|im_end|> in a question"
    )
    max_prompt_length: Count = Field(default=512, description="most tokens of a prompt after the chat template")
    overlong_prompts: Literal["error", "drop"] = Field(default="error", description="what happens to longer prompts")
    order: Slot = Field(default=None, description="order of the training rows; null = shuffled anew every epoch")
    max_empty_solution_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="most rows without a demonstration that a method using demonstrations accepts"
    )


class RolloutBlock(OpenBlock):
    """How completions are sampled and scored; policy methods only."""

    engine: Literal["hf", "vllm"] = Field(default="hf", description="what generates: transformers, or vLLM")
    mode: Literal["colocate", "server"] | None = Field(default=None, description="where vLLM runs; null = colocate")
    rewards: Annotated[
        list[Annotated[RewardEntry, BeforeValidator(named)]], Field(min_length=1), AfterValidator(distinct)
    ] = Field(description="reward functions; their weighted sum is the reward")
    verifier: Name | None = Field(default=None, description="reward whose value is the verdict; null = the first")
    reward_workers: Annotated[int, Field(ge=0)] = Field(
        default=2, description="processes that score, for each training process; 0 = inside it, without limits"
    )
    reward_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        default=30.0,
        description="most time of one call of a reward, that is a batch for a function of your own; then its "
        "process is replaced",
        allow_inf_nan=False,
    )
    reward_memory_bytes: Annotated[int, Field(ge=2**28)] | None = Field(
        default=4 * 2**30, description="address space of a reward process; null = not limited"
    )
    reward_network: bool = Field(default=False, description="let rewards open connections")
    reward_environment: list[Name] = Field(
        default_factory=list, description="environment variables that rewards get besides harmless ones such as PATH"
    )
    reward_processes: Whole = Field(default=0, description="programs that a reward process may run at one time")
    prompt_shares: Slot = Field(default=None, description="what changes the shares of the prompts' groups in the run")


class TrainerBlock(OpenBlock):
    """Optimisation, saving, logging."""

    output_dir: Name | None = Field(default=None, description="folder of the run; null = runs/<name of the recipe>")
    resume: Name = Field(default="auto", description="auto, never, or the path of a checkpoint")
    optimizer: Slot = Field(default=None, description="optimizer of a paper; those of transformers: trainer.optim")
    schedule: Slot = Field(
        default=None, description="learning-rate schedule of a paper; those of transformers: trainer.lr_scheduler_type"
    )
    averaging: Slot = Field(default=None, description="average of the weights in the course of training")


def _enough_memory(value: int) -> int:
    if 0 < value < 2**28:
        raise ValueError("at least 268435456, or 0")
    return value


# Of both blocks; in the eval block null stands for what the rollout block says.
_LIMITS = ("workers", "timeout_seconds", "memory_bytes", "network", "environment", "processes")
REWARD_LIMITS = tuple(f"reward_{name}" for name in _LIMITS)


class EvalBlock(Block):
    """Evaluation by generation, verdict only."""

    num_prompts: Count | None = Field(
        default=128, description="prompts evaluated, drawn from data.eval with the seed; null = all"
    )
    num_generations: Count = Field(default=1, description="completions per prompt")
    temperature: Annotated[float, Field(ge=0)] = Field(default=0.0, description="0 = greedy", allow_inf_nan=False)
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="nucleus of the sampling")
    max_new_tokens: Count | None = Field(default=None, description="null = rollout.max_completion_length")
    batch_size: Count = Field(default=32, description="completions generated at once")
    seed: Seed = Field(default=0, description="seed of the choice of prompts and of sampling")
    at_start: bool = Field(default=True, description="evaluate before the first step")
    every_steps: Count | None = Field(
        default=None, description="evaluate every so many optimizer steps; null = only at the end"
    )
    probe_every_steps: Count | None = Field(
        default=None, description="measure data.probes before training, every so many steps and after; null = never"
    )
    time_budget_seconds: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="stop after this time and mark the result as partial", allow_inf_nan=False
    )
    verifier: Name | None = Field(
        default=None, description="reward that gives the verdict; null = that of the rollout block"
    )
    reward_workers: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="as in the rollout block, for the verifier; null = that of the rollout block, else 2"
    )
    reward_timeout_seconds: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="likewise; null = that of the rollout block, else 30", allow_inf_nan=False
    )
    reward_memory_bytes: Annotated[int, Field(ge=0), AfterValidator(_enough_memory)] | None = Field(
        default=None, description="likewise; 0 = not limited, null = that of the rollout block, else 4 GiB"
    )
    reward_network: bool | None = Field(
        default=None, description="likewise; null = that of the rollout block, else false"
    )
    reward_environment: list[Name] | None = Field(
        default=None, description="likewise; null = that of the rollout block, else none"
    )
    reward_processes: Whole | None = Field(
        default=None, description="likewise; null = that of the rollout block, else 0"
    )

    def settings(self) -> dict[str, Any]:
        """The keys that `evaluation.EvalSettings` knows, that is all but the verifier, its limits and the probes."""
        return self.model_dump(exclude={"verifier", "probe_every_steps", *REWARD_LIMITS})


class HubBlock(Block):
    """Publishing on the Hub."""

    push: bool = Field(default=False, description="push the model")
    repo_id: Name | None = Field(default=None, description="repository, owner/name")
    private: bool = Field(default=True, description="create the repository private")
    strategy: Literal["end", "every_save"] = Field(default="end", description="when to push")
    revision: Name | None = Field(default=None, description="branch to push to; null = main")


class StageBlock(Block):
    """One stage of a plan: its blocks replace the recipe's blocks of the same name as a whole."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = Field(
        description="name of the stage and of its folder: letters, digits, _ . -"
    )
    start_from: Name | None = Field(
        default=None, description="earlier stage whose model this one starts from; null = model block"
    )
    reference_from: Name | None = Field(
        default=None,
        description="stage whose model the divergence is measured from, or model; null = the one it starts from",
    )
    lineage: dict[str, Any] | None = Field(default=None, description="what a preset tells about the stage")
    method: Any = None
    model: Any = None
    data: Any = None
    rollout: Any = None
    trainer: Any = None
    eval: Any = None
    hub: Any = None
    job: Any = None
    _added: dict[str, StageStep] = PrivateAttr(default_factory=dict)

    @property
    def added(self) -> dict[str, StageStep]:
        """Further keys of the stage -> the steps that papers declare for them."""
        return self._added


class RunConfig(Block):
    """A recipe, checked as far as it can be without data, tokenizer or device.

    `source` tells where each value was written; `values` is the recipe as plain dicts and lists.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    method: MethodBlock
    model: ModelBlock
    data: DataBlock
    rollout: RolloutBlock | None = None
    trainer: TrainerBlock = Field(default_factory=TrainerBlock)
    eval: EvalBlock | None = None
    hub: HubBlock = Field(default_factory=HubBlock)
    job: None = None
    stages: list[StageBlock] | None = None

    _source: SourceMap = PrivateAttr(default_factory=lambda: SourceMap("recipe"))
    _values: dict[str, Any] = PrivateAttr(default_factory=dict)
    _runs: list[tuple[str, str | None, RunConfig]] = PrivateAttr(default_factory=list)
    _stage: StageBlock | None = PrivateAttr(default=None)
    _slots: dict[str, StageStep] = PrivateAttr(default_factory=dict)

    @property
    def stage(self) -> StageBlock | None:
        """The stage that this run is; None for a recipe without stages."""
        return self._stage

    @property
    def slots(self) -> dict[str, StageStep]:
        """Slot, as "trainer.optimizer" -> the step of the paper that the recipe names there."""
        return self._slots

    @property
    def source(self) -> SourceMap:
        """Where each value was written."""
        return self._source

    @property
    def values(self) -> dict[str, Any]:
        """The recipe as plain dicts and lists, overrides and variables filled in; a copy."""
        return copy.deepcopy(self._values)

    def where(self, *key: str | int) -> str:
        """Place and dotted path of a key, the prefix of an error message."""
        path: Key = key
        return self._source.where(path)
