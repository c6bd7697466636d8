"""Training against a real vLLM server on loopback: weights, the token before its routes, its death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import requests
import torch
from safetensors.torch import save

from posttrain.registry import METHODS
from posttrain.rollouts.guard import TOKEN_VARIABLE, WEIGHTS_ROUTE
from posttrain.rollouts.server import EngineError
from tests.batteries.runs import Recorder, build, weights
from tests.rollouts.conftest import ENGINE, wait_until
from tests.rollouts.test_colocated import DIFFERENCE, POLICY_METHODS, logged

pytestmark = pytest.mark.vllm
REMOTE = {**ENGINE, "vllm_mode": "server", "max_completion_length": 12, "logging_steps": 1}
# Everything that reads or changes the policy or the engine, among it all that vLLM's own key leaves open.
ROUTES = [
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/server_info"),
    ("GET", "/get_world_size"),
    ("GET", "/v1/models"),
    ("POST", "/v1/completions"),
    ("POST", "/collective_rpc"),
    ("POST", "/init_weight_transfer_engine"),
    ("POST", "/start_weight_update"),
    ("POST", "/update_weights"),
    ("POST", "/finish_weight_update"),
    ("POST", "/reset_prefix_cache"),
    ("POST", "/pause"),
    ("POST", "/sleep"),
    ("PUT", WEIGHTS_ROUTE),
]


@pytest.fixture
def remote(server, monkeypatch):
    """Settings that name the running server, and its token in the environment."""
    monkeypatch.setenv(TOKEN_VARIABLE, server.token)
    return {**REMOTE, "vllm_server_base_url": server.url}


def digests(server):
    """Digest of the whole embedding in the engine."""
    body = {"method": "posttrain_digests", "args": [[["model.embed_tokens.weight", 0, 0]]]}
    headers = {"Authorization": f"Bearer {server.token}"}
    return requests.post(f"{server.url}/collective_rpc", json=body, headers=headers, timeout=30).json()["results"]


@pytest.mark.parametrize("key", POLICY_METHODS)
def test_every_policy_method_trains_from_the_servers_rollouts(key, engine_dir, remote, tmp_path):
    made = build(key, engine_dir, tmp_path, max_steps=3, **remote)
    try:
        made.train()
        differences = logged(made, DIFFERENCE)
        assert made.state.global_step == 3
        assert made.engine.syncs == len(differences) >= 1 and max(differences) <= 1e-4
    finally:
        made.close()
    assert METHODS[key].generates


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_without_the_token_nobody_reads_or_changes_anything(server, method, route):
    before = digests(server)
    tensors = save({"model.embed_tokens.weight": torch.zeros(100, 64)})
    body = {"data": tensors} if method == "PUT" else {"json": {"method": "posttrain_tensors", "prompt": "1"}}
    for headers in ({}, {"Authorization": "Bearer " + "0" * 43}, {"X-Api-Key": server.token}):
        answer = requests.request(method, server.url + route, headers=headers, timeout=30, **body)
        assert answer.status_code == 401 and "token alone" in answer.text
    assert digests(server) == before


def test_it_listens_on_loopback_alone_and_its_token_is_on_no_command_line(server):
    port = int(server.url.rsplit(":", 1)[1])
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    listening = {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}
    assert listening == {"0100007F"}, "127.0.0.1"
    with open(f"/proc/{server.process.pid}/cmdline") as words:
        assert server.token not in words.read()
    assert server.token not in server.log.read_text()


def test_a_wrong_token_is_told_at_once(engine_dir, remote, tmp_path, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "0" * 43)
    with pytest.raises(EngineError, match="does not know this token. Set POSTTRAIN_ENGINE_TOKEN"):
        build("grpo", engine_dir, tmp_path, **remote)


def test_nobody_at_the_address_is_told_in_time(engine_dir, remote, tmp_path):
    address = {"vllm_server_base_url": "http://127.0.0.1:9", "vllm_server_timeout": 2.0}
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"rank 0 waited 2 s for the inference server at http://127.0.0.1:9"):
        build("grpo", engine_dir, tmp_path, **{**remote, **address})
    assert time.monotonic() - began < 30


def test_a_server_that_stops_answering_is_noticed(engine_dir, remote, server, tmp_path):
    """A server that is stopped in the middle (SIGSTOP) keeps its connections open and never answers."""
    made = build("grpo", engine_dir, tmp_path, max_steps=3, engine_timeout_seconds=30.0, **remote)
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(EngineError, match=r"rank 0 waited for (GET|POST|PUT) /\S+ and the inference server"):
            made.train()
        assert time.monotonic() - began < 25, "three probes, before the deadline"
        assert not any(t.name == "engine" and not t.daemon for t in threading.enumerate()), "none holds the process"
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
        made.close()
    assert made.state.global_step == 0


def test_a_request_that_takes_too_long_says_how_long(engine_dir, remote, tmp_path):
    made = build("grpo", engine_dir, tmp_path, max_steps=3, **remote)
    made.vllm_generation.vllm_client._seconds = 1e-4
    try:
        with pytest.raises(EngineError, match=r"rank 0 waited for \S+ /\S+ and it took more than 0.0001 s"):
            made.train()
    finally:
        made.close()


def test_a_tensor_that_the_server_does_not_take_is_named(engine_dir, remote, tmp_path):
    made = build("grpo", engine_dir, tmp_path, **remote)
    client = made.vllm_generation.vllm_client
    send_part = client._send_part
    try:
        made.engine.sync()
        with torch.no_grad():
            for value in made.model.parameters():
                value.add_(0.01)
        client._send_part = lambda part: send_part({k: v for k, v in part.items() if "norm" not in k})
        with pytest.raises(EngineError, match=r"5 tensors of the engine differ .*input_layernorm"):
            made.engine.sync()
    finally:
        client._send_part = send_part
        made.close()


RECIPE = """
model: {path: MODEL, dtype: float32}
data: {train: {task: arithmetic, size: 64, seed: 0, options: {digits: 1, split: train}}, max_prompt_length: 64}
rollout:
  engine: vllm
  mode: server
  num_generations: 4
  max_completion_length: 16
  rewards: [{name: format, weight: 1.0}]
