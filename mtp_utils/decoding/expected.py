"""What drafts could reach, without decoding: from what a drafter and the base model say along the base model's own text.

A drafter is heard at every token of that text (`offered`), so that what any tree of its drafts would bring is counted afterwards,
for all trees at once; a draft that is drawn rather than the most likely has its expectation (`expected_acceptance`).
"""

from collections import Counter

import torch

from ..base.refusals import require
from .decode import draft_and_verify, end_tokens


def expected_acceptance(log_p: torch.Tensor, log_q: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Chance that a chain of drafts, each drawn from its q, is accepted up to and with offset 2, 3, ... when p verifies it by
    rejection (Leviathan et al., arXiv 2211.17192, 3.3):
    a_k = E[prod_(j<k) min(1, q_j(w_j) / p_j(w_j)) sum_w min(p_k(w), q_k(w))].

    The w are drawn from p, so that the mean over positions of what is returned, (positions, depth), is unbiased at every depth:
    full (vLLM's per position); a_k / a_(k-1) of the means is conditional on the drafts before.

    Args:
        log_p: (positions, depth, vocab), nats: the base model's answer for offset 2, 3, ..., the drawn tokens before it known.
        log_q: the same shape: the drafter's, from the prefix alone. drawn: (positions, depth), the tokens drawn from p.

    Raises:
        ValueError: shapes that do not belong together.
    """
    alike = log_p.shape == log_q.shape and log_p.ndim == 3 and drawn.shape == log_p.shape[:2]
    shapes = f"log_p {tuple(log_p.shape)}, log_q {tuple(log_q.shape)}, drawn {tuple(drawn.shape)}"
    require(alike, f"{shapes}: (positions, depth, vocab) twice, and (positions, depth)")
    overlap = torch.minimum(log_p, log_q).exp().sum(-1)
    kept = (log_q - log_p).gather(-1, drawn[..., None])[..., 0].clamp(max=0).exp()
    before = torch.cat([torch.ones_like(kept[:, :1]), kept[:, :-1]], 1).cumprod(1)
    return before * overlap


class Listener:
    """A drafter that offers nothing, and keeps what another one would have offered at every token: its first `width`
    candidates."""

    def __init__(self, drafter, width: int):
        self.drafter, self.width, self.depth, self.layers = drafter, width, drafter.depth, drafter.layers
        self.reads_all, self.model = getattr(drafter, "reads_all", False), getattr(drafter, "model", None)
        self.heard = []

    def __call__(self, tokens, states, widths: tuple[int, ...], memory: dict) -> torch.Tensor:
        offer = self.drafter(tokens, states, (self.width,) * self.depth, memory)
        self.heard.append(([len(row) for row in tokens], offer))
        return torch.full((len(tokens), len(widths), max(widths)), -1)


def offered(model, drafter, ids, max_new_tokens: int, width: int = 8, **options) -> tuple[list, list]:
    """The base model's own text behind each prompt, and at each of its tokens which candidate of the drafter every later one is.

    Returns `tokens`, of each row the new ones, (n,), and `ranks`, (passes, depth) int64: row i is a pass that begins with token i
    certain; its entry for offset k says that token i + k - 1 is the drafter's candidate number 0, 1, ..., or `width`, which is
    none of them. Passes whose reach the length limit or the end of a text cuts are left out.
    Arguments, `options` and errors: as draft_and_verify.
    """
    listener = Listener(drafter, width)
    done = draft_and_verify(model, listener, ids, max_new_tokens, **options)
    ranks = []
    prompts = [n - 1 for n in listener.heard[0][0]] if listener.heard else [0] * len(done.tokens)
    for row, (new, prompt) in enumerate(zip(done.tokens, prompts, strict=True)):
        heard, found = {lengths[row] - prompt - 1: offer[row] for lengths, offer in reversed(listener.heard)}, []
        for i, later in whole_passes(new, drafter.depth, options.get("eos_token_id")):
            if i in heard:
                hit = heard[i] == later[:, None]
                found.append(torch.where(hit.any(1), hit.int().argmax(1), width))
        ranks.append(torch.stack(found) if found else torch.empty(0, drafter.depth, dtype=torch.int64))
    return done.tokens, ranks


def whole_passes(new: torch.Tensor, depth: int, eos_token_id) -> list[tuple[int, torch.Tensor]]:
    """(i, the `depth` tokens behind it) of each new token i from which a pass reaches neither the length limit nor the end of a
    text."""
    ends = end_tokens(eos_token_id)
    each = [(i, new[i + 1 : i + 1 + depth]) for i in range(len(new) - depth - 1)]
    return [(i, later) for i, later in each if ends.isdisjoint(later.tolist())]


def tree(widths: tuple[int, ...]) -> set[tuple[int, ...]]:
    """The nodes of a tree with so many candidates for offset 2, 3, ..., every one after every one before: each node the numbers
    of the candidates on the way to it."""
    nodes, last = set(), [()]
    for width in widths:
        last = [(*node, candidate) for node in last for candidate in range(width)]
        nodes |= set(last)
    return nodes


def best_tree(ranks: torch.Tensor, nodes: int, width: int) -> set[tuple[int, ...]]:
    """The tree of so many nodes that brings most at the average of the tokens where `ranks` (passes, depth) were heard: its nodes
    are the commonest ways to go on (none is commoner than the one before it on its way, so that they are a tree), as in Medusa's
    and Sequoia's choice. draft_and_verify decodes full trees (`widths`) only: this one is counted (`simulated`), not decoded."""
    counts = Counter()
    for row in ranks.tolist():
        for k in range(1, len(row) + 1):
            if row[k - 1] >= width:
                break
            counts[tuple(row[:k])] += 1
    return set(sorted(counts, key=lambda node: (-counts[node], len(node), node))[:nodes])


def accepted(ranks: torch.Tensor, nodes: set[tuple[int, ...]]) -> torch.Tensor:
    """(passes,) how many drafts of a tree are accepted at each."""
    found = []
    for row in ranks.tolist():
        depths = (k for k in range(len(row)) if tuple(row[: k + 1]) not in nodes)
        found.append(next(depths, len(row)))
    return torch.tensor(found, dtype=torch.int64)


def simulated(ranks: list[torch.Tensor], nodes: set[tuple[int, ...]]) -> list[torch.Tensor]:
    """Of each row the drafts accepted in the passes that decoding with this tree would take: each begins where the one before
    ended. The tokens a pass: 1 and their mean."""
    found = []
    for row in ranks:
        each, i, taken = accepted(row, nodes).tolist(), 0, []
        while i < len(each):
            taken.append(each[i])
            i += each[i] + 1
        found.append(torch.tensor(taken, dtype=torch.int64))
    return found


def break_even(tokens_a_pass: float, nodes: int, batch: float, ridge: float, draft: float = 0.0) -> float:
    """How many times as fast as one token a pass, by the roofline: a pass over n tokens takes max(1, n / ridge), in passes that
    are bound by memory. ridge: the tokens of a pass at which a machine's arithmetic takes as long as reading the weights (2
    bytes a weight: its multiply-adds a second over its bytes a second, times 2); batch: rows decoded together; nodes: drafted;
    draft: seconds of drafting in such passes. Reading the caches of long rows is left out."""
    plain, wide = max(1.0, batch / ridge), max(1.0, batch * (1 + nodes) / ridge)
    return tokens_a_pass / ((wide + draft) / plain)
