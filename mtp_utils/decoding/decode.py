"""Draft and verify: several tokens a pass of the base model, and the same output as one at a time.

A pass reads the token that is already certain and, after it, a tree of drafts for offsets 2, 3, ...; what the base model
says at each node decides which drafts stay, and gives the next certain token. Greedy (temperature 0) the output is that of
`greedy_decode`; above it each node's token is drawn from the base model and followed where it is a child, which leaves the
base model's distribution as it is, for any tree and drafter (no rejection among siblings is needed, as it is for proposals
that are drawn: Leviathan et al., arXiv 2211.17192).
"""

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ..backbones.anatomy import position_limit
from ..backbones.wrapped import plain
from ..base.refusals import require
from ..marginal.expansion import precise
from ..marginal.rows import undisturbed
from .checks import check_attention
from .verify import Prefix, tree_of


@dataclass(frozen=True)
class Decoded:
    """What was decoded and how.

    tokens: of each row, the new ones, up to and with the end of text. passes: a row for every pass and drafted offset: row,
    number (of the pass), offset, drafted, accepted (this draft and all before it), agrees (the first candidate is the token
    that was decoded there, whatever came before; nan beyond the end), cut (the end of text was decoded, or the length limit
    came, within the pass's reach: left out of every rate). seconds: in the prompt, in drafting, in the base model's passes.
    """

    tokens: list[torch.Tensor]
    passes: pd.DataFrame
    seconds: dict[str, float]
    n_passes: int


def greedy_decode(model, ids: torch.Tensor, max_new_tokens: int, eos_token_id=None) -> torch.Tensor:
    """The most likely token, one after the other, without a cache: slow and obvious. ids (seq,); returns the new ones (n,).
    eos_token_id as in `draft_and_verify`."""
    model = plain(model)
    (ids,) = _rows(model, ids, max_new_tokens)
    new, ends = [], end_tokens(eos_token_id)
    with undisturbed(model):
        while len(new) < max_new_tokens and not ends.intersection(new[-1:]):
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
    eos_token_id: int | list[int] | tuple[int, ...] | None = None,
    seed: int | list[int] = 0,
    attention_mask: torch.Tensor | None = None,
) -> Decoded:
    """Decode with drafts that `model` verifies: the output of the model alone, in fewer passes.

    The same tokens as without drafts, drawn ones too: each is decided by the model and by a number that only the seed and its
    place in the row determine. Where two tokens are nearly tied, a pass over several rounds otherwise than a pass over one: in
    float32 that is rare, in bfloat16 it is not.

    Args:
        model: a causal LM of transformers, the base model.
        drafter: of drafters.py; None drafts nothing (plain decoding with a KV cache).
        ids: prompts, (seq,), (batch, seq) or a list of (seq,) of different lengths.
        attention_mask: of ids (batch, seq), 1 for tokens that are there; without it all are.
        widths: candidates for offset 2, 3, ...: every one of them after every one before (a tree); by default one for each
            offset of the drafter (a chain).
        temperature: 0 for the most likely token; else each token is drawn from softmax(logits / temperature).
        eos_token_id: ends a row; of several, whichever comes first. seed: of the draws, of all rows or of each.

    Raises:
        ValueError: naming the argument: an empty prompt, one that leaves the model's context too small, more widths than
            the drafter has offsets.
        CannotDo: a model whose attention does not hear masks and positions, or whose cache cannot be rolled back (a small
            check finds out, once).
    """
    model = plain(model)
    rows = _rows(model, ids, max_new_tokens, attention_mask)
    depth = drafter.depth if drafter else 0
    widths = (1,) * depth if widths is None else tuple(widths) if isinstance(widths, (tuple, list)) else (widths,)
    require(len(widths) <= depth, f"widths={widths}: the drafter drafts {depth} tokens after the certain one")
    vocab = model.get_input_embeddings().num_embeddings
    require(all(isinstance(w, int) and 1 <= w <= vocab for w in widths), f"widths={widths} must be integers in [1, {vocab}]")
    theirs = getattr(drafter, "model", None)
    other = "the drafter is of another model than the one that verifies (heads: load_heads)"
    require(theirs is None or plain(theirs) is model, other)
    ends = end_tokens(eos_token_id)
    require(temperature >= 0, f"temperature={temperature} must be >= 0")
    seeds = seed if isinstance(seed, list) else [[seed, i] for i in range(len(rows))]
    require(len(seeds) == len(rows), f"seed: {len(seeds)} of them for {len(rows)} rows")
    luck = [np.random.default_rng(s).random(max_new_tokens + depth + 1) for s in seeds] if temperature else None
    out, memory, log, n_passes = [_Row(row.tolist(), max_new_tokens, ends) for row in rows], {}, [], 0
    with undisturbed(model):
        check_attention(model, max(map(len, rows)) + max_new_tokens)
        clock = _Clock(model.device)
        prefix = Prefix(model, rows, drafter.layers if drafter else (), getattr(drafter, "reads_all", False))
        draws = None if luck is None else [[u[0]] for u in luck]
        for row, (token,) in zip(out, _picked(prefix.logits[:, None], temperature, draws), strict=True):
            row.add([token])
        clock.stop("prompt")
        while any(row.left for row in out):
            use = widths[: max(row.left for row in out) - 1]
            drafts = drafter([row.ids for row in out], prefix.states, use, memory).tolist() if use else [[] for _ in out]
            tree = tree_of(use[: max(sum(best[0] >= 0 for best in of_row) for of_row in drafts)])
            tokens = [tree.tokens(row.ids[-1], of_row) for row, of_row in zip(out, drafts, strict=True)]
            clock.stop("draft")
            if luck is not None:  # a node at depth d decides the d-th token after those there are
                draws = [[u[len(row.ids) - row.prompt + d] for d in tree.depth] for row, u in zip(out, luck, strict=True)]
            picks, kept = _picked(prefix.verify(tokens, tree), temperature, draws), []
            for i, (row, ours, theirs) in enumerate(zip(out, tokens, picks, strict=True)):
                kept.append(tree.follow(ours, theirs) if row.left else [0])
                if row.left:
                    accepted = [ours[node] for node in kept[-1][1:]]
                    short = row.left <= len(widths)
                    log.append((i, n_passes, len(row.ids), [best[0] for best in drafts[i]], len(accepted), short))
                    row.add([*accepted, theirs[kept[-1][-1]]])
            prefix.keep(kept)
            n_passes += 1
            clock.stop("verify")
    passes = _passes(log, [row.ids for row in out], len(widths), ends)
    return Decoded([torch.tensor(row.ids[row.prompt :]) for row in out], passes, clock.seconds, n_passes)


