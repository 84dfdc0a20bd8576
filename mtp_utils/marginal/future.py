"""The token k ahead with the tokens between summed out: exact, truncated with bounds, sampled, or both.

m_k(w) = sum over paths v of k - 1 tokens of p(v | x) p(w | x, v). For a set A of enumerated paths with captured mass
M = p(A | x), S(w) = the sum over A obeys S(w) <= m_k(w) <= S(w) + 1 - M for every w (arXiv 2502.09419 for the
marginal; the bounds are ours). How it is computed: packed.py; which paths: expansion.py, mass.py, sampling.py.
"""

import math
import warnings

import torch

from ..backbones.rounding import refuse_company
from ..backbones.wrapped import plain
from ..base.refusals import about, require
from .answer import FutureLogProbs
from .certificates import margin_of
from .expansion import accumulate, by_top_k, children
from .mass import by_mass
from .reference import Reference, engine_for
from .rows import Rows, undisturbed
from .sampling import by_samples, inverse_cdf, uniforms


def future_log_probs(
    model,
    input_ids,
    offset=2,
    *,
    top_k=None,
    mass=None,
    exact=False,
    samples=None,
    seed=0,
    attention_mask=None,
    positions=None,
    max_paths=65536,
    with_entropy=False,
    reference=False,
):
    """Log-probs of the token `offset` ahead, the tokens between summed out; see FutureLogProbs for what comes back.

    Exactly one of: top_k (candidates per intermediate token, top_k**(offset - 1) paths), mass (whole paths, best
    first, until they hold that probability), exact=True (all paths), samples (ancestral), top_k with samples (the
    head enumerated, the tail sampled). Offset 1 is the log of the model's own softmax: captured_mass 1, no candidates.
    What a probability cannot hold, a float32 token e^-103 below another, is -inf.

    Args:
        model: any causal LM of transformers; its mode, dtype and attention setting are as before afterwards.
        input_ids: (batch, seq) int.
        seed: int, each (row, position) has its own stream; or (batch, seq) int, the stream of each position.
        attention_mask: (batch, seq), 1 for tokens that are there: padding on either side and holes are closed up.
        positions: (batch, seq) bool, where the answer is wanted; the cost in time and memory is theirs alone.
        max_paths: most paths per position.
        with_entropy: also accumulate conditional_entropy.
        reference: run the whole sequence again for each path instead of packing (slow, obvious).

    `certified` means S(first) - S(second) > max(1 - M, 0) + a rounding margin of 1e-10 for float64 models, 1e-5 for
    float32; in half precision, under autocast or with TF32 it is measured on the model (certificates.py), at least 5e-3
    for float16 and 2e-2 for bfloat16. S is of the enumerated paths alone, whatever was sampled besides.

    Raises:
        ValueError: an argument outside its limits (named with the limit), more than max_paths paths (with the cost),
            non-finite logits (with the position), wanted positions whose answer does not fit into memory (with its size).
        CannotDo: what the model says of a text changes with the text beside it.
    """
    model = plain(model)
    rows = Rows(model, input_ids, offset, attention_mask, positions)
    check_mode(rows.vocab, top_k, mass, exact, samples, max_paths)
    k = rows.vocab if exact or mass == 1 else top_k or 0
    check_cost(model, rows, k, samples or 0, max_paths)
    found = FutureLogProbs(rows.wanted, rows.vocab, torch.promote_types(model.dtype, torch.float32), with_entropy)
    with undisturbed(model):
        margin = margin_of(model) if rows.longest else 0.0
        for engine, roots, where in rows.batches(model, engine_to_use(model, rows, reference)):
            sums = found.sums(len(where), roots.root.device)
            if offset == 1:
                accumulate(engine, roots, sums)
            elif samples:
                by_samples(engine, roots, offset, k, rows.seeds(seed, where), samples, sums)
            elif k:
                by_top_k(engine, roots, offset, k, sums)
            else:
                by_mass(engine, roots, offset, mass, max_paths, sums)
            found.store(where, sums, margin)
    return found


