"""Controls: what counting alone predicts of the token k ahead (unigram, skip-bigram, interpolated skip-trigram)."""

import numpy as np

PREDICTORS = ("unigram", "skip_bigram", "skip_trigram")


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
