"""How a server is started: where it listens, what its command line and environment hold. The rest needs vLLM."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import nullcontext

import pytest

from posttrain.commands.serve import _token
from posttrain.errors import ConfigError
from posttrain.rollouts.guard import TOKEN_VARIABLE, WEIGHT_BYTES_VARIABLE
from posttrain.rollouts.server import EngineError, EngineServer, ServerSettings, refuse_public, server_environment

SETTINGS = ServerSettings(model="m", dtype="float32", max_model_length=96, seed=7)


# Public, every interface in several forms, broadcast, documentation, multicast, carriers', link-local, benchmarks,
# reserved, IPv4 in IPv6, beside a private network, and the ends of private networks.
@pytest.mark.parametrize(
    "host",
    "0.0.0.0 0 0x0 00.0.0.0 :: 8.8.8.8 2a00:1450::1 255.255.255.255 192.0.2.1 198.51.100.9 203.0.113.7 224.0.0.1 "
    "239.1.1.1 100.64.0.1 169.254.1.1 198.18.0.1 240.0.0.1 192.0.0.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:8.8.8.8 "
    "172.32.0.1 172.15.0.1 11.0.0.1 192.169.0.1 10.255.255.255 192.168.0.0".split(),
)
def test_it_does_not_listen_where_strangers_are(host):
    with pytest.raises(ConfigError, match="does not listen on every or on a public interface"):
        refuse_public(host)


def test_a_host_that_is_not_known_is_told():
    with pytest.raises(ConfigError, match="no such host"):
        refuse_public("no-such-host.invalid")


def test_an_address_of_the_other_family_is_refused():
    with pytest.raises(ConfigError, match="not an IPv4 address"):
        refuse_public("::1")


@pytest.mark.parametrize("host", "127.0.0.1 localhost 127.1 127.9.8.7 10.0.0.7 172.31.255.254 192.168.3.4".split())
def test_loopback_and_private_addresses_are_allowed(host):
    assert refuse_public(host) is None


@pytest.mark.parametrize(
    ("addresses", "allowed"),
    [
        (["10.0.0.7", "192.168.3.4"], True),
        (["10.0.0.7", "fd00::7"], True),
        (["10.0.0.7", "8.8.8.8"], False),
        (["10.0.0.7", "2a00:1450::1"], False),
        (["fd00::7"], False),
    ],
)
def test_a_name_is_taken_if_all_its_addresses_are(monkeypatch, addresses, allowed):
    found = [(None, None, None, "", (address, 0)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with nullcontext() if allowed else pytest.raises(ConfigError, match="host: "):
        refuse_public("node7")


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("", 0o600, r"this is no token \(got '0 characters'"),
        ("\n", 0o600, "this is no token"),
        ("short\n", 0o600, "this is no token"),
        ("two " * 12, 0o600, "this is no token"),
        ("t" * 43, 0o644, "others may know the token in this file"),
        ("t" * 43, 0o620, "others may know the token in this file"),
        (None, 0o700, "the token cannot be read: Is a directory"),
    ],
)
def test_a_token_file_that_is_open_or_empty_is_refused_in_a_line(tmp_path, monkeypatch, text, mode, words):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    file = tmp_path / "token"
    if text is None:
        file.mkdir()
    else:
        file.write_text(text)
    file.chmod(mode)
    with pytest.raises(ConfigError, match=words) as refusal:
        _token(file)
    assert "\n" not in str(refusal.value) and str(refusal.value).startswith(str(file))


def test_a_token_file_of_ones_own_is_made_and_used(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    file = tmp_path / "new" / "token"
    token, _ = _token(file)
    assert len(token) == 43 and file.stat().st_mode & 0o777 == 0o600
    assert _token(file)[0] == token
    monkeypatch.setenv(TOKEN_VARIABLE, "weak")
    with pytest.raises(ConfigError, match=f"{TOKEN_VARIABLE}: this is no token"):
        _token(file)


def test_a_server_takes_no_more_weights_than_its_model_has_in_float32(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    own = server_environment("secret", host="127.0.0.1", is_cpu=True, devices=None, model=str(tmp_path))
    assert own[WEIGHT_BYTES_VARIABLE] == str(4000 + 2**20)


def test_the_command_line_tells_all_but_the_token():
    options = SETTINGS.options(host="127.0.0.1", port=8000, is_cpu=True)
    told = dict(zip(options[::2], options[1::2], strict=False))
    assert told["--host"] == "127.0.0.1" and told["--max-model-len"] == "96" and told["--seed"] == "7"
    assert told["--dtype"] == "float32" and "--enforce-eager" in options
    assert told["--middleware"] == "posttrain.rollouts.guard.Guard"
    assert not any("key" in word or "token" in word for word in options)
    on_gpu = SETTINGS.options(host="127.0.0.1", port=8000, is_cpu=False)
    assert "--weight-transfer-config" in on_gpu and "--enforce-eager" not in on_gpu


def test_its_environment_is_not_that_of_a_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_FSDP"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    own = server_environment("secret", host="127.0.0.1", is_cpu=True, devices="5")
    assert not {"RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_FSDP"} & set(own)
    assert own[TOKEN_VARIABLE] == "secret" and own["CUDA_VISIBLE_DEVICES"] == "5"
    assert own["VLLM_CPU_KVCACHE_SPACE"] == "3", "what the user has set stays"
    assert own["GLOO_SOCKET_IFNAME"] == "lo" and own["VLLM_HOST_IP"] == "127.0.0.1", "its workers stay on loopback"


def test_a_server_that_ends_at_once_says_why(tmp_path, monkeypatch):
    """Without vLLM, or with a model that is not there, the last words of the child are in the message."""
    monkeypatch.setattr(ServerSettings, "options", lambda self, **where: ["--no-such-option"])
    server = EngineServer(SETTINGS, log=tmp_path / "engine.log", is_cpu=True)
    with pytest.raises(
        EngineError, match="the inference server ended with status [12] before it was ready; the end of"
    ):
        server.wait(lambda: False, seconds=100)
    server.stop()


def test_a_server_that_never_answers_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/sleep")
    monkeypatch.setattr(ServerSettings, "options", lambda self, **where: [])
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **kwargs: popen(["/bin/sleep", "60"], **kwargs))
    server = EngineServer(SETTINGS, log=tmp_path / "engine.log", is_cpu=True)
    with pytest.raises(EngineError, match="did not answer within 1 s"):
        server.wait(lambda: False, seconds=1)
    assert server.process.poll() is not None