def future_tokens(model, input_ids, horizon, *, sample=False, seed=0, attention_mask=None, positions=None):
    """Tokens at offsets 1 to `horizon` that the model itself puts after each wanted position: label sources.

    sample=False: greedy; sample=True: drawn at temperature 1 over the full vocabulary. Other arguments and errors as
    in future_log_probs. Returns (batch, seq, horizon) int64, -100 where not wanted.
    """
    model = plain(model)
    rows = Rows(model, input_ids, horizon, attention_mask, positions, name="horizon")
    tokens = torch.full((*input_ids.shape, horizon), -100, dtype=torch.int64, device=input_ids.device)
    with undisturbed(model):
        for engine, roots, where in rows.batches(model, engine_to_use(model, rows)):
            seeds = rows.seeds(seed, where)
            for level in roots.split(max(1, engine.capacity // horizon)):
                here, device = level.root.tolist(), level.root.device
                row, column = where[here].T
                u = uniforms([seeds[i] for i in here], 1, horizon, device)[:, 0].T if sample else [None] * horizon
                for depth in range(horizon):
                    level = children(engine, level, one_token(u[depth]))
                    tokens[row, column, depth] = level.token.to(tokens.device)
    return tokens


def one_token(u):
    """How `children` picks one token per path: the most probable one, or the one at u (n,) of the cumulative sum."""

    def choose(start, stop, p):
        row = torch.arange(len(p), device=p.device)
        token = p.argmax(-1) if u is None else inverse_cdf(p, row, u[start:stop])
        return row, token, p[row, token]

    return choose


def engine_to_use(model, rows, reference=False):
    """The packed engine where it may be trusted with these lengths, else the next best, with a warning."""
    if not rows.longest:
        return Reference
    refuse_company(model)
    if reference:
        return Reference
    engine, reason = engine_for(model, rows.longest)
    if reason:
        way = "slow full re-runs" if engine is Reference else "its cache is repeated at each position, several times slower"
        warnings.warn(f"{type(model).__name__} cannot be packed ({reason}): {way}", stacklevel=3)
    return engine


def check_mode(vocab, top_k, mass, exact, samples, max_paths):
    given = {"top_k": top_k, "mass": mass, "exact": exact or None, "samples": samples}
    modes = {name for name, value in given.items() if value is not None}
    allowed = len(modes) == 1 or modes == {"top_k", "samples"}
    require(allowed, f"exactly one of top_k, mass, exact, samples, or top_k with samples, not {sorted(modes)}")
    require(top_k is None or 1 <= top_k <= vocab, f"top_k must be in [1, {vocab}] (the vocabulary), not {top_k}")
    require(samples is None or samples >= 1, f"samples must be >= 1, not {samples}")
    require(mass is None or 0 < mass <= 1, f"mass must be in (0, 1], not {mass}")
    require(max_paths >= 1, f"max_paths must be >= 1, not {max_paths}")


def check_cost(model, rows, k, samples, max_paths):
    """Refuses too many paths a position, their number counted in logarithms where it is astronomical."""
    depth = rows.offset - 1
    paths = k**depth + samples if depth * math.log10(max(k, 1)) < 300 else 10**301
    if paths <= max_paths or not depth:
        return
    tokens = paths * int(rows.wanted.sum())  # and the beginnings of paths, which are fewer
    flops = 2 * tokens * sum(p.numel() for p in model.parameters())
    count = about(paths) if paths < 10**301 else f"{k}**{depth}"
    raise ValueError(
        f"{count} paths per position are above max_paths={max_paths}: at least {about(tokens)} tokens through the model, about "
        f"{about(flops)} FLOPs; take a smaller top_k, or mass, or samples, or fewer positions, or raise max_paths"
    )
