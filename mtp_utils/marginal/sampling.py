"""Sampled paths: ancestral, alone or in the tail that an enumerated tree leaves out (hybrid)."""

import numpy as np
import torch

from .expansion import PATHS_AT_ONCE, Level, accumulate, best, children, distributions, precise


def uniforms(seeds, n, width, device):
    """(P, n, width) in [0, 1), each root's own stream: what is drawn does not depend on batching."""
    draws = np.stack([np.random.default_rng(seed).random((n, width)) for seed in seeds])
    dtype = precise(device)
    return torch.from_numpy(draws).to(dtype).clamp_max_(1 - torch.finfo(dtype).eps / 2).to(device)  # float32 may round up to 1


def inverse_cdf(p, row, u):
    """Token (s,) at which the cumulative sum of p (m, V), not normalised, passes u (s,), in row (s,).

    Each is looked for in its own row: in one ascending sequence over all rows, float32 has no digits left for u.
    """
    cdf = p.to(u.dtype).cumsum(-1)
    cdf /= cdf[:, -1:].clone().clamp_min_(torch.finfo(u.dtype).tiny)
    low, high = torch.zeros_like(row), torch.full_like(row, p.shape[1] - 1)  # the last one, where nothing passes u
    for _ in range((p.shape[1] - 1).bit_length()):
        middle = (low + high) // 2
        passed = cdf[row, middle] > u
        low, high = torch.where(passed, low, (middle + 1).minimum(high)), torch.where(passed, middle, high)
    return low


def by_samples(engine, roots, offset, k, seeds, n, sums):
    """Ancestral samples; with k > 0 the top-k tree is summed and only paths that leave it are sampled.

    A sample leaves the tree at a node chosen in proportion to the mass left out there, by a child outside the node's
    top k, and goes on freely. S + (1 - M) * mean p(w | sampled path) is unbiased and sums to 1.
    """
    nodes = sum(max(1, k) ** d for d in range(offset - 1))
    group = max(1, min(engine.capacity // nodes, PATHS_AT_ONCE // max(max(1, k) ** (offset - 1), n * nodes)))
    for part in roots.split(group):
        u = uniforms([seeds[i] for i in part.root.tolist()], n, offset, part.root.device)
        tree, left, drawn = grow(engine, part, offset, k, u)
        if k:
            accumulate(engine, tree.pop(), sums)
            sums.ahead = torch.zeros_like(sums.prob[:, 0]) if sums.ahead is None else sums.ahead
            sums.ahead[part.root] = sums.lead(part.root)  # what is sampled has no part in a certificate
        share, depth, node = exits(tree, left, u[:, :, 0])
        for level, tokens in zip(tree, drawn, strict=True):
            walk(engine, level, tokens, share, node, depth == level.depth, offset, u, sums)


def grow(engine, roots, offset, k, u):
    """Top-k tree; per inner level the mass left out (nodes,) and a token from there for each sample (nodes, n)."""
    tree, left, drawn = [roots], [], []

    def choose(start, stop, p):
        row, token, top = best(p, k)
        tail = p.index_put((row, token), p.new_zeros(()))
        mass = tail.sum(-1, dtype=u.dtype)
        left[-1].append(level.prob[start:stop].to(u.dtype) * mass)
        wanted = u[level.root[start:stop] - roots.root[0], :, level.depth + 1]
        rows = torch.arange(len(p), device=p.device).repeat_interleave(u.shape[1])
        drawn[-1].append(inverse_cdf(tail, rows, wanted.reshape(-1)).view(len(p), -1))
        return row, token, top

    for _ in range(offset - 1 if k else 1):
        level = tree[-1]
        left.append([])
        drawn.append([])
        tree.append(children(engine, level, choose))
    return tree if k else tree[:1], [torch.cat(x) for x in left], [torch.cat(x) for x in drawn]


def exits(tree, left, u):
    """Where each sample leaves the tree: its share of the probability (P,), depth (P, n), node of that level (P, n)."""
    levels, n_roots = tree[: len(left)], len(u)
    node = [torch.arange(len(level.root), device=u.device).view(n_roots, -1) for level in levels]  # as many below each root
    depth = torch.cat([torch.full_like(x, level.depth) for x, level in zip(node, levels, strict=True)], 1)
    node, mass = torch.cat(node, 1), torch.cat([x.view(n_roots, -1) for x in left], 1)
    row = torch.arange(n_roots, device=u.device).repeat_interleave(u.shape[1])
    pick = inverse_cdf(mass, row, u.reshape(-1)).view(u.shape)
    return mass.sum(1) / u.shape[1], depth.gather(1, pick), node.gather(1, pick)


def walk(engine, level, tokens, share, node, here, offset, u, sums):
    """Run the samples that leave the tree at this level on to the full length, equal paths once, and sum them."""
    root, sample = (here & (share > 0)[:, None]).nonzero(as_tuple=True)
    if not len(root):
        return
    member = node[root, sample]
    token = tokens[member, sample]
    level, member = merge(level, member, token, share[root])
    while level.depth < offset - 1:
        token = torch.empty_like(member)
        for start, stop, p in distributions(engine, level, True):
            hit = (member >= start) & (member < stop)
            token[hit] = inverse_cdf(p, member[hit] - start, u[root[hit], sample[hit], level.depth + 1])
        level, member = merge(level, member, token, share[root])
    accumulate(engine, level, sums, enumerated=False)


def merge(level, member, token, weight):
    """Level of the distinct children (member, token) (s,), their weights added; and each sample's place in it."""
    span = token.max() + 1
    pair, place = (member * span + token).unique(return_inverse=True)
    index = pair // span
    prob = torch.zeros(len(pair), dtype=weight.dtype, device=weight.device).index_add_(0, place, weight)
    return Level(level.root[index], prob, pair % span, level, index, level.depth + 1), place
