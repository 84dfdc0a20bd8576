"""Whole paths below each position, the most probable first, until they hold a given mass."""

import math

import torch

from ..base.refusals import about
from .expansion import PATHS_AT_ONCE, accumulate, children, distributions, precise

BEGINNINGS = 2**16  # of paths below one position, run through the model at once, if max_paths asks for no more
SUM_ERROR = 1e-5  # of probabilities that should sum to 1


class Overflow(Exception):
    """More paths below several roots than may be held at once: fewer roots, then."""


def by_mass(engine, roots, offset, mass, max_paths, sums):
    """Whole paths, best first, until `mass` is reached at each root.

    A path is at most as probable as its beginnings, so expanding all nodes of probability >= threshold finds all paths
    of probability >= threshold. The threshold falls by 4 where they do not hold the mass; inner nodes are run again,
    which costs a third more of them at most, and no list of children is kept. Where even paths as probable as the best one
    left out would be too many, that is said at once: a flat distribution never gets to list them.
    """
    threshold = torch.cat([at_mass(p, mass) for _, _, p in distributions(engine, roots)])
    while len(roots.root):
        parts = zip(roots.split(512), threshold.split(512), strict=True)
        todo = ~torch.cat([mass_round(engine, *part, offset, mass, max_paths, sums) for part in parts])
        roots, threshold = roots.take(todo), threshold[todo] / 4


def mass_round(engine, roots, threshold, offset, mass, max_paths, sums):
    """One threshold for each of a few roots; returns which of them reached the mass (and are summed)."""
    try:
        level, limit, best_left = above(engine, roots, threshold, offset, mass, max_paths, sums)
    except Overflow:
        half = (len(roots.root) + 1) // 2
        parts = zip(roots.split(half), threshold.split(half), strict=True)
        return torch.cat([mass_round(engine, *part, offset, mass, max_paths, sums) for part in parts])
    order = level.prob.argsort(descending=True, stable=True)
    level = level.take(order[level.root[order].argsort(stable=True)])  # by root, the most probable path first
    count = level.root.bincount(minlength=len(limit))
    first = (count.cumsum(0) - count)[level.root]  # where each path's root begins
    before = level.prob.cumsum(0) - level.prob
    needed = before - before[first] < mass
    held = torch.zeros_like(sums.mass).index_add_(0, level.root, level.prob)
    done = (held >= mass) | (count >= sums.prob.shape[1] ** (offset - 1)) | (limit < 1e-15)
    lacking = (mass - held - SUM_ERROR).clamp_min(0) / best_left.clamp_min(torch.finfo(best_left.dtype).tiny)
    least = (lacking.masked_fill(done, 0).index_add_(0, level.root, needed.to(lacking.dtype)))[roots.root].max().item()
    if least > max_paths:
        every = sums.prob.shape[1] ** (offset - 1)
        refuse(f"at least {about(math.ceil(min(least, every)))} are needed", mass, max_paths, every)
    accumulate(engine, level.take(needed & done[level.root]), sums)
    return done[roots.root]


def above(engine, roots, threshold, offset, mass, max_paths, sums):
    """Paths of probability >= threshold (of a lone root the max_paths + 1 best of them); the threshold by root (P,), and the
    probability of the best path or beginning below it (P,). Nothing larger than a block is held on the way."""
    level, limit = roots, torch.zeros_like(sums.mass, dtype=threshold.dtype)
    limit[roots.root] = threshold
    best_left = torch.zeros_like(limit, dtype=roots.prob.dtype)
    alone, kept = len(roots.root) == 1, max_paths + 1

    def choose(start, stop, p):
        nonlocal found
        p_path = level.prob[start:stop, None].to(p.dtype) * p
        root, is_leaf = level.root[start:stop], level.depth == offset - 2
        hit = p_path >= limit[root, None]
        row, token = hit.nonzero(as_tuple=True)
        if alone and is_leaf:
            row, token = few(row, token, p_path[row, token])
        found += len(row)
        if not alone and found > (PATHS_AT_ONCE if is_leaf else engine.capacity):
            raise Overflow
        if alone and not is_leaf and found > max(4 * max_paths, BEGINNINGS):
            refuse(f"{found} beginnings are too probable", mass, max_paths, sums.prob.shape[1] ** (offset - 1))
        below = p_path.masked_fill_(hit, 0).amax(1).to(best_left.dtype)
        best_left.scatter_reduce_(0, root, below, "amax")
        return row, token, p[row, token]

    def few(row, token, prob):
        """The best of a lone root's paths so far: more are only counted."""
        nonlocal leaves
        good = prob > leaves.min() if len(leaves) == kept else torch.ones_like(prob, dtype=torch.bool)
        row, token, prob = row[good], token[good], prob[good]
        if len(prob) > kept:
            top = prob.argsort(descending=True, stable=True)[:kept].sort().values
            row, token, prob = row[top], token[top], prob[top]
        leaves = torch.cat([leaves, prob])
        leaves = leaves.topk(kept).values if len(leaves) > kept else leaves
        return row, token

    while level.depth < offset - 1:
        found, leaves = 0, threshold[:0]
        level = children(engine, level, choose)
    return level, limit, best_left


def refuse(why, mass, max_paths, every):
    raise ValueError(
        f"max_paths={max_paths} paths at a position do not hold mass={mass} ({why}), and each costs a token through the "
        f"model; take a smaller mass, or raise max_paths (all paths: {about(every)})"
    )


def at_mass(p, mass, k=512):
    """Probability (m,) of the last token needed for that mass, best first, in each row of p (m, V)."""
    k = min(k, p.shape[-1])
    top = p.topk(k).values
    held = top.cumsum(-1, dtype=precise(p.device))
    if k < p.shape[-1] and (held[:, -1] < mass).any():
        return at_mass(p, mass, 8 * k)
    needed = (held < mass).sum(-1, keepdim=True).clamp(max=k - 1)
    return top.gather(-1, needed)[:, 0]
