"""Drafters for decoding.draft_and_verify: what is offered for the tokens after the one that is already certain.

A drafter has `depth`, the tokens it drafts (offsets 2 to depth + 1 of the position before the certain token), and `layers`, the
hidden states it reads (of every position if it `reads_all`, else of the last one). It is called with every row's tokens, its new
hidden states, the widths, and a dict that is its memory of one decoding, and returns candidates (rows, len(widths), max(widths))
int64 on the CPU, the best first, -1 where it has none.
"""

import torch

from ..backbones.anatomy import position_limit, rows_of
from ..backbones.wrapped import plain
from ..base.refusals import require
from ..heads.heads import Heads
from ..marginal.future import future_log_probs
from ..marginal.masks import masked_log_probs

ANSWERS = 2**26  # numbers of the prefixes' answers of one call of future_log_probs


class HeadDrafter:
    """The most likely tokens of trained heads, each offset's for itself.

    heads: on the base model, their offsets together 2, 3, ... without a gap; ValueError otherwise.
    """

    def __init__(self, *heads: Heads):
        require(heads and all(isinstance(one, Heads) for one in heads), "HeadDrafter takes Heads, one after the other")
        require(len({id(one.model) for one in heads}) == 1, "the heads are on different models")
        self.model = heads[0].model
        offsets = sorted(k for one in heads for k in one.spec.offsets)
        require(offsets == list(range(2, len(offsets) + 2)), f"heads of offsets {offsets} must be those of 2, 3, ... once each")
        self.heads, self.depth = heads, len(offsets)
        self.layers = tuple(sorted({layer for one in heads for layer in one.layers}))
        self.reads_all = any(one.spec.kind == "block" for one in heads)

    @torch.no_grad()
    def __call__(self, tokens, states: list[torch.Tensor], widths: tuple[int, ...], memory: dict) -> torch.Tensor:
        found = torch.full((len(states), len(widths), max(widths)), -1)
        for i, one in enumerate(self.heads):
            where = [self.layers.index(layer) for layer in one.layers]
            if one.spec.kind == "block":  # it alone reads the positions before: a cache for every row
                rows = [self._of_row(i, one, x[None, :, where], len(tokens[r]), memory, r) for r, x in enumerate(states)]
                hidden = {k: torch.cat([row[k][:, -1] for row in rows]) for k in one.spec.offsets}
            else:
                hidden = {k: h[:, 0] for k, h in one(torch.stack([x[-1:, where] for x in states])).items()}
            for k, h in hidden.items():
                if k - 2 < len(widths):
                    n = widths[k - 2]
                    found[:, k - 2, :n] = one.log_probs(k, h).topk(n).indices.cpu()
        return found

    @staticmethod
    def _of_row(i: int, one: Heads, states: torch.Tensor, length: int, memory: dict, row: int) -> dict[int, torch.Tensor]:
        """What a head that reads all positions says after a row of `length` tokens; as before, where the row has come to its end,
        whose cache would outgrow the model's positions while other rows go on."""
        known = memory.setdefault((i, row), {"seen": 0, "cache": {}, "said": None})
        states = states[:, : length - 1 - known["seen"]]
        if states.shape[1]:
            known["seen"] += states.shape[1]
            known["said"] = one(states, known["cache"])
        return known["said"]


class MarginalDrafter:
    """The most likely tokens of the base model's own marginal m_k, as `estimators` (offset -> arguments of future_log_probs) find
    them: the best that can be said of sampled tokens from the prefix alone, and far too slow to draft with. Nothing where the
    model's positions end."""

    layers = ()

    def __init__(self, model, estimators: dict[int, dict]):
        self.model, self.estimators, self.depth = plain(model), estimators, len(estimators)
        require(sorted(estimators) == list(range(2, self.depth + 2)), f"estimators of offsets {sorted(estimators)}: not 2, 3 ...")
        self.vocab = rows_of(self.model.get_output_embeddings())

    def __call__(self, tokens: list[list[int]], states, widths: tuple[int, ...], memory) -> torch.Tensor:
        found = torch.full((len(tokens), len(widths), max(widths)), -1)
        together = max(1, ANSWERS // (max(map(len, tokens)) * self.vocab))  # rows
        for first in range(0, len(tokens), together):
            before = [torch.tensor(row[:-1]) for row in tokens[first : first + together]]
            ids = torch.nn.utils.rnn.pad_sequence(before, batch_first=True)
            last = torch.tensor([len(row) - 1 for row in before])[:, None]
            t = torch.arange(ids.shape[1])[None]
            where = {"attention_mask": t <= last}
            for i, n in enumerate(widths):
                fits = last[:, 0] + i + 2 <= position_limit(self.model.config)
                where["positions"] = (t == last) & fits[:, None]
                if fits.any():
                    f = future_log_probs(self.model, ids, i + 2, **where, **self.estimators[i + 2])
                    found[first : first + together, i, :n][fits] = f.rows.topk(n).indices.cpu()
        return found


class MaskDrafter:
    """The most likely tokens behind mask embeddings (marginal/masks.py), the rival that needs no training: here a row's draft is
    a pass of its own, which ESP takes together with the verifying one. Nothing where the model's positions end."""

    layers = ()

    def __init__(self, model, depth: int = 3):
        self.model, self.depth = plain(model), depth

    def __call__(self, tokens: list[list[int]], states, widths: tuple[int, ...], memory) -> torch.Tensor:
        found = torch.full((len(tokens), len(widths), max(widths)), -1)
        for row, seen in enumerate(tokens):
            depth = min(len(widths), position_limit(self.model.config) - len(seen))  # the prefix, and so many masks
            if depth < 1:
                continue
            last = torch.arange(len(seen) - 1)[None] == len(seen) - 2
            rows = masked_log_probs(self.model, torch.tensor([seen[:-1]]), depth + 1, positions=last)
            for i, n in enumerate(widths[:depth]):
                found[row, i, :n] = rows[i + 2][0].topk(n).indices
        return found


class LookupDrafter:
    """Prompt lookup (Saxena, 2023): what followed the last time that the last `longest` tokens, or fewer, stood in the row.

    It has one candidate an offset: widths above 1 only cost.
    """

    layers = ()

    def __init__(self, depth: int = 3, longest: int = 3):
        self.depth, self.longest = depth, longest

    def __call__(self, tokens: list[list[int]], states, widths: tuple[int, ...], memory) -> torch.Tensor:
        found = torch.full((len(tokens), len(widths), max(widths)), -1)
        for row, seen in enumerate(tokens):
            for n in range(min(self.longest, len(seen) - 1), 0, -1):
                starts = (i for i in range(len(seen) - n - 1, -1, -1) if seen[i : i + n] == seen[-n:])
                if (at := next(starts, None)) is not None:
                    following = seen[at + n : at + n + len(widths)]
                    found[row, : len(following), 0] = torch.tensor(following)
                    break
        return found
