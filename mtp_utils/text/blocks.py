"""Documents as tokens: the training stream, and evaluation blocks with the positions that count."""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ..base import paths
from ..base.files import sha256
from ..base.records import read_arrays, write_arrays
from . import catalogues, corpora, hub, own, packages
from .documents import SPLITS
from .tokens import END, controls_of, encode, encode_with_starts, front_of, token_classes, vocabulary_of

CONTEXT = 256
MIN_CONTEXT = 32  # tokens before and including a scored position
LEAST = 10  # documents of the user's text, below which nothing is measured


@dataclass(frozen=True)
class Blocks:
    """Evaluation text of one corpus: one window a document, right-padded.

    tokens: (documents, CONTEXT) int64; mask: the real tokens; scored: positions t that count for every offset up to
    `horizon` (t + horizon lies in the document, t has MIN_CONTEXT tokens of context; translation: labels on the German
    side). `classes`: (documents, CONTEXT) index into CLASSES of each token.
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


def stream(corpus: str, split: str, tokenizer) -> np.ndarray:
    """All documents of a split as one array (uint16, or uint32 for larger vocabularies), each preceded by `front_of`; cached,
    because the controls count it too."""
    return _stream(corpus, split, tokenizer)["ids"]


def begins(corpus: str, split: str, tokenizer) -> np.ndarray:
    """Where in `stream` documents begin, (documents,)."""
    return _stream(corpus, split, tokenizer)["begins"]


def _stream(corpus: str, split: str, tokenizer) -> dict[str, np.ndarray]:
    def compute() -> dict[str, np.ndarray]:
        front, plain, ids, starts = front_of(tokenizer), _plain(corpus, tokenizer), [], []
        for one in encode(tokenizer, [d.text for d in corpora.documents(corpus, split)], plain):
            starts.append(len(ids))
            ids += [*front, *one]
        ids = np.array(ids, dtype=np.uint16 if vocabulary_of(tokenizer) <= 2**16 else np.uint32)
        return {"ids": ids, "begins": np.array(starts, np.int64) if plain or not front else np.flatnonzero(ids == front[0])}

    return _cached(f"stream-{corpus}-{split}", tokenizer, {}, compute)


def _plain(corpus: str, tokenizer) -> bool:
    """Whether control tokens that a text spells out are plain characters: not where a tokenizer that has END alone, as the
    ladder's, reads the embedded corpora, for one docstring spells it out, and the ladder was trained on it as an end."""
    return not corpora.embedded(corpus) or list(controls_of(tokenizer)) != [END]


def _cached(name: str, tokenizer, settings: dict, compute) -> dict[str, np.ndarray]:
    """`compute()`, or what it gave before from the same text: reading and tokenising it takes longer than most measurements."""
    texts = [text_key(), tokenizer.backend_tokenizer.to_str(), front_of(tokenizer), name, settings]
    key = sha256(json.dumps(texts, sort_keys=True).encode())
    path = paths.cache() / f"{name}-{key[:16]}.safetensors"
    found = read_arrays(path, key)
    if found is None:
        write_arrays(path, compute(), {"key": key})
        found = read_arrays(path, key)
    return found.values


def text_key() -> list:
    """What a run's documents and blocks depend on: the code that makes them, and the user's file, the commits of the hub, or the
    packages that texts are read from and those that are left out."""
    if corpora.names() == (corpora.TEXT,):
        return [*_sources(), own.pieces()[1]]
    if not corpora.embedded(corpora.names()[0]):
        return [*_sources(), *hub.fingerprint()]
    people = catalogues.fingerprint() if "catalogues" in corpora.names() else []
    return [*_sources(), *people, packages.versions(), corpora.frozen().get("dropped", {})]


@lru_cache(maxsize=1)
def _sources() -> tuple[str, ...]:
    """Of this room, the grammar among it."""
    room = Path(__file__).parent
    return tuple(path.read_text("utf-8") for path in sorted((*room.rglob("*.py"), *room.glob("grammar/*.json"))))