trainer:
  output_dir: OUTPUT
  max_steps: STEPS
  per_device_train_batch_size: 8
  gradient_accumulation_steps: 1
  learning_rate: 1.0e-3
  lr_scheduler_type: constant
  logging_steps: 1
  save_strategy: steps
  save_steps: 1000
  seed: 0
method: {name: grpo}
"""


def test_the_engine_dies_in_the_middle_of_a_run(engine_dir, tmp_path):
    """kill -9 of the engine's worker: told within seconds, a checkpoint, and the next call goes on from there."""
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "run"
    text = RECIPE.replace("MODEL", str(engine_dir)).replace("OUTPUT", str(output))
    recipe.write_text(text.replace("STEPS", "100000"))
    command = [sys.executable, "-m", "posttrain.run", str(recipe)]
    metrics = output / "metrics.jsonl"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        try:
            wait_until(lambda: metrics.exists() and '"step": 3,' in metrics.read_text(), 200)
            found = subprocess.run(
                ["pgrep", "-P", str(run.pid), "-f", "rollouts.serve"], capture_output=True, text=True
            )
            child = found.stdout.split()[0]
            listed = subprocess.run(["pgrep", "-P", child, "-f", "EngineCore"], capture_output=True, text=True)
            os.kill(int(listed.stdout), signal.SIGKILL)
            began = time.monotonic()
            output_text, _ = run.communicate(timeout=60)
            seconds = time.monotonic() - began
        finally:
            run.kill()
    assert run.returncode == 2 and seconds < 30
    last = output_text.strip().splitlines()[-1]
    assert last.startswith("error: ") and "the inference server" in last and "Run the same command again" in last
    assert "Traceback" not in output_text
    checkpoint = next(output.glob("checkpoint-*"))
    step = int(checkpoint.name.split("-")[1])
    assert f"the checkpoint after optimizer step {step} is written" in last
    steps = [line for line in metrics.read_text().splitlines() if '"loss"' in line]
    assert len(steps) == step, "every step that was logged is in the checkpoint, and no other"
    wait_until(lambda: not os.path.exists(f"/proc/{child}"), 20)

    recipe.write_text(text.replace("STEPS", str(step + 2)))
    # In the process this time, which saves the start of a second server.
    again = subprocess.run([*command, "rollout.mode=colocate"], capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"continuing from {checkpoint}" in again.stdout and f"step {step + 1}/{step + 2}" in again.stdout


def test_the_server_ends_with_a_run_that_is_killed(engine_dir, tmp_path):
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "run"
    text = RECIPE.replace("MODEL", str(engine_dir)).replace("OUTPUT", str(output)).replace("STEPS", "100000")
    recipe.write_text(text)
    run = subprocess.Popen([sys.executable, "-m", "posttrain.run", str(recipe)], stdout=subprocess.DEVNULL)
    try:
        listed = ["pgrep", "-P", str(run.pid), "-f", "rollouts.serve"]
        wait_until(lambda: subprocess.run(listed, capture_output=True).returncode == 0, 100)
        child = subprocess.run(listed, capture_output=True, text=True).stdout.split()[0]
        time.sleep(5)
    finally:
        run.kill()
        run.wait()
    wait_until(lambda: not os.path.exists(f"/proc/{child}"), 60)


def test_weights_are_the_trainers_after_two_steps(engine_dir, remote, server, tmp_path):
    """What the engine has at the end of training is what was sent before the last generation."""
    made = build("grpo", engine_dir, tmp_path, max_steps=2, **remote)
    try:
        made.train()
        made.engine.sync()
        assert not made.engine.differing()
        with torch.no_grad():
            made.model.get_input_embeddings().weight[7, 7] += 1.0
        made.engine._sent = {
            name: (shape, 0 if name == "model.embed_tokens.weight" else value)
            for name, (shape, value) in made.engine._sent.items()
        }
        assert made.engine.differing() == ["model.embed_tokens.weight"]
        assert weights(made)
    finally:
        made.close()


def test_one_step_off_trains_on_rollouts_of_the_update_before(engine_dir, remote, tmp_path, monkeypatch):
    """The batch that is trained on in step k+1 was sampled by the weights of step k; the ratio says so exactly."""
    ahead = {**remote, "one_step_off": True}
    # Every group has both verdicts, so that every update moves the weights.
    reward = Recorder(lambda prompts, completions, **_: [float(row % 2) for row in range(len(completions))])
    ahead |= {"vllm_importance_sampling_mode": "token_truncate", "reward": reward}
    made = build("grpo", engine_dir, tmp_path, max_steps=5, **ahead)
    started, used, held = [], [], {}
    client = made.vllm_generation.vllm_client
    start, score = client.start_ahead, made._generate_and_score_completions

    def noted(prompts):
        held[len(started)] = {name: value.detach().clone() for name, value in made.model.state_dict().items()}
        started.append(prompts)
        return start(prompts)

    def scored(inputs):
        tensors = score(inputs)
        used.append(
            {
                name: tensors[name]
                for name in (
                    "prompt_ids",
                    "completion_ids",
                    "completion_mask",
                    "sampling_per_token_logps",
                    "old_per_token_logps",
                    "importance_sampling_ratio",
                    "prompt_mask",
                )
            }
        )
        return tensors

    monkeypatch.setattr(client, "start_ahead", noted)
    monkeypatch.setattr(made, "_generate_and_score_completions", scored)
    try:
        made.train()
        assert len(started) == 4 and len(used) == 5, "one batch is made at once, four ahead, none after the last step"
        assert logged(made, "rollout/ahead_discarded") == [0.0] * 4
        live = {name: value.detach().clone() for name, value in made.model.state_dict().items()}
        for batch in range(1, 5):
            tensors = used[batch]
            width = tensors["completion_ids"].size(1)
            ids = torch.cat([tensors["prompt_ids"], tensors["completion_ids"]], dim=1)
            mask = torch.cat([tensors["prompt_mask"], tensors["completion_mask"]], dim=1)
            made.model.load_state_dict(held[batch - 1])
            with torch.no_grad():
                logits = made.model(input_ids=ids, attention_mask=mask).logits[:, -width - 1 : -1]
            own = logits.log_softmax(-1).gather(2, tensors["completion_ids"].unsqueeze(2)).squeeze(2)
            where = tensors["completion_mask"].bool()
            assert (own - tensors["sampling_per_token_logps"])[where].abs().max() <= 1e-4
            difference = (tensors["old_per_token_logps"] - tensors["sampling_per_token_logps"])[where]
            assert difference.abs().max() > 1e-4, "the weights have moved since"
            ratio = difference.exp().clamp(max=made.args.vllm_importance_sampling_clip_max)
            assert torch.allclose(tensors["importance_sampling_ratio"][where], ratio)
        made.model.load_state_dict(live)
    finally:
        made.close()


def test_one_step_off_crosses_epochs_and_resumes(engine_dir, remote, tmp_path):
    """12 prompts, 2 a step: the seventh step is of the next epoch. After a resume the first batch is made anew."""
    settings = {**remote, "one_step_off": True, "save_strategy": "steps", "save_steps": 4}
    made = build("grpo", engine_dir, tmp_path / "a", max_steps=8, **settings)
    again = build("grpo", engine_dir, tmp_path / "b", max_steps=8, **settings)
    try:
        made.train()
        assert logged(made, "rollout/ahead_discarded") == [0.0] * 7
        again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
        assert logged(again, "rollout/ahead_discarded")[4:] == [0.0] * 3
    finally:
        made.close()
        again.close()
