"""The caller's batch, checked, with its padding closed up; and its way through an engine in sub-batches."""

import threading
import weakref
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral

import torch
from torch.nn.utils.rnn import pad_sequence

from ..backbones.anatomy import last_only, position_limit, rows_of
from ..base.refusals import require
from .expansion import Level, precise

PREFIX_TOKENS = 4096  # of the rows of one prefix pass, their padding included
PREFIX_LOGITS = 2**24  # numbers, of one prefix pass


_busy: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()  # a lock for each model


@contextmanager
def undisturbed(model):
    """Evaluation mode without gradients inside; every module's mode as before afterwards, also on error. Other threads wait."""
    with _busy.setdefault(model, threading.RLock()):
        training = [module for module in model.modules() if module.training]
        try:
            with torch.no_grad():
                yield model.eval()
        finally:
            for module in training:
                module.training = True


_kept: ContextVar[dict | None] = ContextVar("mtp_prefixes", default=None)


@contextmanager
def one_prefix():
    """Inside, calls with the same model, tokens and wanted positions share one prefix pass, whatever their offsets."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def engine_on(engine_class, model, inputs):
    """The engine after its prefix pass over `inputs`; inside `one_prefix` one that was made before."""
    kept = _kept.get()
    if kept is None:
        return engine_class(model, *inputs)
    name = engine_class, id(model), *(x.cpu().numpy().tobytes() for x in inputs)
    if name not in kept:
        kept[name] = engine_class(model, *inputs)
    return kept[name]


class Rows:
    """Each row's real tokens at positions 0, 1, ... (left padding, right padding and holes become one case).

    Args:
        name: what the caller calls `offset`, the number of tokens ahead.

    Raises:
        ValueError: naming the argument and its limit.
    """

    def __init__(self, model, input_ids, offset, attention_mask=None, positions=None, name="offset"):
        shape = tuple(input_ids.shape)
        require(len(shape) == 2 and not input_ids.is_floating_point(), f"input_ids must be (batch, seq) int: {shape}")
        require(input_ids.numel(), f"input_ids is empty: {shape}, at least one token is needed")
        require(isinstance(offset, Integral) and offset >= 1, f"{name} must be an integer >= 1, not {offset}")
        self.ids, self.offset = input_ids, offset
        everywhere = torch.ones_like(input_ids, dtype=torch.bool)
        self.there = everywhere if attention_mask is None else self.flags(attention_mask, "attention_mask")
        require(self.there.any(), "attention_mask leaves input_ids empty: at least one token is needed")
        self.wanted = self.there if positions is None else self.there & self.flags(positions, "positions")
        self.t = self.there.cumsum(1) - 1  # a token's position in its row, wherever it stands in the batch
        self.longest = int(self.t[self.wanted].max()) + offset if self.wanted.any() else 0
        self.check_limits(model, name)
        self.keeps = bool(last_only(model))  # makes logits where they are asked for alone

    def flags(self, mask, name):
        """A mask of the caller's as bool, on the ids' device."""
        shape, given = tuple(self.ids.shape), tuple(mask.shape)
        require(given == shape, f"{name} must have input_ids' shape {shape}, not {given}")
        return mask.to(self.ids.device) != 0

    def check_limits(self, model, name):
        known = model.get_input_embeddings().num_embeddings
        outside = (self.there & ((self.ids < 0) | (self.ids >= known))).nonzero()[:3].tolist()
        require(not outside, f"input_ids must be in [0, {known}); outside at (row, column) {outside}")
        limit = position_limit(model.config)
        seen = f"{self.longest - self.offset + 1} tokens + {name} {self.offset} - 1 = {self.longest}"
        require(self.longest <= limit, f"input_ids: {seen} is above the model's {limit} positions")
        head = model.get_output_embeddings()
        self.vocab = known if head is None else rows_of(head)

    def batches(self, model, engine_class):
        """Yield (engine, roots, where): wanted positions as a Level of depth 0, and their (row, column) (P, 2) here."""
        for group in self.groups():
            where = self.wanted.nonzero()
            where = where[torch.isin(where[:, 0], group)]
            t = self.t[where[:, 0], where[:, 1]]
            prefixes = [self.ids[row][self.there[row]][: t[where[:, 0] == row].max() + 1] for row in group]
            inputs = pad_sequence(prefixes, batch_first=True), torch.searchsorted(group, where[:, 0].contiguous()), t
            engine = engine_on(engine_class, model, [x.to(model.device) for x in inputs])
            engine.where = where.to(model.device)
            roots = torch.arange(len(where), device=model.device)
            yield engine, Level(roots, torch.ones_like(roots, dtype=precise(roots.device))), where

    def groups(self):
        """Batch rows (n,) that share one prefix pass: bounded in tokens, and in logits, which are made of every row at each
        position that is wanted in one of them. With more rows a candidate pass has more to do for one reading of the weights."""
        group, columns, longest = [], set(), 0
        for row in self.wanted.any(1).nonzero()[:, 0]:
            at = self.t[row][self.wanted[row]].tolist()  # ascends
            columns, longest, n = columns.union(at), max(longest, at[-1] + 1), len(group) + 1
            logits = n * (len(columns) if self.keeps else longest) * self.vocab
            if group and (n * longest > PREFIX_TOKENS or logits > PREFIX_LOGITS):
                yield torch.stack(group)
                group, columns, longest = [], set(at), at[-1] + 1
            group.append(row)
        if group:
            yield torch.stack(group)

    def seeds(self, seed, where):
        """What seeds each wanted position's stream: (seed, row, position), or the caller's own number."""
        if not torch.is_tensor(seed):
            t = self.t[where[:, 0], where[:, 1]]
            return [(int(seed) % 2**64, row, at) for row, at in zip(where[:, 0].tolist(), t.tolist(), strict=True)]
        require(seed.shape == self.ids.shape, f"seed must be an int or of shape {tuple(self.ids.shape)}")
        return [value % 2**64 for value in seed.to(where.device)[where[:, 0], where[:, 1]].tolist()]
