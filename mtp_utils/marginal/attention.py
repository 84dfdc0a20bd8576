"""The attention of candidates over a shared prefix, as a function for transformers' attention interface.

A candidate at depth d below position t sees the prefix up to t, its own ancestors and itself. Attention over the prefix
by a kernel that returns its log-sum-exp, and one term per ancestor, merge exactly: softmax over a union of keys is the
parts' outputs, weighted by the softmax of their log-sum-exps.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import repeat

import torch
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "mtp_packed"
PLAIN_QUERIES = 1024  # whose scores are held at once where no kernel serves
MAX_SPAN = 256  # positions in a chunk under a sliding window, so that no block of keys is hidden from a query as a whole

_plan: ContextVar["Plan"] = ContextVar("mtp_plan")


@dataclass
class Plan:
    """What the attention function must know of one candidate pass; positions t (n,) ascend within a batch row (n,)."""

    layers: list
    rows: torch.Tensor
    t: torch.Tensor
    depth: int
    queries: int  # of one call of the kernel, at most
    lineage: list  # (ancestor level, its rows (n,)), the parent first
    cut: dict = field(default_factory=dict)
    masks: dict = field(default_factory=dict)
    calls: int = 0
    windows: set = field(default_factory=set)

    def chunks(self, window):
        """(first query, last + 1, batch row, lowest t, highest t) of each call of the kernel."""
        span = MAX_SPAN if window else torch.inf
        if span not in self.cut:
            self.cut[span] = plan_chunks(self.rows.tolist(), self.t.tolist(), self.queries, span)
        return self.cut[span]

    def keys(self, chunk, window):
        """Prefix keys that some query of the chunk sees: lowest, highest + 1."""
        _, _, _, low, high = chunk
        return (max(0, low + self.depth + 1 - window) if window else 0), high + 1

    def mask(self, chunk, window, groups, dtype, device):
        """Additive mask (groups * queries, keys), or None where every query sees every key of the chunk."""
        start, stop, _, low, high = chunk
        if low == high:
            return None
        name = (start, window, groups, dtype, device)
        if name not in self.masks:
            first, last = self.keys(chunk, window)
            t, key = self.t[start:stop, None].to(device), torch.arange(first, last, device=device)
            hidden = key > t
            if window:
                hidden |= key <= t + self.depth - window
            width = -(-(last - first) // 16) * 16  # CUDA's kernel wants aligned rows
            mask = torch.zeros(groups, stop - start, width, dtype=dtype, device=device)
            mask[:, :, : last - first].masked_fill_(hidden, -torch.inf)
            self.masks[name] = mask.flatten(0, 1)[:, : last - first]
        return self.masks[name]


@contextmanager
def serving(plan):
    """Inside, `attend` follows this plan."""
    token = _plan.set(plan)
    try:
        yield
    finally:
        _plan.reset(token)


def current():
    """The plan of this thread's candidate pass; the model of a pass that another thread runs is not to be used meanwhile."""
    plan = _plan.get(None)
    if plan is None:
        raise RuntimeError("another thread has this model in use (future_log_probs): take turns, or give each its own model")
    return plan


def no_mask(*args, **kwargs):
    """Of transformers' own masks a candidate pass needs none."""
    current()


def plan_chunks(rows, t, queries, span):
    """Cut queries, sorted by (batch row, position), into chunks of one row, so many queries and positions at most."""
    chunks, start = [], 0
    for i in range(1, len(t) + 1):
        if i == len(t) or rows[i] != rows[start] or i - start == queries or t[i] - t[start] > span:
            chunks.append((start, i, rows[start], t[start], t[i - 1]))
            start = i
    return chunks


def kernel(query, key, value, mask, scale, softcap):
    """Attention and its log-sum-exp: (1, H, q, D) x (1, H, n, D) -> (1, H, q, D), (1, H, q)."""
    aten = torch.ops.aten
    alike = softcap is None and query.shape[-1] == value.shape[-1]
    if alike and query.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=mask, scale=scale)
    if alike and query.device.type == "cuda" and query.dtype != torch.float64 and query.shape[-1] % 8 == 0:
        bias = None if mask is None else mask.expand(*query.shape[:3], mask.shape[-1])
        out, lse, _, _ = aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, scale=scale)
        return out, lse[..., : query.shape[2]]
    if query.shape[2] > PLAIN_QUERIES:
        masks = repeat(None) if mask is None else mask.split(PLAIN_QUERIES)
        cut = zip(query.split(PLAIN_QUERIES, 2), masks, strict=False)
        return tuple(torch.cat(x, 2) for x in zip(*(kernel(q, key, value, m, scale, softcap) for q, m in cut), strict=True))
    score = cap((query @ key.mT).float() if query.dtype.itemsize < 4 else query @ key.mT, scale, softcap)
    score = score if mask is None else score + mask
    return (score.softmax(-1).to(value.dtype) @ value), score.logsumexp(-1)


