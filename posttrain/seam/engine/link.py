"""vLLM as trl 1.16 builds and feeds it: what it leaves out at the start, and the proof that weights arrive.

trl sends the weights when the number of optimizer steps has changed and takes it on trust that they are in the engine.
Here every synchronisation is followed by a comparison of every tensor, and weights that changed in any other way (a
supervised step between two updates, a loaded checkpoint, a callback) are noticed before the next generation.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from peft import PeftModel
from torch import Tensor
from trl.generation import vllm_generation

from posttrain.rollouts.colocated import close_engine
from posttrain.rollouts.cpu import engine_arguments, is_cpu_engine, prepare_process
from posttrain.rollouts.digests import EngineTensors, Slice, comparable, digest, model_digest, unsent
from posttrain.rollouts.server import EngineError, EngineServer, ServerSettings
from posttrain.seam.engine.one_step_off import GenerationAhead
from posttrain.seam.weights import preserved_base_weights

_logger = logging.getLogger(__name__)

# trl 1.16 sets these for the engine; left there, a second stage of a single process would train as a group of one.
_RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WORKER = "posttrain.rollouts.worker.EngineWorker"


@contextmanager
def engine_settings(args: Any, model: Any) -> Iterator[None]:
    """While the block runs, trl 1.16 builds vLLM, or a client of it, with what it leaves out.

    A colocated engine gets a seed that depends on the run's (trl's is the number of the process alone, so that every
    run samples alike), the worker that tells which weights it holds, and on a CPU what vLLM needs there. In server
    mode rank 0 starts a server, unless the recipe names one, and the client of `posttrain.seam.engine.client` is used.

    Args:
        args: the trainer's. Engines of different processes keep different seeds.
        model: folder or model that is about to be trained.

    Raises:
        EngineError: the server did not start.
    """
    if not args.use_vllm:
        yield
        return
    before = {name: os.environ.get(name) for name in _RENDEZVOUS}
    # Both names are bound only where vLLM is installed.
    names = {name: vars(vllm_generation).get(name) for name in ("LLM", "VLLMClient")}
    dtype = str(getattr(model, "dtype", torch.float32)).removeprefix("torch.")
    server = None
    if args.vllm_mode == "server" and args.process_index == 0:
        server = None if args.vllm_server_base_url else _started(args, model, dtype)
        vllm_generation.VLLMClient = partial(_client, args=args, server=server)
    elif args.vllm_mode == "colocate":
        vllm_generation.LLM = partial(_colocated, names["LLM"], args.seed, dtype)
    try:
        yield
    except BaseException:
        if server is not None:
            server.stop()
        raise
    finally:
        vars(vllm_generation).update({name: value for name, value in names.items() if value is not None})
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def _colocated(build: Callable[..., Any], run_seed: int, dtype: str, **kwargs: Any) -> Any:
    kwargs["seed"] = engine_seed(run_seed, kwargs.get("seed") or 0)
    kwargs["worker_extension_cls"] = WORKER
    kwargs["generation_config"] = "vllm"  # as the server, see ServerSettings
    if is_cpu_engine():
        prepare_process()
        kwargs |= engine_arguments(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, about names that vLLM uses
        return build(**kwargs, use_tqdm_on_load=False)


def engine_seed(run_seed: int, process: int) -> int:
    """Seed of an engine's sampling, another one for each run and each process."""
    return (1_000_003 * run_seed + process) % 2**32


def _started(args: Any, model: Any, dtype: str) -> EngineServer:
    settings = ServerSettings(
        model=model if isinstance(model, str) else model.name_or_path,
        dtype=dtype,
        max_model_length=args.vllm_max_model_length,
        seed=engine_seed(args.seed, 0),
        devices=args.engine_devices,
        gpu_memory_utilization=args.vllm_gpu_memory_utilization,
    )
    return EngineServer(settings, log=Path(args.output_dir) / "_engine.log", is_cpu=is_cpu_engine())


