"""Counting as a predictor of the token k ahead: up to three tokens of context, in a text and the document before, interpolated.

Sparse: of a context only what follows it is held, so neither a large vocabulary nor many positions cost much.
"""

from dataclasses import dataclass

import numpy as np

PREDICTORS = ("unigram", "skip_bigram", "skip_trigram")
CACHED = "cache_ngram"  # longer contexts, and the document's own words
CONTROLS = (*PREDICTORS, CACHED)
PLAIN = {predictor: (order, 0.0) for order, predictor in enumerate(PREDICTORS)}  # as models of Counts
ORDERS, WEIGHTS = (1, 2, 3), (0.0, 1.0, 4.0, 16.0, 64.0, 256.0)  # tokens of context; what a token of the document counts
TOP = 5  # ranks below this are exact


class Counts:
    """What follows the last tokens of each prefix, `offset` tokens on: in a text, and in the prefix itself.

    With Witten-Bell interpolation (Bell, Cleary and Witten 1990) P_n(w) = (c_n(w) + d_n P_{n-1}(w)) / (sum c_n + d_n): c_n(w)
    how often w follows the last n tokens, d_n how many different tokens do, and below n = 0 stands the uniform. A token of the
    prefix counts `weight` times: with weight 0 n-gram models, else a cache model (Kuhn and De Mori 1990).

    Args: stream: (N,) token ids; begins: where in it documents begin, nothing that is counted crosses one; prefixes: (Q,) arrays
    of at least three ids, a document up to t.
    """

    def __init__(self, stream: np.ndarray, begins: np.ndarray, prefixes: list[np.ndarray], offset: int, vocabulary: int):
        document = np.searchsorted(begins, np.arange(len(stream)), side="right")
        self.prefixes, self.offset, self.vocabulary, self.levels = prefixes, offset, vocabulary, []
        contexts = np.stack([prefix[-ORDERS[-1] :] for prefix in prefixes]).astype(np.int64)
        for n in range(ORDERS[-1] + 1):
            reach = max(n - 1, 0) + offset  # from the context's first token to the label
            inside = document[reach:] == document[: len(document) - reach]
            label = stream[reach:].astype(np.int64)[inside]
            if n == 0:
                self.unigram = np.bincount(label, minlength=vocabulary)
                continue
            code, asked = np.zeros(len(label), np.int64), np.zeros(len(contexts), np.int64)
            for i in range(n):
                code = code * vocabulary + stream[i : len(document) - reach + i].astype(np.int64)[inside]
                asked = asked * vocabulary + contexts[:, ORDERS[-1] - n + i]
            self.levels.append(_followers(code, label, asked, vocabulary))
        self._often = np.argsort(-self.unigram, kind="stable")[:TOP]
        self._seen = int((self.unigram > 0).sum())

    def scores(self, labels: np.ndarray, models: dict[str, tuple[int, float]]) -> dict[str, dict[str, np.ndarray]]:
        """Of each model (tokens of context, weight of the document's own) log_prob (nats), top1 and top5 of labels (Q, S)."""
        found = {name: {what: np.empty(labels.shape) for what in ("log_prob", "top1", "top5")} for name in models}
        for q, of_query in enumerate(labels):
            tokens, counts, own = self._at(q, of_query)
            at, chains = np.searchsorted(tokens, of_query), self._chains(counts, own, models.values())
            for name, (order, weight) in models.items():
                p = chains[weight][order]
                better = p[None] > p[at][:, None]
                earlier = (p[None] == p[at][:, None]) & (tokens[None] < of_query[:, None])  # a tie is the lower id's
                rank = (better | earlier).sum(1)
                for what, values in (("log_prob", np.log(p[at])), ("top1", rank < 1), ("top5", rank < TOP)):
                    found[name][what][q] = values
        return found

    def best(self, labels: np.ndarray) -> tuple[int, float]:
        """The model of least cross-entropy on these labels (Q,)."""
        models = {(n, w): np.empty(len(labels)) for n in ORDERS for w in WEIGHTS}
        for q, label in enumerate(labels):
            tokens, counts, own = self._at(q, labels[q : q + 1])
            at, chains = np.searchsorted(tokens, label), self._chains(counts, own, models)
            for (order, weight), losses in models.items():
                losses[q] = -np.log(chains[weight][order][at])
        return min(models, key=lambda model: models[model].mean())

    def _at(self, q: int, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every token that a context of query q was followed by, with its labels and the most frequent ones (T,), sorted; and
        by level their counts in the text and in the prefix, (levels, T) each."""
        prefix, offset = self.prefixes[q], self.offset
        ends, own_labels = np.arange(max(0, len(prefix) - offset)), []
        for n in range(len(self.levels) + 1):
            if n:
                ends = ends[ends >= n - 1]
                ends = ends[prefix[ends - n + 1] == prefix[len(prefix) - n]]
            own_labels.append(prefix[ends + offset])
        followers = [level.of(q) for level in self.levels]
        tokens = np.unique(np.concatenate([own_labels[0], labels, self._often, *(ids for ids, _ in followers)]))
        counts, own = (np.zeros((len(self.levels) + 1, len(tokens))) for _ in range(2))
        counts[0] = self.unigram[tokens]
        for n, (ids, times) in enumerate(followers, 1):
            counts[n, np.searchsorted(tokens, ids)] = times
        for n, ids in enumerate(own_labels):
            np.add.at(own[n], np.searchsorted(tokens, ids), 1.0)
        return tokens, counts, own

    def _chains(self, counts: np.ndarray, own: np.ndarray, models) -> dict[float, list[np.ndarray]]:
        """Of each weight among these models P_0, P_1, .. (T,), one made from the other, up to the most tokens of context."""
        chains = {}
        for weight in {weight for _, weight in models}:
            p, chain = np.full(counts.shape[1], 1 / self.vocabulary), []
            for n in range(1 + max(order for order, w in models if w == weight)):
                c = counts[n] + weight * own[n]
                total, distinct = c.sum(), (c > 0).sum()
                if n == 0:  # of tokens that are not among these too
                    total += self.unigram.sum() - counts[0].sum()
                    distinct += self._seen - (counts[0] > 0).sum()
                distinct = max(distinct, total == 0)
                p = (c + distinct * p) / (total + distinct)
                chain.append(p)
            chains[weight] = chain
        return chains


@dataclass(frozen=True)
class _Followers:
    """Of each query's context the tokens that follow it, and how often."""

    starts: np.ndarray
    ids: np.ndarray
    times: np.ndarray
    context_of: np.ndarray

    def of(self, q: int) -> tuple[np.ndarray, np.ndarray]:
        here = slice(self.starts[self.context_of[q]], self.starts[self.context_of[q] + 1])
        return self.ids[here], self.times[here]


def _followers(code: np.ndarray, label: np.ndarray, asked: np.ndarray, vocabulary: int) -> _Followers:
    """code (N,): the context before each label; asked (Q,): those that queries have. Only these are counted."""
    contexts, context_of = np.unique(asked, return_inverse=True)
    place = np.minimum(np.searchsorted(contexts, code), len(contexts) - 1)
    hit = contexts[place] == code
    pairs, times = np.unique(place[hit] * vocabulary + label[hit], return_counts=True)
    starts = np.searchsorted(pairs, np.arange(len(contexts) + 1) * vocabulary)
    return _Followers(starts, pairs % vocabulary, times, context_of)
