"""Draft and verify: several tokens a pass of the base model, and the same output as one at a time.

A pass reads the token that is already certain and, after it, a tree of drafts for offsets 2, 3, ...; what the base model
says at each node decides which drafts stay, and gives the next certain token. Greedy (temperature 0) the output is that of
`greedy_decode`; above it each node's token is drawn from the base model and followed where it is a child, which leaves the
base model's distribution as it is, for any tree and drafter (no rejection among siblings is needed, as it is for proposals
that are drawn: Leviathan et al., arXiv 2211.17192).
"""

import time
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from transformers import DynamicCache

from .backbones import unembed, unembeds
from .expansion import precise
from .rows import require, undisturbed


@dataclass(frozen=True)
class Decoded:
    """What was decoded and how.

    tokens: of each row, the new ones, up to and with the end of text. passes: a row for every pass and drafted offset: row,
    number (of the pass), offset, drafted, accepted (this draft and all before it), agrees (the first candidate is the token
    that was decoded there, whatever came before; nan beyond the end), cut (the end of text or the length limit came within
    the pass's reach: left out of every rate). seconds: in the prompt, in drafting, in the base model's passes.
    """

    tokens: list[torch.Tensor]
    passes: pd.DataFrame
    seconds: dict[str, float]
    n_passes: int


def greedy_decode(model, ids: torch.Tensor, max_new_tokens: int, eos_token_id: int | None = None) -> torch.Tensor:
    """The most likely token, one after the other, without a cache: slow and obvious. ids (seq,); returns the new ones (n,)."""
    (ids,) = _rows(model, ids, max_new_tokens)
    new = []
    with undisturbed(model):
        while len(new) < max_new_tokens and (not new or new[-1] != eos_token_id):
            seen = torch.cat([ids, torch.tensor(new, dtype=ids.dtype, device=ids.device)])
            new.append(int(model(seen[None], use_cache=False).logits[0, -1].argmax()))
    return torch.tensor(new, dtype=torch.int64)


def draft_and_verify(
    model,
    drafter,
    ids: torch.Tensor | list[torch.Tensor],
    max_new_tokens: int,
    widths: tuple[int, ...] | None = None,
    temperature: float = 0.0,
    *,
    eos_token_id: int | None = None,
    seed: int = 0,
) -> Decoded:
    """Decode with drafts that `model` verifies: the output of the model alone, in fewer passes.

    Args:
        model: a causal LM of transformers, the base model.
        drafter: of drafters.py; None drafts nothing (plain decoding with a KV cache).
        ids: prompts, (seq,), (batch, seq) or a list of (seq,) of different lengths.
        widths: candidates for offset 2, 3, ...: every one of them after every one before (a tree); by default one for each
            offset of the drafter (a chain).
        temperature: 0 for the most likely token; else each token is drawn from softmax(logits / temperature).
        eos_token_id: ends a row. seed: of the draws.

    Raises:
        ValueError: naming the argument: an empty prompt, one that leaves the model's context too small, more widths than
            the drafter has offsets, a window of attention that is smaller than what is read.
    """
    rows = _rows(model, ids, max_new_tokens)
    depth = drafter.depth if drafter else 0
    widths = (1,) * depth if widths is None else tuple(widths)
    require(len(widths) <= depth, f"widths={widths}: the drafter drafts {depth} tokens after the certain one")
    require(all(w >= 1 for w in widths), f"widths={widths} must be integers >= 1")
    require(temperature >= 0, f"temperature={temperature} must be >= 0")
    rng, memory, log, n_passes = torch.Generator(model.device).manual_seed(seed), {}, [], 0
    out, clock = [_Row(row.tolist(), max_new_tokens, eos_token_id) for row in rows], _Clock(model.device)
    with undisturbed(model):
        prefix = Prefix(model, rows, drafter.layers if drafter else ())
        for row, (token,) in zip(out, _picked(prefix.logits[:, None], temperature, rng), strict=True):
            row.add([token])
        clock.stop("prompt")
        while any(row.left for row in out):
            use = widths[: max(row.left for row in out) - 1]
            drafts = drafter([row.ids for row in out], prefix.states, use, memory).tolist() if use else [[] for _ in out]
            tree = tree_of(use[: max(sum(best[0] >= 0 for best in of_row) for of_row in drafts)])
            tokens = [tree.tokens(row.ids[-1], of_row) for row, of_row in zip(out, drafts, strict=True)]
            clock.stop("draft")
            picks, kept = _picked(prefix.verify(tokens, tree), temperature, rng), []
            for i, (row, ours, theirs) in enumerate(zip(out, tokens, picks, strict=True)):
                kept.append(tree.follow(ours, theirs) if row.left else [0])
                if row.left:
                    accepted = [ours[node] for node in kept[-1][1:]]
                    cut = row.left <= len(widths) or eos_token_id in accepted
                    log.append((i, n_passes, len(row.ids), [best[0] for best in drafts[i]], len(accepted), cut))
                    row.add([*accepted, theirs[kept[-1][-1]]])
            prefix.keep(kept)
            n_passes += 1
            clock.stop("verify")
    passes = _passes(log, [row.ids for row in out], len(widths))
    return Decoded([torch.tensor(row.ids[row.prompt :]) for row in out], passes, clock.seconds, n_passes)


