"""The token k ahead with the tokens between summed out: exact, truncated with bounds, sampled, or both.

m_k(w) = sum over paths v of k - 1 tokens of p(v | x) p(w | x, v). For a set A of enumerated paths with captured mass
M = p(A | x), S(w) = the sum over A obeys S(w) <= m_k(w) <= S(w) + 1 - M for every w (arXiv 2502.09419 for the
marginal; the bounds are ours). How it is computed: packed.py; which paths: expansion.py and sampling.py.
"""

import warnings
from dataclasses import dataclass

import torch

from ..base.refusals import require
from .expansion import Sums, accumulate, by_mass, by_top_k, children, entropy_of
from .reference import Reference, engine_for
from .rows import Rows, undisturbed
from .sampling import by_samples, inverse_cdf, uniforms

# Least gap S(first) - S(second), beyond 1 - M, that rounding in a model of that dtype cannot turn over.
MARGIN = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class FutureLogProbs:
    """What `future_log_probs` returns; position t speaks of token t + offset.

    log_probs (batch, seq, vocab), nats, float32 (float64 for a float64 model). Enumerated paths alone: sums to
    captured_mass, not 1. With samples: sums to 1, and exp(log_probs) is unbiased, log_probs is not.
    captured_mass (batch, seq) probability of the enumerated paths; certified (batch, seq) bool, the arg-max cannot
    change; num_candidates (batch, seq) paths expanded; conditional_entropy (batch, seq) nats, the sum over paths of
    p(path) H(p(. | path)), or None if not asked for. Elsewhere than wanted: -inf, 0, False, 0, 0.
    """

    log_probs: torch.Tensor
    captured_mass: torch.Tensor
    certified: torch.Tensor
    num_candidates: torch.Tensor
    conditional_entropy: torch.Tensor | None = None

    @property
    def entropy(self):
        """H(m_k) (batch, seq), nats, of log_probs as they are: exact with exact=True, else biased."""
        return torch.stack([entropy_of(row.exp()) for row in self.log_probs])

    @property
    def mutual_information(self):
        """I(x_1..x_{k-1}; x_k | x) = H(m_k) - conditional_entropy (batch, seq), nats; needs with_entropy=True."""
        return self.entropy - self.conditional_entropy


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
    head enumerated, the tail sampled). Offset 1 is the model's own log-softmax: captured_mass 1, no candidates.

    Args:
        model: any causal LM of transformers; its mode, dtype and attention setting are as before afterwards.
        input_ids: (batch, seq) int.
        seed: int, each (row, position) has its own stream; or (batch, seq) int, the stream of each position.
        attention_mask: (batch, seq), 1 for tokens that are there: padding on either side and holes are closed up.
        positions: (batch, seq) bool, where the answer is wanted; the cost is theirs alone.
        max_paths: most paths per position.
        with_entropy: also accumulate conditional_entropy.
        reference: run the whole sequence again for each path instead of packing (slow, obvious).

    `certified` means S(first) - S(second) > max(1 - M, 0) + a rounding margin of 1e-10 for float64 models, 1e-5 for
    float32, 5e-3 for float16 and 2e-2 for bfloat16; S is of the enumerated paths alone, whatever was sampled besides.

    Raises:
        ValueError: an argument outside its limits (named with the limit), more than max_paths paths (with the cost),
            non-finite logits (with the position).
    """
    rows = Rows(model, input_ids, offset, attention_mask, positions)
    check_mode(rows.vocab, top_k, mass, exact, samples, max_paths)
    k = rows.vocab if exact or mass == 1 else top_k or 0
    check_cost(model, rows, k, samples or 0, max_paths)
    dtype = torch.promote_types(model.dtype, torch.float32)
    found = nothing(rows, dtype, with_entropy)
    with undisturbed(model):
        for engine, roots, where in rows.batches(model, engine_to_use(model, rows, reference)):
            sums = Sums(len(where), rows.vocab, dtype, roots.root.device, with_entropy)
            if offset == 1:
                accumulate(engine, roots, sums)
            elif samples:
                by_samples(engine, roots, offset, k, rows.seeds(seed, where), samples, sums)
            elif k:
                by_top_k(engine, roots, offset, k, sums)
            else:
                by_mass(engine, roots, offset, mass, max_paths, sums)
            store(found, where, sums, MARGIN.get(model.dtype, 2e-2))
    return FutureLogProbs(**found)


def nothing(rows, dtype, with_entropy):
    """The answer where nothing is wanted."""
    shape, device = rows.ids.shape, rows.ids.device
    return {
        "log_probs": torch.full((*shape, rows.vocab), -torch.inf, dtype=dtype, device=device),
        "captured_mass": torch.zeros(shape, dtype=dtype, device=device),
        "certified": torch.zeros(shape, dtype=torch.bool, device=device),
        "num_candidates": torch.zeros(shape, dtype=torch.int64, device=device),
        "conditional_entropy": torch.zeros(shape, dtype=dtype, device=device) if with_entropy else None,
    }


def store(found, where, sums, margin):
    """Write the sums over paths (P, ...) where (P, 2) they belong."""
    ahead = sums.lead() if sums.ahead is None else sums.ahead
    values = {
        "certified": ahead > (1 - sums.mass).clamp_min(0) + margin,
        "captured_mass": sums.mass.clamp_max(1),
        "num_candidates": sums.paths,
        "log_probs": sums.prob.log_(),
        "conditional_entropy": sums.entropy,
    }
    for name, value in values.items():
        if value is not None:
            found[name][where[:, 0], where[:, 1]] = value.to(found[name])


def future_tokens(model, input_ids, horizon, *, sample=False, seed=0, attention_mask=None, positions=None):
    """Tokens at offsets 1 to `horizon` that the model itself puts after each wanted position: label sources.

    sample=False: greedy; sample=True: drawn at temperature 1 over the full vocabulary. Other arguments and errors as
    in future_log_probs. Returns (batch, seq, horizon) int64, -100 where not wanted.
    """
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
    if reference or not rows.longest:
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
    paths = k ** (rows.offset - 1) + samples if rows.offset > 1 else 0
    tokens = sum(k**depth + samples for depth in range(1, rows.offset)) * int(rows.wanted.sum())
    flops = 2 * tokens * sum(p.numel() for p in model.parameters())
    require(
        paths <= max_paths,
        f"{paths} paths per position are above max_paths={max_paths}: {tokens:.2g} tokens through the model, about "
        f"{flops:.1g} FLOPs; take a smaller top_k, or mass, or samples, or fewer positions, or raise max_paths",
    )