@dataclass
class _Row:
    """A row's tokens; `left` new ones may still come."""

    ids: list[int]
    left: int
    ends: frozenset[int]

    def __post_init__(self):
        self.prompt = len(self.ids)

    def add(self, tokens: list[int]) -> None:
        for token in tokens[: self.left]:
            self.ids.append(token)
            self.left -= 1
            if token in self.ends:
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


def _picked(logits: torch.Tensor, temperature: float, draws: list[list[float]] | None) -> list[list[int]]:
    """The base model's token after each node, (rows, nodes): the most likely one, or the one at which the distribution function
    passes a number drawn from [0, 1); of all nodes, whichever are reached."""
    require(bool((logits < torch.inf).all()), "the model's logits are not finite: nothing can be decoded from them")
    if draws is None:
        return logits.argmax(-1).tolist()
    below = (logits.to(precise(logits.device)) / temperature).softmax(-1).cumsum(-1)
    u = torch.tensor(draws, dtype=below.dtype, device=below.device)[..., None] * below[..., -1:]
    return (below <= u).sum(-1).clamp(max=logits.shape[-1] - 1).tolist()


def _passes(log: list, decoded: list[list[int]], depth: int, ends: frozenset[int]) -> pd.DataFrame:
    rows = []
    for row, number, start, drafts, accepted, short in log:
        there = decoded[row][start : start + depth]
        for d in range(depth):
            drafted = d < len(drafts) and drafts[d] >= 0
            agrees = float(drafts[d] == there[d]) if drafted and d < len(there) else np.nan
            rows.append((row, number, d + 2, drafted, d < accepted, agrees, short or not ends.isdisjoint(there)))
    columns = {"row": int, "number": int, "offset": int, "drafted": bool, "accepted": bool, "agrees": float, "cut": bool}
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def end_tokens(eos_token_id) -> frozenset[int]:
    """The tokens that end a row."""
    found = eos_token_id if isinstance(eos_token_id, (list, tuple)) else [] if eos_token_id is None else [eos_token_id]
    require(all(isinstance(i, int) for i in found), f"eos_token_id={eos_token_id!r} must be a token's id, or several")
    return frozenset(found)


def _rows(model, ids, max_new_tokens: int, mask: torch.Tensor | None = None) -> list[torch.Tensor]:
    """The prompts, checked, on the model's device."""
    require(hasattr(model, "get_input_embeddings"), f"model: a model of transformers (of a Backbone, .model), not {type(model)}")
    ids = [ids] if torch.is_tensor(ids) and ids.ndim == 1 else list(ids)
    require(all(map(torch.is_tensor, ids)), f"ids must be tensors of token ids, not {type(ids[0]).__name__ if ids else None}")
    if mask is not None:
        shape = (len(ids), len(ids[0]) if ids else 0)
        alike = tuple(mask.shape) == shape and all(len(x) == shape[1] for x in ids)
        require(alike, f"attention_mask must have the shape of ids, {shape}, not {tuple(mask.shape)}")
        ids = [x[there != 0] for x, there in zip(ids, mask.to(ids[0].device), strict=True)]
    require(ids and all(x.ndim == 1 and len(x) and not x.is_floating_point() for x in ids), "ids must be prompts of >= 1 token")
    require(max_new_tokens >= 1, f"max_new_tokens={max_new_tokens} must be >= 1")
    known = model.get_input_embeddings().num_embeddings
    require(all(0 <= int(x.min()) and int(x.max()) < known for x in ids), f"ids must be in [0, {known})")
    config, longest = model.config.get_text_config(), max(map(len, ids))
    asked = f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens}"
    limit = position_limit(config)
    require(longest + max_new_tokens <= limit, f"{asked} are more than the model's {limit} positions: shorten either")
    return [x.to(model.device) for x in ids]