def stream_digest(corpus: str, split: str, tokenizer) -> str:
    """sha256 of a stream."""
    return sha256(stream(corpus, split, tokenizer).tobytes())


def training_blocks(split: str, tokenizer, n: int, seed: int) -> np.ndarray:
    """(n, CONTEXT) of a split: the corpora in turn, each one's blocks in a new random order every epoch."""
    names, found = corpora.names(), None
    for c, corpus in enumerate(names):
        tokens = stream(corpus, split, tokenizer)
        rows = tokens[: len(tokens) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
        if not len(rows):
            raise ValueError(f"{corpus}/{split} has {len(tokens)} tokens; a block needs {CONTEXT}: give a longer text")
        found = np.empty((n, CONTEXT), dtype=tokens.dtype) if found is None else found
        wanted = len(range(c, n, len(names)))
        order = np.concatenate(
            [np.random.default_rng([seed, c, epoch]).permutation(len(rows)) for epoch in range(wanted // len(rows) + 1)]
        )
        found[c :: len(names)] = rows[order[:wanted]]
    return found


def documents_in(block: torch.Tensor, tokenizer, split: str = "heads") -> list[str]:
    """Names of the documents that a training block (CONTEXT,) holds parts of; none where it is no block of that split."""
    for corpus in corpora.names() if tokenizer is not None else ():
        tokens = stream(corpus, split, tokenizer)
        rows = tokens[: len(tokens) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
        if len(block) == CONTEXT and len(found := (rows == block.numpy()).all(1).nonzero()[0]):
            starts = begins(corpus, split, tokenizer)
            first, last = np.searchsorted(starts, [found[0] * CONTEXT, (found[0] + 1) * CONTEXT - 1], side="right") - 1
            return [d.id for d in corpora.documents(corpus, split)[max(0, first) : last + 1]]
    return []


def evaluation_blocks(
    corpus: str, split: str, tokenizer, *, n_documents: int, positions_per_document: int, horizon: int, seed: int = 0
) -> Blocks:
    """One window a cluster from `n_documents` clusters, with `positions_per_document` scored positions drawn in each."""
    size = {"n_documents": n_documents, "n_positions": positions_per_document, "horizon": horizon, "seed": seed}

    def compute() -> dict[str, np.ndarray]:
        return _windows(corpus, split, tokenizer, **size)

    found = dict(_cached(f"blocks-{corpus}-{split}", tokenizer, size, compute))
    names = json.loads(found.pop("names").tobytes())
    tensors = {name: torch.from_numpy(values) for name, values in found.items()}
    digest = hashlib.sha256(repr((corpus, split, horizon, tuple(names["documents"]))).encode())
    digest.update(found["tokens"].tobytes() + found["scored"].tobytes())
    return Blocks(corpus, split, horizon, **{n: tuple(x) for n, x in names.items()}, **tensors, fingerprint=digest.hexdigest())


def evaluation_text(profile, tokenizer, seed: int = 0) -> dict[str, Blocks]:
    """corpus -> the test blocks of a profile: what every notebook scores."""
    size = {"n_documents": profile.n_documents, "positions_per_document": profile.positions_per_document}
    return {c: evaluation_blocks(c, "test", tokenizer, **size, horizon=profile.horizon, seed=seed) for c in profile.corpora}


def _windows(corpus: str, split: str, tokenizer, n_documents: int, n_positions: int, horizon: int, seed: int) -> dict:
    """tokens, mask, scored, classes (documents, CONTEXT); `names`: documents, clusters and rates as JSON in bytes."""
    rng = np.random.default_rng([seed, corpora.KNOWN.index(corpus), SPLITS.index(split)])
    clusters, plain = {}, _plain(corpus, tokenizer)
    for d in corpora.documents(corpus, split):
        clusters.setdefault(d.cluster, []).append(d)
    members, chosen = [clusters[name] for name in sorted(clusters)], []
    for i in rng.permutation(len(members)):
        found = _window(members[i][rng.integers(len(members[i]))], tokenizer, plain, horizon, n_positions, rng)
        if found is not None:
            chosen.append(found)
        if len(chosen) == n_documents:
            return _pack(chosen, tokenizer)
    if corpus == corpora.TEXT and len(chosen) >= LEAST:  # as many as there are
        return _pack(chosen, tokenizer)
    longer = f"at least {LEAST} are needed: give a longer text"
    asked = longer if corpus == corpora.TEXT else f"n_documents={n_documents} were asked for"
    raise ValueError(f"{corpus}/{split} has {len(chosen)} documents long enough; {asked}")


def _window(document, tokenizer, plain: bool, horizon: int, n_positions: int, rng):
    """(document, ids, scored positions) or None where too few positions are eligible."""
    ids, starts = encode_with_starts(tokenizer, document.text, plain)
    front, first = front_of(tokenizer), 0
    if document.rate is None and len(ids) > CONTEXT:  # a long file: anywhere in it, as in the training stream
        first = int(rng.integers(len(ids) - CONTEXT + 1))
    ids, starts = (x[first : first + CONTEXT - len(front)] for x in (ids, starts))
    eligible = _eligible(document, len(front), starts, horizon)
    if len(eligible) < n_positions:
        return None
    return document, [*front, *ids], sorted(rng.choice(eligible, n_positions, replace=False).tolist())


def _eligible(document, front: int, starts: list[int], horizon: int) -> list[int]:
    """Positions of a window that may be scored; starts: of its tokens in the text, behind `front` tokens that are none of it."""
    inside = np.zeros(front + len(starts), dtype=bool)
    for a, b in document.spans:
        inside[front:] |= [a <= s < b for s in starts]
    return [t for t in range(MIN_CONTEXT - 1, len(inside) - horizon) if inside[t + 1 : t + 1 + horizon].all()]


def everywhere(blocks: Blocks, tokenizer) -> Blocks:
    """The same windows with all eligible positions scored, not a few drawn ones: for what needs no marginal."""

    def compute() -> dict[str, np.ndarray]:
        known = {d.id: d for d in corpora.documents(blocks.corpus, blocks.split)}
        front, plain, scored = len(front_of(tokenizer)), _plain(blocks.corpus, tokenizer), np.zeros(blocks.scored.shape, bool)
        for row, name in enumerate(blocks.documents):
            ids, starts = encode_with_starts(tokenizer, known[name].text, plain)
            here = blocks.tokens[row, blocks.mask[row]].tolist()[front:]
            first = next(i for i in range(len(ids)) if ids[i : i + len(here)] == here)
            scored[row, _eligible(known[name], front, starts[first : first + len(here)], blocks.horizon)] = True
        return {"scored": scored}

    found = _cached(f"eligible-{blocks.corpus}-{blocks.split}", tokenizer, {"blocks": blocks.fingerprint}, compute)["scored"]
    digest = hashlib.sha256(blocks.fingerprint.encode() + found.tobytes()).hexdigest()
    return replace(blocks, scored=torch.from_numpy(found), fingerprint=digest)


def _pack(chosen: list, tokenizer) -> dict[str, np.ndarray]:
    tokens, classes = (np.zeros((len(chosen), CONTEXT), np.int64) for _ in range(2))
    mask, scored = (np.zeros((len(chosen), CONTEXT), bool) for _ in range(2))
    for row, (_, ids, positions) in enumerate(chosen):
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids)] = True
        scored[row, positions] = True
        classes[row, : len(ids)] = token_classes(ids, tokenizer)
    texts = [d for d, _, _ in chosen]
    names = {"documents": [d.id for d in texts], "clusters": [d.cluster for d in texts], "rates": [d.rate for d in texts]}
    packed = np.frombuffer(json.dumps(names).encode(), np.uint8)
    return {"tokens": tokens, "mask": mask, "scored": scored, "classes": classes, "names": packed}
