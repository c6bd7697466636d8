"""How uncertain a model is about every token of a corpus: the entropies that choose tokens for next-token reasoning.

Scoring is resumable: what is done is written every few seconds, and a second call goes on from there.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from posttrain.data.rendering import encode_document
from posttrain.errors import DataError
from posttrain.methods.rmt import token_index
from posttrain.methods.rmt.token_index import TokenIndex
from posttrain.models.positions import with_positions

Progress = Callable[[int, int], None]
_SAVE_SECONDS = 5.0
# Bytes of float32 logits that one forward may make; a single document may need more.
LOGITS_BYTES = 2**30


def top_k_entropy(logits: Tensor, *, top_k: int) -> Tensor:
    """Entropy in nats of the distribution over the `top_k` likeliest tokens, renormalised.

    Args:
        logits: (..., V) logits or log-probabilities.
        top_k: tokens that count; all of them if the vocabulary is smaller.

    Returns:
        (...) float32, without gradient.

    Source: arXiv 2506.08007, token filtering; top 16. Whether the paper renormalises is UNVERIFIED; it is our choice.
    """
    values = logits.detach().float().topk(min(top_k, logits.size(-1)), dim=-1).values
    log_probs = torch.log_softmax(values, dim=-1)
    # A probability of exactly 0 contributes 0, not 0 * -inf.
    return -torch.where(log_probs > -torch.inf, log_probs.exp() * log_probs, 0.0).sum(dim=-1)


def encode_documents(texts: Sequence[Any], tokenizer: Any) -> tuple[list[int], list[list[int]], dict[str, int]]:
    """Token ids of every usable document.

    Returns:
        Row numbers that were kept, their token ids, and how many rows were left out by reason.

    Raises:
        DataError: a row that is no text, or no document with two tokens.
    """
    kept, documents, short = [], [], 0
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                "a document is text",
                where=f"train row {row}",
                got=text,
                fix="Give plain text: data.train.format: text, with the column named under data.train.columns.prompt",
            )
        ids = encode_document(tokenizer, text)
        if len(ids) < 2:
            short += 1
            continue
        kept.append(row)
        documents.append(ids)
    if not documents:
        raise DataError(
            "no document has two tokens, so there is nothing to predict", where="train dataset", got=len(texts)
        )
    return kept, documents, {"shorter than 2 tokens": short} if short else {}


def score_corpus(
    texts: Sequence[Any],
    *,
    folder: str | Path,
    tokenizer: Any,
    model: Any,
    top_k: int,
    progress: Progress | None = None,
    stop_after: int | None = None,
) -> TokenIndex | None:
    """Make the token index of a corpus, or finish one that was begun; a finished one is opened.

    Args:
        texts: documents. folder: of the index.
        tokenizer, model: the scorer, on the device it should run on; its weights are part of the index's identity.
        top_k: see `top_k_entropy`.
        progress: called with (documents done, documents).
        stop_after: leave after this many documents of this call, the index unfinished.

    Returns:
        The index; None if `stop_after` ended the work.

    Raises:
        DataError: the folder holds an index of another corpus, tokenizer, scorer or `top_k`; unusable documents.
    """
    folder = Path(folder)
    identity = {
        "tokenizer": token_index.tokenizer_digest(tokenizer),
        "corpus": token_index.corpus_digest([str(text) for text in texts]),
        "scorer": token_index.weights_digest(model),
        "top_k": top_k,
    }
    record = token_index.read_record(folder)
    if record is not None:
        token_index.refuse_other(record, identity, folder)
        if record["documents_done"] == record["num_documents"] and "files" in record:
            return token_index.open_index(folder, expected=identity)
    else:
        record = _begin(texts, folder, tokenizer, identity)
    if not _score_rest(folder, record, model, progress=progress, stop_after=stop_after):
        return None
    token_index.finish(folder, record)
    return token_index.open_index(folder, expected=identity)


def store_entropies(
    texts: Sequence[Any], entropies: Sequence[Any], *, folder: str | Path, tokenizer: Any
) -> TokenIndex:
    """Make the index from entropies that come with the corpus, one number a token (the first is not read).

    A finished one is opened; one that was not finished is made again.

    Raises:
        DataError: entropies that are no numbers, or another number of them than tokens: they were made with another
            tokenizer; the folder holds an index of other entropies, another corpus or tokenizer, or of a scorer.
    """
    folder = Path(folder)
    kept, documents, _ = encode_documents(texts, tokenizer)
    flat = numpy.concatenate(
        [_entropies_of_row(entropies[row], len(ids), row) for row, ids in zip(kept, documents, strict=True)]
    )
    identity = {
        "tokenizer": token_index.tokenizer_digest(tokenizer),
        "corpus": token_index.corpus_digest([str(text) for text in texts]),
        "scorer": f"column entropy, {hashlib.sha256(flat.tobytes()).hexdigest()}",
        "top_k": None,
    }
    record = token_index.read_record(folder)
    if record is not None:
        token_index.refuse_other(record, identity, folder)
        if "files" in record:
            return token_index.open_index(folder, expected=identity)
    record = _begin(texts, folder, tokenizer, identity)
    entropy = numpy.lib.format.open_memmap(folder / "entropy.npy", mode="r+")
    entropy[:] = flat
    entropy.flush()
    record["documents_done"] = record["num_documents"]
    token_index.finish(folder, record)
    return token_index.open_index(folder, expected=identity)


def _entropies_of_row(cell: Any, num_tokens: int, row: int) -> numpy.ndarray:
    """(S,) float32 of a cell, NaN in front."""
    where, fix = f"train row {row}", "Remove the column and score again with `posttrain score-tokens`"
    try:
        values = numpy.asarray(cell, dtype=numpy.float64)
        usable = values.ndim == 1 and bool(numpy.isfinite(values[1:]).all())
    except (TypeError, ValueError):  # texts, or lists of unequal length
        usable = False
    if not usable:
        raise DataError("the column entropy is not a list of numbers", where=where, got=cell, fix=fix)
    if len(values) != num_tokens:
        raise DataError(
            "the column entropy was made with another tokenizer: it needs one number for every token",
            where=where,
            got=f"{len(values)} numbers",
            allowed=f"{num_tokens} tokens",
            fix=fix,
        )
    return numpy.asarray([numpy.nan, *values[1:]], dtype=numpy.float32)


def _begin(texts: Sequence[Any], folder: Path, tokenizer: Any, identity: dict[str, Any]) -> dict[str, Any]:
    _, documents, dropped = encode_documents(texts, tokenizer)
    record = {
        "format": token_index.FORMAT,
        **identity,
        "num_documents": len(documents),
        "num_tokens": sum(map(len, documents)),
        "dropped_documents": dropped,
        "documents_done": 0,
    }
    token_index.start(folder, documents, record)
    return record


def _score_rest(
    folder: Path, record: dict[str, Any], model: Any, *, progress: Progress | None, stop_after: int | None
) -> bool:
    """Score what is left; whether it was brought to the end."""
    tokens = numpy.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
    starts = numpy.load(folder / "starts.npy", mmap_mode="r", allow_pickle=False)
    entropy = numpy.lib.format.open_memmap(folder / "entropy.npy", mode="r+")
    begun, saved_at, total = record["documents_done"], time.monotonic(), record["num_documents"]
    vocabulary = int(model.get_output_embeddings().weight.size(0))
    was_training = model.training
    model.eval()
    try:
        for first, last in _batches(starts, begun, total, vocabulary):
            documents = [tokens[starts[i] : starts[i + 1]] for i in range(first, last)]
            for number, values in zip(range(first, last), _entropies(documents, model, record["top_k"]), strict=True):
                entropy[starts[number] + 1 : starts[number + 1]] = values
            record["documents_done"] = last
            if progress is not None:
                progress(last, total)
            stops = stop_after is not None and last - begun >= stop_after and last < total
            if stops or last == total or time.monotonic() - saved_at > _SAVE_SECONDS:
                entropy.flush()
                token_index.write_record(folder, record)
                saved_at = time.monotonic()
            if stops:
                return False
    finally:
        model.train(was_training)
    return True


def _batches(starts: numpy.ndarray, begun: int, total: int, vocabulary: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) documents of each forward: as many as fit `LOGITS_BYTES`, at most 64, at least one."""
    first = begun
    while first < total:
        last, width = first, 0
        while last < total and last - first < 64:
            width = max(width, int(starts[last + 1] - starts[last]))
            if last > first and (last + 1 - first) * width * vocabulary * 4 > LOGITS_BYTES:
                break
            last += 1
        yield first, last
        first = last


@torch.no_grad()
def _entropies(documents: list[numpy.ndarray], model: Any, top_k: int) -> list[numpy.ndarray]:
    """Entropy before each token but the first, of each document."""
    device = next(model.parameters()).device
    width = max(map(len, documents))
    ids = torch.zeros(len(documents), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, document in enumerate(documents):
        ids[row, : len(document)] = torch.from_numpy(numpy.array(document, dtype=numpy.int64))
        mask[row, : len(document)] = 1
    inputs = with_positions(model, {"input_ids": ids.to(device), "attention_mask": mask.to(device)})
    logits = model(**inputs, use_cache=False).logits
    found = []
    for row, document in enumerate(documents):
        values = top_k_entropy(logits[row, : len(document) - 1], top_k=top_k)
        found.append(values.cpu().numpy())
    return found
