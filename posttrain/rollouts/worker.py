"""What posttrain adds to a vLLM worker, through vLLM's own `worker_extension_cls`: to say which weights it holds, and
to take new ones where vLLM has no transfer of its own (CPU).

Importing this module, which vLLM does in each worker's process before the model is loaded, prepares that process.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import safe_open

from posttrain.rollouts.cpu import is_cpu_engine, prepare_process
from posttrain.rollouts.digests import digest

if is_cpu_engine():
    prepare_process()


class EngineWorker:
    """Mixed into vLLM's worker; its methods are called over `collective_rpc`, arguments and answers are JSON."""

    model_runner: Any
    parallel_config: Any

    def posttrain_tensors(self) -> dict[str, Any]:
        """Name -> [dtype, shape] of every parameter, a shared one under each of its names; how they are joined."""
        model = self.model_runner.model
        held = model.named_parameters(remove_duplicate=False)
        return {
            "tensors": {name: [str(value.dtype).removeprefix("torch."), list(value.shape)] for name, value in held},
            "packed": {name: list(parts) for name, parts in getattr(model, "packed_modules_mapping", {}).items()},
            "parts": self.parallel_config.world_size,
        }

    def posttrain_digests(self, wanted: list[list[Any]]) -> list[int]:
        """Digest of rows of tensors: [name, first row, number of rows] each; 0 rows = the whole tensor."""
        held = dict(self.model_runner.model.named_parameters(remove_duplicate=False))
        values = [(held[name].data, first, rows) for name, first, rows in wanted]
        return [digest(value[first : first + rows] if rows else value) for value, first, rows in values]

    def posttrain_load(self, path: str) -> list[int]:
        """Take the tensors of a safetensors file; returns their number."""
        model = self.model_runner.model
        with safe_open(path, framework="pt", device="cpu") as file, torch.no_grad():
            names = list(file.keys())
            model.load_weights((name, file.get_tensor(name)) for name in names)
        return [len(names)]
