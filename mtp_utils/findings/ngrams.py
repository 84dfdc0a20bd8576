"""Controls: what counting alone predicts of the token k ahead (unigram, skip-bigram, interpolated skip-trigram)."""

import numpy as np

PREDICTORS = ("unigram", "skip_bigram", "skip_trigram")
CACHED = "cache_ngram"  # longer contexts, and the document's own words
CONTROLS = (*PREDICTORS, CACHED)


def ngram_probs(stream: np.ndarray, begins: np.ndarray, contexts: np.ndarray, offset: int, vocab: int) -> dict[str, np.ndarray]:
    """P(x[t+k]), P(x[t+k] | x[t]) and P(x[t+k] | x[t-1], x[t]) counted on `stream`, with Witten-Bell interpolation
    (Bell, Cleary and Witten 1990): P(w|c) = (n(c, w) + d(c) P'(w)) / (n(c) + d(c)), d(c) the number of distinct
    followers of c and P' the next shorter context (at the end: uniform).

    Args: stream: (N,) token ids; begins: where in it documents begin, no pair crosses one; contexts: (Q, 2) the tokens at t-1
    and t.
    Returns {predictor: (Q, vocab) float64 probabilities, each row sums to 1}.
    """
    document = np.searchsorted(begins, np.arange(len(stream)), side="right")
    inside = document[offset + 1 :] == document[: len(stream) - offset - 1]  # from t - 1 to t + k
    before, last, label = (stream[a : len(stream) - offset - 1 + a].astype(np.int64)[inside] for a in (0, 1, offset + 1))
    unigram = _mix(np.bincount(label, minlength=vocab)[None], np.full((1, vocab), 1 / vocab))
    bigram = _mix(_counts(last, contexts[:, 1], label, vocab), unigram)
    trigram = _mix(_counts(before * vocab + last, contexts[:, 0] * vocab + contexts[:, 1], label, vocab), bigram)
    return {"unigram": np.broadcast_to(unigram, bigram.shape), "skip_bigram": bigram, "skip_trigram": trigram}


def _counts(seen: np.ndarray, asked: np.ndarray, label: np.ndarray, vocab: int) -> np.ndarray:
    """(Q, vocab): how often each label follows each asked context; only asked contexts are ever counted."""
    unique, inverse = np.unique(asked, return_inverse=True)
    place = np.minimum(np.searchsorted(unique, seen), len(unique) - 1)
    hit = unique[place] == seen
    table = np.bincount(place[hit] * vocab + label[hit], minlength=len(unique) * vocab)
    return table.reshape(len(unique), vocab)[inverse]


def _mix(counts: np.ndarray, shorter: np.ndarray) -> np.ndarray:
    distinct = (counts > 0).sum(1, keepdims=True)
    total = counts.sum(1, keepdims=True)
    return (counts + np.maximum(distinct, total == 0) * shorter) / (total + np.maximum(distinct, total == 0))


ORDERS, WEIGHTS = (1, 2, 3), (0.0, 1.0, 4.0, 16.0, 64.0, 256.0)  # tokens of context; what a token of the document counts


class Counts:
    """What follows each asked context, `offset` tokens on, in a text and in the document before it: a cache n-gram model (Kuhn
    and De Mori 1990). contexts: (Q, n) tokens up to t; prefixes: (Q) arrays, the document up to t."""

    def __init__(self, stream, begins, contexts: np.ndarray, prefixes: list, offset: int, vocab: int):
        document = np.searchsorted(begins, np.arange(len(stream)), side="right")
        self.vocab, self.levels = vocab, []
        for n in range(contexts.shape[1] + 1):
            reach = max(n - 1, 0) + offset
            inside = document[reach:] == document[: len(document) - reach]  # from the context's first token to the label
            code, asked = np.zeros(inside.sum(), np.int64), np.zeros(len(contexts), np.int64)
            for i in range(n):
                code = code * vocab + stream[i : len(document) - reach + i].astype(np.int64)[inside]
                asked = asked * vocab + contexts[:, contexts.shape[1] - n + i]
            counts = _counts(code, asked, stream[reach:].astype(np.int64)[inside], vocab).astype(np.int32)
            own = np.zeros_like(counts)
            for row, (context, prefix) in enumerate(zip(contexts[:, contexts.shape[1] - n :], prefixes, strict=True)):
                ends = np.arange(max(n - 1, 0), len(prefix) - offset)
                same = np.all([prefix[ends - n + 1 + i] == context[i] for i in range(n)], axis=0) if n else slice(None)
                np.add.at(own[row], prefix[ends[same] + offset], 1)
            self.levels.append((counts, own))

    def probs(self, order: int, weight: float) -> np.ndarray:
        """(Q, vocab): contexts of up to `order` tokens, interpolated as in ngram_probs; a token of the document counts `weight`
        times."""
        found = np.full((1, self.vocab), 1 / self.vocab)
        for counts, own in self.levels[: order + 1]:
            found = _mix(counts + weight * own, found)
        return found

    def best(self, labels: np.ndarray) -> tuple[int, float]:
        """The (order, weight) of least cross-entropy on these labels (Q,)."""
        rows = np.arange(len(labels))
        losses = {(n, w): -np.log(self.probs(n, w)[rows, labels]).mean() for n in ORDERS for w in WEIGHTS}
        return min(losses, key=losses.get)
