"""A process that may not have more memory: one error with the step, what was going on, and what to lower."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from posttrain.seam.memory import is_out_of_memory
from tests.faults.launched import ROOT, needs_linux

SCRIPT = """
import resource, sys
from pathlib import Path
from transformers import TrainerCallback
from posttrain.errors import PosttrainError
from tests.batteries.runs import build, dataset

class Limit(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            room = pages * resource.getpagesize() + int(sys.argv[4]) * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (room, room))

trainer = build(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), max_steps=5, save_strategy="steps", save_steps=1,
                per_device_train_batch_size=int(sys.argv[5]), gradient_accumulation_steps=1,
                data=dataset(int(sys.argv[5])))
trainer.add_callback(Limit())
try:
    trainer.train()
except PosttrainError as error:
    print(f"{type(error).__name__}: {error}")
"""


@needs_linux
@pytest.mark.parametrize(("key", "rows"), [("sft", 512), ("grpo", 64)])
def test_what_a_run_out_of_memory_tells(key, rows, tiny_dir, tmp_path):
    """The limit is the kernel's; torch's own allocator fails on it as on a full machine."""
    command = [sys.executable, "-c", SCRIPT, key, str(tiny_dir), str(tmp_path), "1", str(rows)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # Tensors go back to the system when they are freed, so that each step has to ask for its memory again.
    environment |= {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("OutOfMemory: optimizer step 3: out of memory during "), done.stdout + done.stderr
    assert f"with {rows} rows a micro-batch" in last and "per_device_train_batch_size" in last
    assert {path.name for path in Path(tmp_path).glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_which_errors_are_meant(error, known):
    assert is_out_of_memory(error) is known
