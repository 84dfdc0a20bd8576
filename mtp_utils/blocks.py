"""Documents as tokens: the training stream, and evaluation blocks with the positions that count."""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from . import corpora, paths
from .records import write_atomic

CONTEXT = 256
MIN_CONTEXT = 32  # tokens before and including a scored position
END = "<|endoftext|>"
CLASSES = ("inside a word", "word start", "white space", "punctuation")


@dataclass(frozen=True)
class Blocks:
    """Evaluation text of one corpus: one window a document, right-padded.

    tokens: (documents, CONTEXT) int64; mask: the real tokens; scored: positions t that count for every offset up to
    `horizon` (t + horizon lies in the document, t has MIN_CONTEXT tokens of context; translation: labels on the German
    side). `labels[:, t, k - 1]` is token t + k. `classes`: (documents, CONTEXT) index into CLASSES of each token.
    """

    corpus: str
    split: str
    horizon: int
    documents: tuple[str, ...]
    clusters: tuple[str, ...]
    rates: tuple[float | None, ...]
    tokens: torch.Tensor
    mask: torch.Tensor
    scored: torch.Tensor
    classes: torch.Tensor
    fingerprint: str


def encode(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def stream(corpus: str, split: str, tokenizer) -> np.ndarray:
    """All documents of a split as one uint16 array, each preceded by END; cached, because the controls count it too."""
    key = hashlib.sha256(
        json.dumps(
            [
                Path(corpora.__file__).read_text(encoding="utf-8"),
                corpora.translation.fingerprint(),
                {p: corpora.version(p) for p in corpora.PACKAGES},
                tokenizer.backend_tokenizer.to_str(),
                corpus,
                split,
            ]
        ).encode()
    ).hexdigest()
    path = paths.cache() / f"{corpus}-{split}-{key[:16]}.npy"
    if path.exists():
        return np.load(path, allow_pickle=False)
    end = tokenizer.convert_tokens_to_ids(END)
    ids = []
    for one in encode(tokenizer, [d.text for d in corpora.documents(corpus, split)]):
        ids.append(end)
        ids.extend(one)
    array = np.array(ids, dtype=np.uint16)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getvalue())
    return array


def training_blocks(split: str, tokenizer, n: int, seed: int) -> np.ndarray:
    """(n, CONTEXT) uint16 of a split: the corpora in turn, each one's blocks in a new random order every epoch."""
    found = np.empty((n, CONTEXT), dtype=np.uint16)
    for c, corpus in enumerate(corpora.CORPORA):
        tokens = stream(corpus, split, tokenizer)
        rows = tokens[: len(tokens) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
        wanted = len(range(c, n, 3))
        order = np.concatenate(
            [np.random.default_rng([seed, c, epoch]).permutation(len(rows)) for epoch in range(wanted // len(rows) + 1)]
        )
        found[c::3] = rows[order[:wanted]]
    return found


def evaluation_blocks(
    corpus: str, split: str, tokenizer, *, n_documents: int, positions_per_document: int, horizon: int, seed: int = 0
) -> Blocks:
    """One window a cluster from `n_documents` clusters, with `positions_per_document` scored positions drawn in each."""
    rng = np.random.default_rng([seed, corpora.CORPORA.index(corpus), corpora.SPLITS.index(split)])
    clusters = {}
    for d in corpora.documents(corpus, split):
        clusters.setdefault(d.cluster, []).append(d)
    names = sorted(clusters)
    chosen = []
    for i in rng.permutation(len(names)):
        members = clusters[names[i]]
        found = _window(members[rng.integers(len(members))], tokenizer, horizon, positions_per_document, rng)
        if found is not None:
            chosen.append(found)
        if len(chosen) == n_documents:
            break
    if len(chosen) < n_documents:
        raise ValueError(f"{corpus}/{split} has {len(chosen)} documents long enough; n_documents={n_documents} were asked for")
    return _pack(corpus, split, horizon, chosen, tokenizer)


def _window(document, tokenizer, horizon: int, n_positions: int, rng):
    """(document, ids, scored positions) or None where too few positions are eligible."""
    encoding = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True)
    ids, starts = encoding["input_ids"], [a for a, _ in encoding["offset_mapping"]]
    first = 0
    if document.rate is None and len(ids) > CONTEXT:  # a long file: anywhere in it, as in the training stream
        first = int(rng.integers(len(ids) - CONTEXT + 1))
    ids, starts = ids[first : first + CONTEXT - 1], starts[first : first + CONTEXT - 1]
    inside = np.zeros(len(ids) + 1, dtype=bool)  # +1: END stands before the first token
    for a, b in document.spans:
        inside[1:] |= [a <= s < b for s in starts]
    ids = [tokenizer.convert_tokens_to_ids(END), *ids]
    eligible = [t for t in range(MIN_CONTEXT - 1, len(ids) - horizon) if inside[t + 1 : t + 1 + horizon].all()]
    if len(eligible) < n_positions:
        return None
    return document, ids, sorted(rng.choice(eligible, n_positions, replace=False).tolist())


def _pack(corpus: str, split: str, horizon: int, chosen: list, tokenizer) -> Blocks:
    tokens = torch.zeros(len(chosen), CONTEXT, dtype=torch.int64)
    mask, scored = torch.zeros_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.bool)
    classes = torch.zeros_like(tokens)
    for row, (_, ids, positions) in enumerate(chosen):
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = True
        scored[row, positions] = True
        classes[row, : len(ids)] = torch.tensor(token_classes(ids, tokenizer))
    names = tuple(d.id for d, _, _ in chosen)
    digest = hashlib.sha256(repr((corpus, split, horizon, names)).encode() + tokens.numpy().tobytes() + scored.numpy().tobytes())
    return Blocks(
        corpus,
        split,
        horizon,
        names,
        tuple(d.cluster for d, _, _ in chosen),
        tuple(d.rate for d, _, _ in chosen),
        tokens,
        mask,
        scored,
        classes,
        digest.hexdigest(),
    )


def token_classes(ids: list[int], tokenizer) -> list[int]:
    """Index into CLASSES of each token, from its text and the one before it."""
    found, before = [], " "
    for text in tokenizer.batch_decode([[i] for i in ids]):
        if not text.strip():
            kind = 2
        elif text.strip()[0].isalnum() or text.strip()[0] == "_" or not text.isascii():
            kind = 0 if not text[0].isspace() and (before.isalnum() or before == "_") else 1
        else:
            kind = 3
        found.append(kind)
        before = text[-1:]
    return found
