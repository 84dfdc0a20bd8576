"""What `future_log_probs` returns: an answer at each wanted position, held for these alone."""

import functools

import torch

from ..base.refusals import require
from ..base.runtime import free_memory
from .expansion import Sums, entropy_of

ROOM = 0.9  # of the free memory, that an answer may take


class FutureLogProbs:
    """What `future_log_probs` returns; position t speaks of token t + offset.

    log_probs (batch, seq, vocab), nats, float32 (float64 for a float64 model). Enumerated paths alone: sums to
    captured_mass, not 1. With samples: sums to 1, and exp(log_probs) is unbiased, log_probs is not.
    captured_mass (batch, seq) probability of the enumerated paths; certified (batch, seq) bool, the arg-max cannot
    change; num_candidates (batch, seq) paths expanded; conditional_entropy (batch, seq) nats, the sum over paths of
    p(path) H(p(. | path)), or None if not asked for. Elsewhere than wanted: -inf, 0, False, 0, 0.

    What is held is `rows` (wanted positions, vocab), in the order of `wanted` (batch, seq) bool; `at(positions)` reads them.
    `log_probs` is made of them when it is first asked for, with -inf elsewhere, and is as large as the whole batch.
    """

    def __init__(self, wanted, vocab, dtype, with_entropy):
        shape, device, n = wanted.shape, wanted.device, int(wanted.sum())
        check_room(n, vocab, dtype, device, "ask for fewer with positions=, or for a part of the rows at a time")
        self.wanted, self.filled = wanted, 0
        self.rows = torch.zeros(n, vocab, dtype=dtype, device=device)
        self.captured_mass = torch.zeros(shape, dtype=dtype, device=device)
        self.certified = torch.zeros(shape, dtype=torch.bool, device=device)
        self.num_candidates = torch.zeros(shape, dtype=torch.int64, device=device)
        self.conditional_entropy = torch.zeros(shape, dtype=dtype, device=device) if with_entropy else None

    @functools.cached_property
    def log_probs(self):
        """(batch, seq, vocab), -inf where nothing was wanted."""
        if self.wanted.all():
            return self.rows.view(*self.wanted.shape, -1)
        check_room(self.wanted.numel(), self.rows.shape[1], self.rows.dtype, self.rows.device, "read .at(positions) instead")
        full = self.rows.new_full((*self.wanted.shape, self.rows.shape[1]), -torch.inf)
        full[self.wanted] = self.rows
        return full

    def at(self, positions):
        """log_probs[positions] of wanted positions, (n, vocab), without making the rest. positions: (batch, seq) bool."""
        positions = positions.to(self.wanted.device) != 0
        require(positions.shape == self.wanted.shape, f"positions must be {tuple(self.wanted.shape)}: {tuple(positions.shape)}")
        require(not (positions & ~self.wanted).any(), "at() reads wanted positions alone; log_probs has -inf at the others")
        return self.rows if torch.equal(positions, self.wanted) else self.rows[positions[self.wanted]]

    @property
    def entropy(self):
        """H(m_k) (batch, seq), nats, of log_probs as they are: exact with exact=True, else biased."""
        found = torch.zeros_like(self.captured_mass)
        size = max(1, 2**24 // max(1, self.rows.shape[1]))
        found[self.wanted] = torch.cat([entropy_of(part.exp()) for part in self.rows.split(size)])
        return found

    @property
    def mutual_information(self):
        """I(x_1..x_{k-1}; x_k | x) = H(m_k) - conditional_entropy (batch, seq), nats; needs with_entropy=True."""
        return self.entropy - self.conditional_entropy

    def sums(self, n, device):
        """Where the paths of the next n wanted positions are summed: in place, where the device is the answer's."""
        rows = self.rows[self.filled : self.filled + n]
        rows = rows if rows.device == device else torch.zeros_like(rows, device=device)
        return Sums(rows, self.conditional_entropy is not None)

    def store(self, where, sums, margin):
        """Write the sums over paths (P, ...) of the next wanted positions, `where` (P, 2)."""
        ahead = sums.lead() if sums.ahead is None else sums.ahead
        self.certified[where[:, 0], where[:, 1]] = (ahead > (1 - sums.mass).clamp_min(0) + margin).to(self.certified.device)
        values = {"captured_mass": sums.mass.clamp_max(1), "num_candidates": sums.paths, "conditional_entropy": sums.entropy}
        for name, value in values.items():
            if value is not None:
                into = getattr(self, name)
                into[where[:, 0], where[:, 1]] = value.to(into)
        here = self.rows[self.filled : self.filled + len(where)]
        log_probs = sums.prob.log_()
        if log_probs.device != here.device:
            here.copy_(log_probs)
        self.filled += len(where)


def check_room(n, vocab, dtype, device, instead):
    """Refuses an answer that the memory does not hold, before any work."""
    size, free = n * vocab * dtype.itemsize, free_memory(device)
    asked = f"log-probabilities of {n} positions over {vocab} tokens are {size / 1e9:.1f} GB"
    require(size <= ROOM * free, f"{asked}, and {free / 1e9:.1f} GB are free: {instead}")
