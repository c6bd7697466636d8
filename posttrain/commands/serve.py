"""`posttrain serve`: the inference server of a recipe, for runs that name its address."""

from __future__ import annotations

import os
import re
import secrets
import sys
from pathlib import Path

from posttrain.config.loader import load
from posttrain.config.stages import resolve_stages
from posttrain.console import quiet_libraries
from posttrain.errors import ConfigError, need
from posttrain.models.loading import load_tokenizer, resolve_model_path
from posttrain.rollouts.cpu import is_cpu_engine
from posttrain.rollouts.guard import TOKEN_VARIABLE
from posttrain.rollouts.server import ServerSettings, refuse_public, server_environment


def serve(
    recipe: str, overrides: list[str], *, stage: str | None, host: str, port: int, token_file: str | None
) -> None:
    """Become vLLM's server for a recipe's model; does not return.

    Args:
        recipe: path of the YAML file.
        overrides: "block.key=value" strings that replace recipe values.
        stage: name of a stage; None = the last one that makes rollouts.
        host: address to listen on, loopback or private.
        port: to listen on.
        token_file: file that holds the token, or gets a new one; None = beside the run's output. The environment
            variable POSTTRAIN_ENGINE_TOKEN comes first.

    Raises:
        PosttrainError: a mistake in the recipe, a public address, no vLLM here.
    """
    quiet_libraries()
    refuse_public(host)
    need("vllm", where="posttrain serve")
    runs = [(name, cfg) for name, _, cfg in resolve_stages(load(recipe, overrides)) if cfg.rollout is not None]
    chosen = [cfg for name, cfg in runs if stage in (None, name)]
    if not chosen:
        raise ConfigError("no such stage makes rollouts", got=stage, allowed=", ".join(name for name, _ in runs))
    cfg = chosen[-1]
    assert cfg.rollout is not None
    folder = Path(str(cfg.trainer.output_dir))
    model = Path(resolve_model_path(cfg.model, folder / "initial"))
    if model.is_dir() and not (model / "tokenizer_config.json").exists():
        load_tokenizer(cfg.model, path=str(model)).save_pretrained(model)
    length = cfg.rollout.fields.get("vllm_max_model_length")
    settings = ServerSettings(
        model=str(model),
        dtype=cfg.model.dtype if cfg.model.dtype not in (None, "auto") else "float32",
        max_model_length=length or cfg.data.max_prompt_length + cfg.rollout.max_completion_length,
        seed=int(cfg.trainer.fields.get("seed", 0)),
    )
    token, told = _token(Path(token_file) if token_file is not None else folder / "_engine.token")
    is_cpu = is_cpu_engine()
    sys.stderr.write(f"serving {model} at http://{host}:{port}\n{told}\n")
    sys.stderr.flush()
    command = [sys.executable, "-m", "posttrain.rollouts.serve"]
    command += settings.options(host=host, port=port, is_cpu=is_cpu)
    os.execvpe(
        command[0], command, server_environment(token, host=host, is_cpu=is_cpu, devices=None, model=str(model))
    )


def _token(file: Path) -> tuple[str, str]:
    """The server's token, and how a run gets it."""
    given = os.environ.get(TOKEN_VARIABLE)
    if given:
        return _long_enough(given, TOKEN_VARIABLE), f"it takes requests with the token in {TOKEN_VARIABLE}"
    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
                stream.write(secrets.token_urlsafe(32) + "\n")
        except OSError as error:
            raise ConfigError(f"the token cannot be written: {error.strerror}", where=str(file)) from None
    return _read_token(file), f'for the run: export {TOKEN_VARIABLE}="$(cat {file})"'


def _read_token(file: Path) -> str:
    """The token in a file that is this user's alone.

    Raises:
        ConfigError: others may read or write it, or it holds no token.
    """
    try:
        with file.open("rb") as stream:
            facts = os.fstat(stream.fileno())
            text = stream.read(4096)
    except OSError as error:
        raise ConfigError(f"the token cannot be read: {error.strerror}", where=str(file)) from None
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise ConfigError(
            "others may know the token in this file, for they may read or write it",
            where=str(file),
            got=f"mode {facts.st_mode & 0o777:04o}, owner {facts.st_uid}",
            allowed=f"mode 0600, owner {os.geteuid()}",
            fix="Delete it, and a new one is made",
        )
    return _long_enough(text.decode("utf-8", errors="replace").strip(), str(file))


def _long_enough(token: str, where: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{32,512}", token):
        raise ConfigError(
            "this is no token",
            where=where,
            got=f"{len(token)} characters",
            allowed="32 to 512 characters of ASCII, without spaces",
            fix="Delete it, and a new one is made",
        )
    return token
