"""One pass of the base model over trees of drafts: the tree, the rows' KV cache, and a check that the model hears both."""

import weakref
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import DynamicCache

from ..backbones.anatomy import position_limit, unembed, unembeds
from ..backbones.wrapped import decoder
from ..base.refusals import first_line, require
from ..marginal.reference import TOLERANCE, active_lengths, gap


class Prefix:
    """The rows' tokens so far in the model's KV cache; a column of the cache that is no token of a row is hidden from it.

    logits: (rows, vocab) after the prompt. states: of each row, the hidden states (new, layers, d) at `layers` of the tokens
    kept last, which no drafter has seen yet.
    """

    def __init__(self, model, rows: list[torch.Tensor], layers: tuple[int, ...], reads_all: bool = False):
        self.model, self.layers, self.cache = model, layers, DynamicCache()
        config = model.config.get_text_config()
        self.split, last = unembeds(model), (config.num_hidden_layers,)
        self.inner = bool(layers) and (not self.split or layers != last)  # whether other states than the last are read
        self.limit = position_limit(config)
        self.length = [len(row) for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        length = torch.tensor(self.length, device=ids.device)
        self.there = torch.arange(ids.shape[1], device=ids.device) < length[:, None]  # (rows, columns)
        last, hidden = self._run(ids, attention_mask=self.there.long())
        end = torch.arange(len(rows), device=ids.device), length - 1
        self.logits = unembed(model, last[end]) if self.split else last[end]
        if not layers:
            self.states = None
        elif reads_all:
            self.states = [h[:n] for h, n in zip(self._stacked(hidden), self.length, strict=True)]
        else:
            self.states = list(self._stacked([h[end] for h in hidden])[:, None])

    def _run(self, ids: torch.Tensor, **where) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(rows, n, d) before the LM head, or (rows, n, vocab) where it cannot be run apart; (rows, n, d) of each layer."""
        run = decoder(self.model) if self.split else self.model
        out = run(input_ids=ids, past_key_values=self.cache, use_cache=True, output_hidden_states=self.inner, **where)
        last = (out.last_hidden_state if self.split else out.logits).to(ids.device)
        if not self.inner:
            return last, [last] * len(self.layers)
        return last, [out.hidden_states[layer].to(ids.device) for layer in self.layers]

    def _stacked(self, hidden: list[torch.Tensor]) -> torch.Tensor:
        """(..., layers, d), float32 or better."""
        return torch.stack(hidden, -2).to(torch.promote_types(self.model.dtype, torch.float32))

    def verify(self, tokens: list[list[int]], tree: "Tree") -> torch.Tensor:
        """Logits (rows, nodes, vocab) of the base model after each node; tokens of each row, -1 where it has no draft."""
        device, mask = self.there.device, None
        if len(tokens) * len(tree.depth) > 1:
            sees = tree.sees.to(device).expand(len(tokens), -1, -1)
            sees = torch.cat([self.there[:, None].expand(-1, sees.shape[1], -1), sees], 2)[:, None]
            mask = torch.zeros(sees.shape, dtype=self.model.dtype, device=device)  # numbers: eager attention adds them
            mask.masked_fill_(~sees, torch.finfo(mask.dtype).min)
        position = [[min(n + d, self.limit - 1) for d in tree.depth] for n in self.length]  # beyond: in rows that have ended
        ids, position = (torch.tensor(x, device=device) for x in ([[max(0, t) for t in row] for row in tokens], position))
        last, hidden = self._run(ids, attention_mask=mask, position_ids=position)
        self.hidden = self._stacked(hidden) if hidden else None
        return unembed(self.model, last) if self.split else last

    def keep(self, paths: list[list[int]]) -> None:
        """Keep these nodes of each row, in this order, and forget the others."""
        start, longest, device = self.there.shape[1], max(map(len, paths)), self.there.device
        index = None
        if any(path != list(range(len(path))) for path in paths):
            index = torch.tensor([path + [0] * (longest - len(path)) for path in paths], device=device)[:, None, :, None]
        for layer in self.cache.layers:
            for name in ("keys", "values"):
                x = getattr(layer, name)
                if index is not None:
                    where = index.to(x.device).expand(-1, x.shape[1], -1, x.shape[3])
                    x[:, :, start : start + longest] = x[:, :, start:].gather(2, where)
                setattr(layer, name, x[:, :, : start + longest])
        kept = torch.tensor([[i < len(path) for i in range(longest)] for path in paths], device=device)
        self.there = torch.cat([self.there, kept], 1)
        self.length = [n + len(path) for n, path in zip(self.length, paths, strict=True)]
        self.states = [h[path] for h, path in zip(self.hidden, paths, strict=True)] if self.layers else None


_heard: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


def check_attention(model, longest: int) -> None:
    """ValueError where passes over trees in rows of different lengths are not what full re-runs say, on this very model. Looked
    at once for each set of lengths (windows, chunks) below `longest` that its configuration names, on texts beyond them."""
    config = model.config.get_text_config()
    lengths = active_lengths(config.to_dict(), longest)
    name = str(model.dtype), str(model.device), config.to_json_string(use_diff=False), tuple(sorted(lengths.items()))
    known = _heard.setdefault(model, {})
    if name not in known:
        known[name] = "RuntimeError or the like"  # unless it comes to an end
        try:
            known[name] = _heard_wrong(model, min(max([0, *lengths.values()]) + 16, longest))
        except torch.OutOfMemoryError:  # of this moment, not of the model
            del known[name]
            raise
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            known[name] = first_line(error)
    require(not known[name], f"{type(model).__name__}: its attention does not serve drafts ({known[name]}): decode with generate")


def _heard_wrong(model, length: int) -> str:
    """What is wrong, or nothing: two rows, a tree behind each, what is kept of it, and a further token behind that."""
    rng = torch.Generator().manual_seed(0)
    vocab, n = model.get_input_embeddings().num_embeddings, max(1, length - 4)
    rows = [torch.randint(vocab, (k,), generator=rng).to(model.device) for k in (n, max(1, n // 2))]
    drafts, tree = torch.randint(vocab, (2, 3), generator=rng).tolist(), tree_of((2,) if length > 2 else ())
    drafts, prefix, texts = [row[: len(tree.depth)] for row in drafts], Prefix(model, rows, ()), []
    found = [prefix.logits, *prefix.verify(drafts, tree).unbind(1)]
    paths = [[0, 2], [0]] if len(tree.depth) > 1 else [[0], [0]]
    prefix.keep(paths)
    found.append(prefix.verify([[1], [1]], tree_of(()))[:, 0])
    for row, own, path in zip(rows, drafts, paths, strict=True):
        row = row.tolist()
        tails = [[], *([own[0]] if d == 0 else [own[0], own[i]] for i, d in enumerate(tree.depth)), [own[i] for i in path] + [1]]
        texts.append([torch.tensor([row + tail], device=model.device) for tail in tails])
    ours = torch.stack(found, 1).float().log_softmax(-1)  # (rows, texts, vocab)
    theirs, again = (
        torch.stack([torch.stack([_last_logits(model, text, twice) for text in own]) for own in texts]).float().log_softmax(-1)
        for twice in (False, True)
    )
    error, tolerance = gap(ours, theirs), max(TOLERANCE.get(model.dtype, 0.15), 2e-4, 8 * gap(theirs, again))
    return "" if error <= tolerance else f"log-probabilities off by {error:.1e}, tolerance {tolerance:.1e}"


def _last_logits(model, ids: torch.Tensor, twice: bool) -> torch.Tensor:
    """After the last token, without a cache; beside a copy of itself, which shows what rounding does."""
    return model(ids.expand(2, -1) if twice else ids, use_cache=False).logits[0, -1]


@dataclass(frozen=True)
class Tree:
    """Nodes of one pass: node 0 is the certain token, then each candidate for offset 2, under each of those each for offset 3,
    and so on. Of each node: its depth, which candidate of its offset it is, its children; sees (nodes, nodes): its ancestors
    and itself."""

    depth: list[int]
    choice: list[int]
    children: list[list[int]]
    sees: torch.Tensor

    def tokens(self, certain: int, drafts: list[list[int]]) -> list[int]:
        """The token of each node; drafts: of each offset the candidates, -1 for none."""
        return [certain, *(drafts[d - 1][c] for d, c in zip(self.depth[1:], self.choice[1:], strict=True))]

    def follow(self, ours: list[int], theirs: list[int]) -> list[int]:
        """The nodes from the first one on whose token is what the base model says at the node before."""
        path = [0]
        while found := [node for node in self.children[path[-1]] if ours[node] == theirs[path[-1]]]:
            path.append(found[0])
        return path


@lru_cache(maxsize=64)
def tree_of(widths: tuple[int, ...]) -> Tree:
    """The tree with so many candidates for offset 2, 3, ...; without any it is the certain token alone."""
    depth, choice, children, parent, level = [0], [0], [[]], [0], [0]
    for d, width in enumerate(widths, 1):
        before, level = level, []
        for node in before:
            for c in range(width):
                level.append(len(depth))
                children[node].append(len(depth))
                for values, x in ((depth, d), (choice, c), (children, []), (parent, node)):
                    values.append(x)
    sees = torch.eye(len(depth), dtype=torch.bool)
    for node in range(1, len(depth)):
        sees[node] |= sees[parent[node]]
    return Tree(depth, choice, children, sees)
