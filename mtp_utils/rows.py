"""The caller's batch, checked, with its padding closed up; and its way through an engine in sub-batches."""

from contextlib import contextmanager

import torch
from torch.nn.utils.rnn import pad_sequence

from mtp_utils.expansion import Level

PREFIX_TOKENS = 4096  # of the rows of one prefix pass, their padding included
PREFIX_LOGITS = 2**24  # numbers, of one prefix pass


def require(condition, message):
    if not condition:
        raise ValueError(message)


@contextmanager
def undisturbed(model):
    """Evaluation mode without gradients inside; every module's mode as before afterwards, also on error."""
    training = [module for module in model.modules() if module.training]
    try:
        with torch.no_grad():
            yield model.eval()
    finally:
        for module in training:
            module.training = True


class Rows:
    """Each row's real tokens at positions 0, 1, ... (left padding, right padding and holes become one case).

    Args:
        name: what the caller calls `offset`, the number of tokens ahead.

    Raises:
        ValueError: naming the argument and its limit.
    """

    def __init__(self, model, input_ids, offset, attention_mask=None, positions=None, name="offset"):
        shape = tuple(input_ids.shape)
        require(
            len(shape) == 2 and not input_ids.is_floating_point(), f"input_ids must be (batch, seq) int, not {shape}"
        )
        require(input_ids.numel(), f"input_ids is empty: {shape}, at least one token is needed")
        require(isinstance(offset, int) and offset >= 1, f"{name} must be an integer >= 1, not {offset}")
        self.ids, self.offset = input_ids, offset
        self.there = (
            self.flags(attention_mask, "attention_mask") if attention_mask is not None else input_ids == input_ids
        )
        require(self.there.any(), "attention_mask leaves input_ids empty: at least one token is needed")
        self.wanted = self.there if positions is None else self.there & self.flags(positions, "positions")
        embeddings = model.get_input_embeddings().num_embeddings
        outside = self.there & ((input_ids < 0) | (input_ids >= embeddings))
        require(
            not outside.any(),
            f"input_ids must be in [0, {embeddings}); see (row, column) {outside.nonzero()[:3].tolist()}",
        )
        self.t = self.there.cumsum(1) - 1  # a token's position in its row, wherever it stands in the batch
        self.longest = int(self.t[self.wanted].max()) + offset if self.wanted.any() else 0
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or self.longest
        seen = f"{self.longest - offset + 1} tokens + {name} {offset} - 1"
        require(self.longest <= limit, f"input_ids: {seen} = {self.longest} is above the model's {limit} positions")
        head = model.get_output_embeddings()
        self.vocab = embeddings if head is None else head.weight.shape[0]

    def flags(self, mask, name):
        """A mask of the caller's as bool, on the ids' device."""
        require(
            mask.shape == self.ids.shape, f"{name} must be of shape {tuple(self.ids.shape)}, not {tuple(mask.shape)}"
        )
        return mask.to(self.ids.device) != 0

    def batches(self, model, engine_class):
        """Yield (engine, roots, where): wanted positions as a Level of depth 0, and their (row, column) (P, 2) here."""
        for group in self.groups():
            where = (
                self.wanted & torch.isin(torch.arange(len(self.ids)), group).to(self.ids.device)[:, None]
            ).nonzero()
            t = self.t[where[:, 0], where[:, 1]]
            lengths = [int(t[where[:, 0] == row].max()) + 1 for row in group]
            ids = pad_sequence([self.ids[row][self.there[row]][:n] for row, n in zip(group, lengths)], batch_first=True)
            local = torch.searchsorted(group.to(where.device), where[:, 0])
            engine = engine_class(model, *(x.to(model.device) for x in (ids, local, t)))
            roots = torch.arange(len(where), device=model.device)
            yield engine, Level(roots, torch.ones_like(roots, dtype=torch.float64)), where

    def groups(self):
        """Rows (n,) that share one prefix pass: bounded in tokens and in logits."""
        rows = self.wanted.any(1).nonzero()[:, 0].cpu()
        group, longest = [], 0
        for row in rows.tolist():
            n = int(self.t[row][self.wanted[row]].max()) + 1
            size = max(longest, n) * (len(group) + 1)
            if group and (size > PREFIX_TOKENS or size * self.vocab > PREFIX_LOGITS):
                yield torch.tensor(group)
                group, longest = [], 0
            group, longest = [*group, row], max(longest, n)
        if group:
            yield torch.tensor(group)

    def seeds(self, seed, where):
        """What seeds each wanted position's stream: (seed, row, position), or the caller's own number."""
        if not torch.is_tensor(seed):
            t = self.t[where[:, 0], where[:, 1]]
            return [(seed % 2**64, row, at) for row, at in zip(where[:, 0].tolist(), t.tolist())]
        require(seed.shape == self.ids.shape, f"seed must be an int or of shape {tuple(self.ids.shape)}")
        return [value % 2**64 for value in seed.to(where.device)[where[:, 0], where[:, 1]].tolist()]
