"""Trees of paths below each position, enumerated: top-k per node. Whole paths by mass: mass.py. Sampling: sampling.py.

An engine (packed.Packed, expanded.Expanded or reference.Reference) computes p(. | prefix, path) for a level of paths; nothing
here knows how, and nothing holds more than one block of (paths, vocab).
"""

from itertools import pairwise

import torch

PATHS_AT_ONCE = 2**19  # bookkeeping of paths that may be held at once


def precise(device):
    """float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


class Level:
    """Paths of one length below the wanted positions ("roots"), sorted by root.

    root (n,) index of the wanted position; prob (n,) weight of the path; token (n,) its last token; parent, index (n,)
    the level above and the row there; kv: keys and values per layer, where an engine keeps them.
    """

    def __init__(self, root, prob, token=None, parent=None, index=None, depth=0):
        self.root, self.prob, self.token, self.parent, self.index, self.depth = root, prob, token, parent, index, depth
        self.kv = []

    def take(self, rows):
        """Those paths only; mask or index (m,)."""
        index, token = (None if x is None else x[rows] for x in (self.index, self.token))
        return Level(self.root[rows], self.prob[rows], token, self.parent, index, self.depth)

    def split(self, size):
        return [self.take(slice(start, start + size)) for start in range(0, len(self.root), size)]

    def by_root(self):
        """(first, last) of each root's paths."""
        edges = [0, *(self.root.diff().nonzero()[:, 0] + 1).tolist(), len(self.root)]
        return [(first, last) for first, last in pairwise(edges) if first < last]

    def lineage(self, start, stop):
        """(ancestor level, its rows (stop - start,)) from the parent up to depth 1."""
        found, level, rows = [], self.parent, self.index[start:stop]
        while level.depth:
            found.append((level, rows))
            level, rows = level.parent, level.index[rows]
        return found

    def path(self, start, stop):
        """Tokens of each path, (stop - start, depth)."""
        if self.depth == 0:
            return self.root.new_empty(stop - start, 0)
        tokens = [level.token[rows] for level, rows in reversed(self.lineage(start, stop))]
        return torch.stack([*tokens, self.token[start:stop]], 1)


class Sums:
    """Running sums over paths at each root: probability (P, V), captured mass, paths, conditional entropy (P,); `ahead` (P,): by
    how much the first token leads the second in what was enumerated, where samples are added to it."""

    def __init__(self, prob, with_entropy):
        n_roots, dtype, device = len(prob), prob.dtype, prob.device
        self.prob = prob  # of zeros
        self.mass = torch.zeros(n_roots, dtype=precise(device), device=device)
        self.paths = torch.zeros(n_roots, dtype=torch.int64, device=device)
        self.entropy = torch.zeros(n_roots, dtype=dtype, device=device) if with_entropy else None
        self.ahead = None

    def lead(self, rows=slice(None)):
        """By how much the most probable token leads the next one, so far (P,)."""
        top = self.prob[rows].topk(min(2, self.prob.shape[1])).values
        return top[:, 0] - (top[:, 1] if top.shape[1] > 1 else -torch.inf)

    def add(self, root, weight, p):
        """prob[root] += weight * p, for root (m,) ascending, p (m, V): a matrix product per slice, few roots wide."""
        p, weight = p.to(self.prob.dtype), weight.to(self.prob.dtype)
        size = 128 if p.device.type == "cpu" else 512
        for start, some in zip(range(0, len(root), size), root.cpu().split(size), strict=True):
            first, last = int(some[0]), int(some[-1])
            rows = slice(start, start + len(some))
            spread = p.new_zeros(last - first + 1, len(some))
            spread[root[rows] - first, torch.arange(len(some), device=p.device)] = weight[rows]
            self.prob[first : last + 1].addmm_(spread, p[rows])
        if self.entropy is not None:
            self.entropy.index_add_(0, root, weight * entropy_of(p))


def entropy_of(p):
    """H of p over its last dimension, nats; [measured] a quarter of the time of torch.special.entr, which is not vectorised."""
    return p.clamp_min(torch.finfo(p.dtype).tiny).log_().mul_(p).sum(-1).neg_()


def distributions(engine, level, keep=False):
    """Yield (start, stop, p (stop - start, V)), float64 for float64 models, else float32.

    Written over the logits, which an engine yields for good, where they have that dtype: [measured, 50k vocabulary] a
    quarter of the time, most of which is fresh memory.
    """
    for start, stop, logits in engine.logits_of(level, keep):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        here = logits if logits.dtype == dtype and logits.is_contiguous() else None
        p = torch.softmax(logits, -1, dtype=dtype, out=here)
        bad = p[:, 0].isnan()
        if bad.any():
            row, column = engine.where[level.root[start:stop][bad][0]].tolist()
            raise ValueError(f"non-finite logits at (row, position) ({row}, {column}), {level.depth} tokens further on")
        yield start, stop, p


def children(engine, level, choose):
    """The level below: choose(start, stop, p) -> parent row relative to start, token, p(token), each (m,)."""
    index, token, prob = [level.root[:0]], [level.root[:0]], [level.prob[:0]]
    for start, stop, p in distributions(engine, level, keep=True):
        row, chosen, p_chosen = choose(start, stop, p)
        index.append(row + start)
        token.append(chosen)
        prob.append(p_chosen.to(level.prob.dtype))
    index = torch.cat(index)
    return Level(
        level.root[index], level.prob[index] * torch.cat(prob), torch.cat(token), level, index, level.depth + 1
    )


def accumulate(engine, leaves, sums, enumerated=True):
    for start, stop, p in distributions(engine, leaves):
        sums.add(leaves.root[start:stop], leaves.prob[start:stop], p)
    if leaves.depth:
        sums.paths += leaves.root.bincount(minlength=len(sums.paths))
    if enumerated:
        sums.mass.index_add_(0, leaves.root, leaves.prob.to(sums.mass.dtype))


def best(p, k):
    """The k largest of each row of p (m, V), flat: row, token, p, each (m * k,)."""
    m, vocab = p.shape
    top, token = p.topk(k) if k < vocab else (p, torch.arange(vocab, device=p.device).expand(m, -1))
    return torch.arange(m, device=p.device).repeat_interleave(k), token.reshape(-1), top.reshape(-1)


def by_top_k(engine, roots, offset, k, sums):
    """Every node's k best children, down to `offset - 1` tokens: k**(offset - 1) paths."""
    inner = sum(k**d for d in range(1, offset - 1))
    group = max(1, min(engine.capacity // max(1, inner), PATHS_AT_ONCE // k ** (offset - 1)))
    for level in roots.split(group):
        for _ in range(offset - 1):
            level = children(engine, level, lambda start, stop, p: best(p, k))
        accumulate(engine, level, sums)