def cap(score, scale, softcap):
    score = score * scale
    return score if softcap is None else torch.tanh(score / softcap) * softcap


def attend(module, query, key, value, attention_mask, dropout=0.0, scaling=None, sliding_window=None, softcap=None, **kwargs):
    """The attention function of a candidate pass, under transformers' interface: (1, H, n, D) -> (1, n, H, D)."""
    plan = current()
    sinks = kwargs.pop("s_aux", None)  # (H,) logits of a key without a value
    extra = [name for name, x in kwargs.items() if torch.is_tensor(x) and not name.endswith(("_ids", "_position"))]
    if attention_mask is not None or extra or dropout or key.shape[2] != len(plan.t):
        raise NotImplementedError(f"attention with {extra or 'a mask, dropout or a cache'} of the model's own")
    plan.calls += 1
    plan.windows.add(sliding_window)
    index = module.layer_idx
    prefix = whole_prefix(plan.layers[index], module)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out, lse = over_prefix(plan, prefix, query[0], value.shape[-1], scale, sliding_window, softcap)
    if sinks is not None:
        sinks = sinks.to(lse.dtype)[:, None]
        out, lse = out * torch.sigmoid(lse - sinks).unsqueeze(-1), torch.logaddexp(lse, sinks)
    near = [(key[0], value[0])]
    for at, rows in plan.lineage:
        cached = [x.index_select(1, rows.to(x.device)) for x in at.kv[index]]
        near.append([x[0] for x in module.expand_kv(*(x[None] for x in cached))] if latent(module) else cached)
    for distance, (k, v) in enumerate(near):
        if not sliding_window or distance < sliding_window:
            out, lse = absorb(out, lse, query[0], k, v, scale, softcap)
    return out.to(query.dtype).transpose(0, 1).unsqueeze(0).contiguous(), None


def latent(module):
    """Whether the cache holds a compressed form of keys and values, from which the module makes them (latent attention)."""
    return hasattr(module, "expand_kv")


def whole_prefix(layer, module):
    """Keys and values (B, H, T, D) of the prefix; of latent attention made once, as wide as its heads."""
    if not latent(module):
        return layer.keys, layer.values
    if layer.opened is None:
        layer.opened = module.expand_kv(layer.keys, layer.values)
    return layer.opened


def over_prefix(plan, prefix, query, width, scale, window, softcap):
    """Attention of all candidates over the prefix keys they see: (H, n, D) -> (H, n, width), lse (H, n)."""
    heads, n, _ = query.shape
    groups = heads // prefix[0].shape[1]
    dtype = torch.promote_types(query.dtype, torch.float32)
    out = torch.empty(n, heads, width, dtype=dtype, device=query.device).transpose(0, 1)  # as the model wants it back
    lse = torch.empty(heads, n, dtype=dtype, device=query.device)
    if window and plan.depth >= window:  # the path has outgrown the window
        return out.zero_(), lse.fill_(-torch.inf)
    for chunk in plan.chunks(window):
        start, stop, row, _, _ = chunk
        first, last = plan.keys(chunk, window)
        q = query[:, start:stop].reshape(1, heads // groups, groups * (stop - start), -1)  # a group shares its keys
        k, v = (x[row : row + 1, :, first:last] for x in prefix)
        o, s = kernel(q, k, v, plan.mask(chunk, window, groups, q.dtype, q.device), scale, softcap)
        out[:, start:stop], lse[:, start:stop] = o.reshape(heads, -1, width), s.reshape(heads, -1)
    return out, lse


def absorb(out, lse, query, k, v, scale, softcap):
    """Merge one more key per query, exactly: out (H, n, D), lse (H, n), k and v (H or its groups, n, D)."""
    groups = len(query) // len(k)
    if groups > 1:
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    s = cap((query.to(lse.dtype) * k).sum(-1), scale, softcap)
    return torch.lerp(v.to(out.dtype), out, torch.sigmoid(lse - s).unsqueeze(-1)), torch.logaddexp(lse, s)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, no_mask)
