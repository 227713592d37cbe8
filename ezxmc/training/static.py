"""A student distilled into one vector a token: what its vectors say of unlabelled documents, all of it free.

The start is the student's own answer to each token alone, centred, the frequent ones made small. Tuning then
moves the tokens so that the mean of a document's comes out where the student puts the document.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cosine_similarity, embedding_bag, kl_div, log_softmax, normalize, softmax

from ezxmc.errors import ModelError
from ezxmc.retrieval.encoder import BiEncoder
from ezxmc.retrieval.static import bags as bags_of

_TOKENS_AT_ONCE = 512
_SMOOTHING = 1e-3  # a token of this frequency counts half
_TEMPERATURE, _SCORES = 0.05, 2.0
_BATCH, _RATE, _DROPPED = 128, 3e-3, 0.1
_ALL_LABELS = 1000  # up to so many are scored; of more, each document's nearest
NEAREST = 100
_READ = {"input_ids", "attention_mask", "token_type_ids"}


def tokenizer_of(encoder: BiEncoder) -> Tokenizer:
    """A copy of a student's tokenizer, which neither cuts nor fills up.

    Raises:
        ModelError: It has none of the `tokenizers` package, or reads something else than rows of token ids.
    """
    found = getattr(encoder.runner.tokenizer, "backend_tokenizer", None)
    read = {name for name, value in encoder.features(["a"]).items() if isinstance(value, Tensor)}
    if not isinstance(found, Tokenizer) or not {"input_ids"} <= read <= _READ:
        raise ModelError(
            "a student of this kind has no vector for a token alone",
            "train one from a transformer encoder with a fast tokenizer",
        )
    tokenizer = Tokenizer.from_str(found.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def without_unused(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Tokenizer, list[int]]:
    """A tokenizer of many languages without the words that no text uses; another kind as it is.

    What is left of a unigram vocabulary are the pieces of the texts and all single characters: other words
    fall into these. multilingual-e5-small knows 250,002 pieces; some thousand texts use a tenth of them.

    Args:
        tokenizer: As `tokenizer_of` gives it.
        texts: Of the catalog.

    Returns:
        The tokenizer, and the former ids of its tokens, by their present ones.
    """
    told = json.loads(tokenizer.to_str())
    size = 1 + max(tokenizer.get_vocab().values())
    if told["model"]["type"] != "Unigram":
        return tokenizer, list(range(size))
    pieces = told["model"]["vocab"]
    used = {token for one in tokenizer.encode_batch_fast(list(texts)) for token in one.ids}
    special = {one["content"] for one in told["added_tokens"]}
    kept = [
        token
        for token, (piece, _) in enumerate(pieces)
        if token in used or piece in special or len(piece.removeprefix("▁")) <= 1
    ]
    place = {token: i for i, token in enumerate(kept)}
    told["model"]["vocab"] = [pieces[token] for token in kept]
    told["model"]["unk_id"] = place[told["model"]["unk_id"]]
    for one in told["added_tokens"]:
        if one["id"] not in place:  # beside the vocabulary
            place[one["id"]] = len(kept)
            kept.append(one["id"])
        one["id"] = place[one["id"]]
    for one in told["post_processor"]["special_tokens"].values():
        one["ids"] = [place[token] for token in one["ids"]]
    return Tokenizer.from_str(json.dumps(told)), kept


def token_vectors(encoder: BiEncoder, tokenizer: Tokenizer, tokens: Sequence[int]) -> Tensor:
    """What a student makes of each token alone, between what it puts around any text.

    Args:
        encoder: The student.
        tokenizer: Its own.
        tokens: V ids.

    Returns:
        (V, D) float32 unit rows.
    """
    one, whole = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
    place = next(i for i in range(len(whole)) if whole[i : i + len(one)] == one)
    before, after = whole[:place], whole[place + len(one) :]
    given, model, parts = encoder.features(["a"]), encoder.runner.eval(), []
    with torch.inference_mode():
        for start in range(0, len(tokens), _TOKENS_AT_ONCE):
            some = tokens[start : start + _TOKENS_AT_ONCE]
            ids = torch.tensor([[*before, token, *after] for token in some], device=model.device)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            inputs["token_type_ids"] = torch.zeros_like(ids)
            # Of what is no tensor, all texts have the same.
            features = {name: inputs.get(name, value) for name, value in given.items()}
            rows = model(features)["sentence_embedding"]
            parts.append(rows[:, : encoder.dimension].float().cpu())
    return normalize(torch.cat(parts), dim=1).clone()


def weighted(vectors: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
    """Token vectors centred, and each times s / (s + its frequency), s = .001: SIF weights.

    Arora et al., "A simple but tough-to-beat baseline for sentence embeddings", ICLR 2017.

    Args:
        vectors: (V, D).
        rows: Token ids of documents, which tell frequencies.
    """
    counts = torch.bincount(bags_of(rows)[0], minlength=len(vectors)).float()
    often = counts / counts.sum().clamp_min(1)
    used = counts > 0
    centre = vectors[used].mean(dim=0) if used.any() else vectors.mean(dim=0)
    return (vectors - centre) * (_SMOOTHING / (_SMOOTHING + often))[:, None]


def tuned(
    weights: Tensor,
    rows: Sequence[Sequence[int]],
    wanted: NDArray[np.float32],
    labels: NDArray[np.float32],
    *,
    nearest: NDArray[np.int64] | None = None,
    epochs: int = 12,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Token vectors whose unit means are near the student's document vectors, in direction and in scores.

    Minimises, by Adam, with a tenth of the tokens left out at random and a rate that falls to 0::

        1 − cos(x, t) + 2 KL(softmax(t·L / .05) ‖ softmax(x·L / .05))

    x being a document's unit mean, t the student's vector of it and L the label vectors. The weight of 2 was
    chosen on debtags' development documents (tests/bench/README.md).

    Args:
        weights: (V, D) the start.
        rows: Token ids of N documents.
        wanted: (N, D) unit rows, the student's vectors of them.
        labels: (L, D) label vectors.
        nearest: (N, K) rows of `labels` that are scored; all of them by default.
        epochs: Passes over the documents.
        seed: Of their order, and of what is left out.
        progress: Called with (documents seen, all).

    Returns:
        (V, D) float32; a token in none of the documents keeps its vector.
    """
    texts = [np.asarray(row, dtype=np.int64) for row in rows]
    kept = [place for place, text in enumerate(texts) if len(text)]
    if not kept:
        return weights
    seen, flat = np.unique(np.concatenate([texts[place] for place in kept]), return_inverse=True)
    cuts = np.cumsum([len(texts[place]) for place in kept])[:-1]
    bags = np.split(flat, cuts)
    aims, titles = torch.from_numpy(wanted[kept]), torch.from_numpy(labels)
    near = None if nearest is None else torch.from_numpy(nearest[kept])
    part = weights[seen].clone().requires_grad_()
    optimizer = torch.optim.Adam([part], lr=_RATE)
    draw = torch.Generator().manual_seed(seed)
    total = epochs * len(kept)
    done = 0
    for _ in range(epochs):
        order = torch.randperm(len(kept), generator=draw)
        for batch in order.split(_BATCH):  # type: ignore[no-untyped-call]
            for group in optimizer.param_groups:
                group["lr"] = _RATE * (1 - done / total)
            ids, begins = _left([bags[place] for place in batch.tolist()], draw)
            made = embedding_bag(ids, part, begins, mode="mean")
            aim = aims[batch]
            others = titles if near is None else titles[near[batch]]
            loss = (1 - cosine_similarity(made, aim)).mean() + _SCORES * _apart(
                _scored(normalize(made, dim=1), others), _scored(aim, others)
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += len(batch)
            if progress:
                progress(done, total)
    found = weights.clone()
    found[seen] = part.detach()
    return found


def _left(bags: Sequence[NDArray[np.int64]], draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """The tokens of a batch without a tenth of them, and where each document's begin."""
    ids = torch.from_numpy(np.concatenate(bags))
    of = torch.from_numpy(np.repeat(np.arange(len(bags)), [len(bag) for bag in bags]))
    stay = torch.rand(len(ids), generator=draw) >= _DROPPED
    lengths = torch.bincount(of[stay], minlength=len(bags))
    return ids[stay], lengths.cumsum(0) - lengths


def _scored(vectors: Tensor, labels: Tensor) -> Tensor:
    """Scores of N documents over all labels, (L, D), or over their own, (N, K, D)."""
    return vectors @ labels.T if labels.ndim == 2 else (labels @ vectors[:, :, None])[:, :, 0]


def _apart(scores: Tensor, wanted: Tensor) -> Tensor:
    known, told = log_softmax(scores / _TEMPERATURE, dim=1), softmax(wanted / _TEMPERATURE, dim=1)
    return kl_div(known, told, reduction="batchmean")


def scored_labels(total: int) -> bool:
    """Whether so many labels are all scored while tuning."""
    return total <= _ALL_LABELS
