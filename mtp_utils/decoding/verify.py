"""One pass of the base model over trees of drafts: the tree, and the rows' KV cache."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import DynamicCache

from ..backbones.anatomy import position_limit, unembed, unembeds
from ..backbones.wrapped import decoder


def layer_windows(config) -> dict[str, int | None]:
    """Kind of layer -> how many tokens a token reads, itself among them; None: all. Without kinds: all layers, as one."""
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None) or ["sliding"]
    return {kind: window if window and "sliding" in kind else None for kind in kinds}


class Prefix:
    """The rows' tokens so far in the model's KV cache; a column of the cache that is no token of a row is hidden from it.

    The cache keeps every key, also where a window slides: masks say which of them a node sees, and nodes can be taken back.

    logits: (rows, vocab) after the prompt. states: of each row, the hidden states (new, layers, d) at `layers` of the tokens
    kept last, which no drafter has seen yet.
    """

    def __init__(self, model, rows: list[torch.Tensor], layers: tuple[int, ...], reads_all: bool = False):
        self.model, self.layers, self.cache = model, layers, DynamicCache()
        config = model.config.get_text_config()
        self.split, last = unembeds(model), (config.num_hidden_layers,)
        self.inner = bool(layers) and (not self.split or layers != last)  # whether other states than the last are read
        self.limit, self.windows = position_limit(config), layer_windows(config)
        self.length = [len(row) for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        length = torch.tensor(self.length, device=ids.device)
        self.there = torch.arange(ids.shape[1], device=ids.device) < length[:, None]  # (rows, columns)
        slides = any(window and window < ids.shape[1] for window in self.windows.values())
        # Padding behind a row is seen by none of its tokens, masked or not; masked, and out of the window's reach of what is
        # there, it would see nothing itself, which some attention answers with numbers that are none.
        last, hidden = self._run(ids, attention_mask=None if slides else self.there.long())
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
        device = self.there.device
        mask = self._masks(tree) if len(tokens) * len(tree.depth) > 1 or self._slides(tree) else None
        position = [[min(n + d, self.limit - 1) for d in tree.depth] for n in self.length]  # beyond: in rows that have ended
        ids, position = (torch.tensor(x, device=device) for x in ([[max(0, t) for t in row] for row in tokens], position))
        last, hidden = self._run(ids, attention_mask=mask, position_ids=position)
        self.hidden = self._stacked(hidden) if hidden else None
        return unembed(self.model, last) if self.split else last

    def _slides(self, tree: "Tree") -> bool:
        """Whether a window of attention is shorter than what a node has before it."""
        return any(window and window <= max(self.length) + tree.depth[-1] for window in self.windows.values())

    def _masks(self, tree: "Tree") -> torch.Tensor | dict[str, torch.Tensor]:
        """What the nodes see, (rows, 1, nodes, columns + nodes), as numbers, which eager attention adds; by kind of layer where
        windows differ. A window reaches back by positions, not by columns, in which siblings lie side by side."""
        device = self.there.device
        there = self.there[:, None].expand(-1, len(tree.depth), -1)
        sees = torch.cat([there, tree.sees.to(device).expand(len(there), -1, -1)], 2)
        reach, masks = self.windows if self._slides(tree) else {"": None}, {}
        for window in set(reach.values()):
            mask = torch.zeros(sees.shape, dtype=self.model.dtype, device=device)
            hidden = ~sees if window is None else ~sees | (self._back(tree) >= window)
            masks[window] = mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)[:, None]
        return masks[window] if len(masks) == 1 else {kind: masks[window] for kind, window in reach.items()}

    def _back(self, tree: "Tree") -> torch.Tensor:
        """How many positions each column and each node lies before each node, (rows, nodes, columns + nodes)."""
        length, depth = (torch.tensor(x, device=self.there.device) for x in (self.length, tree.depth))
        at = length[:, None] + depth
        return at[:, :, None] - torch.cat([self.there.cumsum(1) - 1, at], 1)[:, None]

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
