"""A causal language model made from its configuration, with a character tokenizer and chat template, saved to disk.

For tests, smoke recipes and the quickstart: no download, a few hundred kilobytes to a few megabytes, and small enough
to learn the packaged tasks on two CPU cores. The text side is ASCII only; what is left out is any subword merging.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from posttrain.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

SPECIAL_TOKENS = ("<pad>", "<bos>", "<|im_start|>", "<|im_end|>")
CHARACTERS = "\n" + "".join(sorted(string.ascii_letters + string.digits + string.punctuation + " "))
ARCHITECTURES = ("llama", "qwen2", "qwen3")

# No newline after <|im_end|>: a rendered demonstration then ends with the stop token, exactly where a sample does.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|im_start|>assistant\\n' -}}"
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def build_tiny(
    path: str | Path,
    *,
    architecture: str = "llama",
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    intermediate_size: int = 256,
    max_position_embeddings: int = 512,
    seed: int = 0,
) -> Path:
    """Write a randomly initialised causal LM, its tokenizer, chat template and generation config to a folder.

    Args:
        path: folder to write; created if missing, files of the same name are replaced.
        architecture: transformers architecture, one of `ARCHITECTURES`.
        hidden_size: width; a multiple of 2 * num_heads (rotary positions pair up the channels of a head).
        num_layers: number of decoder layers.
        num_heads: attention heads, with as many key-value heads.
        intermediate_size: width of the gated MLP.
        max_position_embeddings: longest sequence in tokens, that is characters plus chat markers.
        seed: of the weights; the global generator is left as found.

    Returns:
        The folder. The same arguments and library versions give the same bytes.

    Raises:
        ConfigError: for an unknown architecture or sizes that do not fit together.
    """
    sizes = {
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": max_position_embeddings,
    }
    _check_sizes(architecture, sizes)
    folder = Path(path)
    tokenizer = character_tokenizer(model_max_length=max_position_embeddings)
    if architecture == "qwen2":
        # transformers 5.17: AutoTokenizer rebuilds every qwen2 tokenizer as Qwen2Tokenizer, which would otherwise
        # add an <|endoftext|> beyond the model's vocabulary as its unknown token.
        tokenizer.unk_token = tokenizer.bos_token
    specials = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = _config(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_position_embeddings,
        **specials,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(**specials)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


def character_tokenizer(model_max_length: int = 512) -> PreTrainedTokenizerBase:
    """Tokenizer with one token for each printable ASCII character and the newline, and four special tokens.

    Any other character reads as "?", so no text is refused and none disappears (a qwen2 folder drops it, see
    `build_tiny`). Decoding returns ASCII text unchanged. Tokens are spelled in the byte-level alphabet of GPT-2, so
    AutoTokenizer reads the same ids even where it replaces the pipeline by that of the architecture's own class.

    Args:
        model_max_length: tokens; kept in the tokenizer's own config.

    Returns:
        A fast transformers tokenizer; EOS is <|im_end|>, and padding has a token of its own.
    """
    spelled = CHARACTERS.replace(" ", "\u0120").replace("\n", "\u010a")
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *spelled))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.normalizer = normalizers.Replace(Regex("[^\\n -~]"), "?")
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    pad, bos, start, end = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        bos_token=bos,
        eos_token=end,
        additional_special_tokens=[start],
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        padding_side="right",
    )


def _config(architecture: str, **sizes: int) -> PretrainedConfig:

    # qwen3 is the one architecture of the three whose head width does not follow from the other sizes.
    extra = {"head_dim": sizes["hidden_size"] // sizes["num_attention_heads"]} if architecture == "qwen3" else {}
    return AutoConfig.for_model(architecture, **sizes, **extra, tie_word_embeddings=False)


def _check_sizes(architecture: str, sizes: dict[str, int]) -> None:
    if architecture not in ARCHITECTURES:
        allowed = f"one of: {', '.join(ARCHITECTURES)}"
        raise ConfigError("unknown architecture", where="model.tiny.architecture", got=architecture, allowed=allowed)
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError("must be at least 1", where=f"model.tiny.{name}", got=value)
    step = 2 * sizes["num_heads"]
    if sizes["hidden_size"] % step:
        nearest = step * max(1, round(sizes["hidden_size"] / step))
        raise ConfigError(
            "must be a multiple of 2 * num_heads",
            where="model.tiny.hidden_size",
            got=sizes["hidden_size"],
            fix=f"Use {nearest}, or change num_heads",
        )
