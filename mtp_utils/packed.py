"""The packed engine: all positions' candidates in few forward passes over one prefix cache (attention.py).

Everything but the attention is token-wise and run by the model's own code, on one flat row of candidates.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from mtp_utils.attention import NAME, Plan, plan_chunks, serving

KEPT_BYTES = 256 * 2**20  # keys and values of the tree that may be held at once


@dataclass
class Budget:
    """Of one candidate pass: bytes of logits, candidates, numbers of a hidden layer; queries of one attention call."""

    logits: int
    tokens: int
    hidden: int
    queries: int


# [measured, 2 cores] Matrix products want 512 rows and more; wider levels than these only leave the cache.
CPU = Budget(104 * 2**20, 2048, 2**18, 256)
ACCELERATOR = Budget(256 * 2**20, 16384, 2**25, 1024)


class PrefixLayer(DynamicLayer):
    """Keeps every key of the prefix, also where the window slides; hands candidates only their own keys."""

    packed = False
    fresh = None

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.packed:
            return super().update(key_states, value_states, *args, **kwargs)
        self.fresh = key_states[0], value_states[0]
        return key_states, value_states


@contextmanager
def attention_switched(model):
    """The model's attention is ours inside, and as before afterwards, also on error."""
    configs = [model.config.get_text_config(), *(getattr(module, "config", None) for module in model.modules())]
    configs = {id(config): config for config in configs if isinstance(config, PreTrainedConfig)}
    saved = [(config, config._attn_implementation_internal) for config in configs.values()]
    try:
        for config, _ in saved:
            config._attn_implementation_internal = NAME
        yield
    finally:
        for config, before in saved:
            config._attn_implementation_internal = before


class Packed:
    """p(. | prefix, path) for whole levels of paths, by packed passes.

    Args:
        ids: (rows, n) tokens, right-padded; causal attention never sees the padding.
        rows, t: (P,) batch row and position of each wanted position ("root"), sorted.
    """

    def __init__(self, model, ids, rows, t):
        self.model, self.rows, self.t = model, rows, t
        self.budget = CPU if ids.device.type == "cpu" else ACCELERATOR
        self.cache = DynamicCache()
        self.cache.layer_class_to_replicate = PrefixLayer
        columns, where = t.unique(return_inverse=True)
        logits = model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=columns).logits
        self.logits = logits[rows, t if logits.shape[1] == ids.shape[1] else where]  # (P, V)
        self.windows, self.layers = set(), self.cache.layers
        for layer in self.layers:
            layer.packed = True

    @property
    def step(self):
        """Candidates of one pass."""
        row, width = self.logits[0].nbytes, self.model.get_input_embeddings().embedding_dim
        return min(self.budget.tokens, max(32, self.budget.logits // row), max(512, self.budget.hidden // width))

    @property
    def capacity(self):
        """Nodes whose keys and values may be held at once."""
        per_node = sum(x[0, :, 0].nbytes for layer in self.layers for x in (layer.keys, layer.values))
        return max(1, KEPT_BYTES // per_node)

    def logits_of(self, level, keep=False):
        """Yield (start, stop, logits (stop - start, V)) over the level; keep its keys and values if asked."""
        parts, n = [], len(level.root)
        passes = max(1, math.ceil(n / self.step))
        step = max(1, math.ceil(n / passes))  # of equal size
        for start in range(0, n, step):
            stop = min(start + step, n)
            if level.depth == 0:
                yield start, stop, self.logits[level.root[start:stop]]
                continue
            logits = self.forward(level, start, stop)
            if keep:
                parts.append([layer.fresh for layer in self.layers])
            yield start, stop, logits
        level.kv = [tuple(torch.cat(x, 1) for x in zip(*layer, strict=True)) for layer in zip(*parts, strict=True)]

    def forward(self, level, start, stop):
        root = level.root[start:stop]
        t, rows = self.t[root], self.rows[root]
        chunks = plan_chunks(rows.tolist(), t.tolist(), self.budget.queries)
        plan = Plan(self.layers, t, level.depth, chunks, level.lineage(start, stop))
        with attention_switched(self.model), serving(plan):
            logits = self.model(
                input_ids=level.token[None, start:stop],
                position_ids=(t + level.depth)[None],
                past_key_values=self.cache,
                use_cache=True,
            ).logits[0]
        if plan.calls != len(self.layers):
            raise NotImplementedError(f"packed attention served {plan.calls} of {len(self.layers)} layers")
        self.windows |= plan.windows
        return logits