class Prefix:
    """The rows' tokens so far in the model's KV cache; a column of the cache that is no token of a row is hidden from it.

    logits: (rows, vocab) after the prompt. states: of each row, the hidden states (new, layers, d) at `layers` of the tokens
    kept last, which no drafter has seen yet.
    """

    def __init__(self, model, rows: list[torch.Tensor], layers: tuple[int, ...]):
        self.model, self.layers, self.cache = model, layers, DynamicCache()
        config = model.config.get_text_config()
        self.split, last = model.base_model is not model and unembeds(model), (config.num_hidden_layers,)
        self.inner = bool(layers) and (not self.split or layers != last)  # whether other states than the last are read
        self.limit = getattr(config, "max_position_embeddings", None) or 2**31
        self.length = [len(row) for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        length = torch.tensor(self.length, device=ids.device)
        self.there = torch.arange(ids.shape[1], device=ids.device) < length[:, None]  # (rows, columns)
        last, self.hidden = self._run(ids, attention_mask=self.there.long())
        last = last[torch.arange(len(rows), device=ids.device), length - 1]
        self.logits = unembed(model, last) if self.split else last
        self.states = [h[: len(row)] for h, row in zip(self.hidden, rows, strict=True)]

    def _run(self, ids: torch.Tensor, **where) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, n, d) before the LM head, or (rows, n, vocab) where it cannot be run apart; (rows, n, layers, d)."""
        run = self.model.base_model if self.split else self.model
        out = run(input_ids=ids, past_key_values=self.cache, use_cache=True, output_hidden_states=self.inner, **where)
        last = (out.last_hidden_state if self.split else out.logits).to(ids.device)
        if self.inner:
            hidden = torch.stack([out.hidden_states[layer].to(ids.device) for layer in self.layers], 2)
        else:
            hidden = last[:, :, None] if self.layers else last[:, :, :0]
        return last, hidden.to(torch.promote_types(self.model.dtype, torch.float32))

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
        last, self.hidden = self._run(ids, attention_mask=mask, position_ids=position)
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
                    where = index.expand(-1, x.shape[1], -1, x.shape[3])
                    x[:, :, start : start + longest] = x[:, :, start:].gather(2, where)
                setattr(layer, name, x[:, :, : start + longest])
        kept = torch.tensor([[i < len(path) for i in range(longest)] for path in paths], device=device)
        self.there = torch.cat([self.there, kept], 1)
        self.length = [n + len(path) for n, path in zip(self.length, paths, strict=True)]
        self.states = [h[path] for h, path in zip(self.hidden, paths, strict=True)]


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


def acceptance(passes: pd.DataFrame) -> pd.DataFrame:
    """By offset k: a_k, passes in which drafts 2..k were all accepted / passes that drafted k (vLLM's per position);
    conditional, a_k / a_(k-1) (EAGLE's n-alpha); stand_alone, the share of first candidates that were what was decoded, whatever
    came before; drafted, passes. Cut passes are left out."""
    whole = passes[~passes["cut"] & passes["drafted"]]
    found = whole.groupby("offset").agg(a=("accepted", "mean"), stand_alone=("agrees", "mean"), drafted=("accepted", "size"))
    found["conditional"] = found["a"] / found["a"].shift(fill_value=1.0)
    return found.reset_index()


def mean_acceptance_length(passes: pd.DataFrame) -> float:
    """Tokens a pass: 1, the base model's own, and the drafts accepted. Where every pass drafts every offset: 1 + sum a_k."""
    whole = passes[~passes["cut"]]
    return 1 + float(whole.groupby(["row", "number"])["accepted"].sum().mean())


def speed_up(tokens_a_pass: float, verify: float, draft: float, plain: float) -> float:
    """(1 + sum a_k) / ((verifying pass + draft) / plain pass): how much faster than one token a pass, all in seconds a pass."""
    return tokens_a_pass / ((verify + draft) / plain)


@dataclass
class _Row:
    """A row's tokens; `left` new ones may still come."""

    ids: list[int]
    left: int
    end: int | None

    def __post_init__(self):
        self.prompt = len(self.ids)

    def add(self, tokens: list[int]) -> None:
        for token in tokens[: self.left]:
            self.ids.append(token)
            self.left -= 1
            if token == self.end:
                self.left = 0
                return


class _Clock:
    """Adds up the seconds of the parts of a loop."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.at = device, {"prompt": 0.0, "draft": 0.0, "verify": 0.0}, time.perf_counter()

    def stop(self, part: str) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        now = time.perf_counter()
        self.seconds[part] += now - self.at
        self.at = now


def _picked(logits: torch.Tensor, temperature: float, rng: torch.Generator) -> list[list[int]]:
    """The base model's token after each node, (rows, nodes): drawn for all of them, whichever are reached."""
    if temperature == 0:
        return logits.argmax(-1).tolist()
    p = (logits.to(precise(logits.device)) / temperature).softmax(-1)
    return torch.multinomial(p.flatten(0, 1), 1, generator=rng).view(p.shape[:2]).tolist()


def _passes(log: list, decoded: list[list[int]], depth: int) -> pd.DataFrame:
    rows = []
    for row, number, start, drafts, accepted, cut in log:
        there = decoded[row][start:]
        for d in range(depth):
            drafted = d < len(drafts) and drafts[d] >= 0
            agrees = float(drafts[d] == there[d]) if drafted and d < len(there) else np.nan
            rows.append((row, number, d + 2, drafted, d < accepted, agrees, cut))
    columns = {"row": int, "number": int, "offset": int, "drafted": bool, "accepted": bool, "agrees": float, "cut": bool}
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def _rows(model, ids, max_new_tokens: int) -> list[torch.Tensor]:
    """The prompts, checked, on the model's device."""
    ids = [ids] if torch.is_tensor(ids) and ids.ndim == 1 else list(ids)
    require(ids and all(x.ndim == 1 and len(x) and not x.is_floating_point() for x in ids), "ids must be prompts of >= 1 token")
    require(max_new_tokens >= 1, f"max_new_tokens={max_new_tokens} must be >= 1")
    known = model.get_input_embeddings().num_embeddings
    require(all(0 <= int(x.min()) and int(x.max()) < known for x in ids), f"ids must be in [0, {known})")
    config, longest = model.config.get_text_config(), max(map(len, ids))
    asked = f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens}"
    limit = getattr(config, "max_position_embeddings", None) or longest + max_new_tokens
    require(longest + max_new_tokens <= limit, f"{asked} are more than the model's {limit} positions: shorten either")
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    slides = window and longest + max_new_tokens > window and (kinds is None or any("sliding" in kind for kind in kinds))
    require(not slides, f"{asked} are more than the {window} tokens that the model's attention reaches: not supported")
    return [x.to(model.device) for x in ids]