def _client(*, args: Any, server: EngineServer | None, base_url: str, **kwargs: Any) -> Any:
    from posttrain.seam.engine.client import EngineClient, given_token

    return EngineClient(
        base_url=server.url if server is not None else base_url,
        token=server.token if server is not None else given_token(),
        request_timeout=args.engine_timeout_seconds,
        server=server,
        **kwargs,
    )


class EngineLink:
    """Between a policy trainer and its engine: wraps trl's `VLLMGeneration` so that each synchronisation is verified
    and no generation uses old weights.

    Args:
        trainer: its `vllm_generation`, `model`, `accelerator` and `record` are used.
    """

    def __init__(self, trainer: Any):
        self.trainer, self.generation = trainer, trainer.vllm_generation
        self.accelerator = trainer.accelerator
        self.syncs = 0
        self._sent: dict[str, tuple[tuple[int, ...], int]] = {}  # shape, and digest in the engine's precision
        self._synced: int | None = None
        self._told = False
        self._failure: EngineError | None = None
        self._ahead = GenerationAhead(trainer) if trainer.args.one_step_off else None
        self._send: Callable[[], None] = self.generation.sync_weights
        self._walk: Callable[[], Iterator[tuple[str, Tensor]]] = self.generation._iter_named_params
        self._generate: Callable[..., Any] = self.generation.generate
        self._engine: EngineTensors | None = None
        self.generation.sync_weights = self.sync
        self.generation.generate = self.generate
        self.generation._iter_named_params = self._recorded
        # The ends of a completion are the trainer's, whatever the engine reads from the model's folder.
        self.generation.generation_kwargs.setdefault("stop_token_ids", sorted(trainer.eos_token_ids))

    @property
    def holds_engine(self) -> bool:
        """Whether this rank talks to an engine itself; with a server only rank 0 does."""
        return self.generation.mode == "colocate" or self.accelerator.is_main_process

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Completions of the weights as they are now; they are sent first if they changed since the last time.

        Raises:
            EngineError: on every rank, after a checkpoint, if the engine died or did not answer in time.
        """
        if self._anywhere(self._synced != self._weights_now()):
            self.sync()
        training = self.trainer.model.training
        if self.generation.mode == "server" and self.accelerator.is_main_process:
            self.generation.vllm_client.is_training = training
        if self._ahead is not None and training:
            self._ahead.drop_stale()
        completions = self._generate(*args, **kwargs)
        self._stop_after_failure()
        if self._ahead is not None and training:
            self._ahead.start()
        return completions

    def sync(self) -> None:
        """Send every weight and compare what arrived.

        Raises:
            EngineError: on every rank, naming tensors that are not in the engine as they are in the trainer.
        """
        began = time.monotonic()
        self._sent, self._synced = {}, None
        model = self.generation.model
        adapters = isinstance(self.accelerator.unwrap_model(model), PeftModel)
        kept: AbstractContextManager[None] = preserved_base_weights(model) if adapters else nullcontext()
        self._or_all_stop(self._tensors)
        with kept:
            self._send()
        self._stop_after_failure()
        wrong = self._or_all_stop(self.differing) or []
        seen = sorted(set(gather_object(wrong)))
        if seen:
            raise EngineError(
                f"after a synchronisation {len(seen)} tensors of the engine differ from the trainer's",
                where=f"optimizer step {self.trainer.state.global_step}",
                got=", ".join(seen[:5]),
                fix="Nothing was generated with them. Report it with the model's architecture and the version of vLLM",
            )
        if self.generation.mode == "server":
            self._or_all_stop(lambda: self.generation.vllm_client.claim())
        self._synced = self._weights_now()
        self.syncs += 1
        self.trainer.log_metric("rollout/sync_seconds", time.monotonic() - began)

    def _or_all_stop(self, question: Callable[[], Any]) -> Any:
        answer = None
        if self.holds_engine:
            try:
                answer = question()
            except EngineError as error:
                self._failure = error
        self._stop_after_failure()
        return answer

    def _stop_after_failure(self) -> None:
        """Where rank 0's server failed: a checkpoint, then the same error on every rank."""
        if self.generation.mode != "server":
            return
        failure: EngineError | None = None
        if self.accelerator.is_main_process:
            failure = self.generation.vllm_client.take_failure() or self._failure
        step, trainer = self.trainer.state.global_step, self.trainer
        place = Path(trainer.args.output_dir) / f"checkpoint-{step}"
        # Whether it is there is decided once: saving is collective.
        shared, is_there = broadcast_object_list([failure, place.exists()], from_process=0)
        if shared is None:
            return
        saves = trainer.model.training and step > 0 and trainer.args.save_strategy != "no"
        if saves and not is_there:
            trainer._save_checkpoint(trainer.model, None)
        fix = "Run the same command again" + (": it continues from there" if saves else "")
        after = f"; the checkpoint after optimizer step {step} is written" if saves else ""
        raise EngineError(f"{shared.what}{after}", fix=fix)

    def differing(self) -> list[str]:
        """Names of tensors of the engine that are not as they were sent last, or were never sent."""
        engine = self._tensors()
        slices, missing = comparable(engine, {name: shape for name, (shape, _) in self._sent.items()})
        self._tell_once(missing, compared=len(slices))
        found = self._ask("posttrain_digests", [part.question for part in slices])
        pairs = zip(slices, found, strict=True)
        wrong = [_shown(part) for part, value in pairs if value != self._sent[part.source][1]]
        shapes = {name: shape for name, (shape, _) in self._sent.items()}
        return wrong + [f"{name} (never sent)" for name in unsent(engine, shapes)]

    def close(self) -> None:
        """Free the engine; nothing can be generated afterwards."""
        if self.generation.mode == "colocate" and self.generation.llm is not None:
            close_engine(self.generation.llm, keep_group=self.accelerator.num_processes > 1)
            self.generation.llm = None
        elif self.generation.mode == "server" and self.accelerator.is_main_process:
            self.generation.vllm_client.close()

    # ---- what goes over ----

    def _recorded(self) -> Iterator[tuple[str, Tensor]]:
        engine = self._tensors() if self.holds_engine else None
        for name, value in self._walk():
            if engine is not None:
                dtype = engine.dtype(name) or value.dtype
                self._sent[name] = (tuple(value.shape), digest(value.detach().to(dtype)))
            yield name, value

    def _tensors(self) -> EngineTensors:
        if self._engine is None:
            self._engine = EngineTensors.of(self._ask("posttrain_tensors"))
        return self._engine

    def _ask(self, method: str, *args: Any) -> Any:
        if self.generation.mode == "colocate":
            return self.generation.llm.collective_rpc(method, args=args)[0]
        return self.generation.vllm_client.ask(method, *args)

    def _weights_now(self) -> int:
        """Digest of what this rank holds of the model, adapters apart from the base."""
        return model_digest(_local(parameter) for parameter in self.generation.model.parameters())

    def _anywhere(self, flag: bool) -> bool:
        return bool(self.accelerator.gather(torch.tensor([flag], device=self.accelerator.device)).any())

    def _tell_once(self, missing: list[str], *, compared: int) -> None:
        if missing and not self._told and self.accelerator.is_main_process:
            shown = ", ".join(missing[:3])
            _logger.warning(
                f"the engine holds {len(missing)} of {len(missing) + compared} tensors in a form that cannot be "
                f"compared ({shown}, ...); for these only rollout log-probabilities show whether they arrive"
            )
        self._told = True


def _local(parameter: Tensor) -> Tensor:
    """What this rank keeps of a parameter between two steps, under ZeRO-3 and FSDP its part."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor.data
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter.data


def _shown(part: Slice) -> str:
    return part.source if part.source == part.name else f"{part.source} (in {part.name})"
