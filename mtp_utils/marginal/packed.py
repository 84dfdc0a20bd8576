"""The packed engine: all positions' candidates in few forward passes over one prefix cache (attention.py).

Everything but the attention is token-wise and run by the model's own code, on one flat row of candidates: the decoder over
as many as its work wants, the LM head over as many as its logits allow.
"""

import dataclasses
import inspect
import math
import threading
import warnings
from contextlib import contextmanager
from functools import lru_cache

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from ..backbones.anatomy import unembed, unembeds
from ..backbones.wrapped import decoder
from .attention import NAME, Plan, serving
from .places import Places

_switching = threading.RLock()  # of all models: they may share a configuration
KEPT_BYTES = 256 * 2**20  # keys and values of the tree that may be held at once


@dataclasses.dataclass
class Budget:
    """Bytes of logits at once; candidates of one pass, and numbers of its hidden layer; queries of one attention call."""

    logits: int
    tokens: int
    hidden: int
    queries: int


# [measured, 2 cores] Matrix products want 512 rows and more; wider levels than these only leave the cache.
CPU = Budget(104 * 2**20, 2048, 2**18, 256)
# Wide enough that the work of a kernel hides its launch; what is held of (candidates, vocab) stays below 1.5 GB.
ACCELERATOR = Budget(300 * 2**20, 8192, 2**25, 4096)


class PrefixLayer(DynamicLayer):
    """Keeps every key of the prefix, also where the window slides; hands candidates only their own keys."""

    packed = keep = False
    fresh = None  # the candidates' own, where they are to be kept
    opened = None  # of latent attention: the prefix's keys and values, as its heads want them

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.packed:
            return super().update(key_states, value_states, *args, **kwargs)
        self.fresh = (key_states[0], value_states[0]) if self.keep else None
        return key_states, value_states


def evenly(start, stop, size):
    """[start, stop) in the fewest parts of at most `size`, of equal size."""
    step = max(1, math.ceil((stop - start) / max(1, math.ceil((stop - start) / size))))
    return [(a, min(a + step, stop)) for a in range(start, stop, step)]


@contextmanager
def attention_switched(model):
    """The model's attention is ours inside, and as before afterwards, also on error; one thread at a time."""
    with _switching:
        yield from _switched(model)


def _switched(model):
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


@contextmanager
def positions_told(model, positions):
    """Inside, embeddings of positions that would be counted from the cache's length are given these (n,) instead."""

    def tell(module, args, kwargs):
        given = kwargs.get("position_ids")
        return args, kwargs | {"position_ids": positions} if given is None or given.ndim == 1 else kwargs

    hooks = [module.register_forward_pre_hook(tell, with_kwargs=True) for module in model.modules() if counts(type(module))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@lru_cache
def counts(kind):
    """Whether modules of that class embed positions, those after a length they are given or others if told."""
    names = inspect.signature(kind.forward).parameters
    return {"past_key_values_length", "position_ids"} <= set(names) and next(reversed(names)) == "position_ids"


class Packed:
    """p(. | prefix, path) for whole levels of paths, by packed passes.

    Args:
        ids: (rows, n) tokens, right-padded; causal attention never sees the padding.
        rows, t: (P,) batch row and position of each wanted position ("root"), sorted.
    """

    def __init__(self, model, ids, rows, t):
        self.model, self.rows, self.t, self.places = model, rows, t, Places(model, ids)
        self.budget = CPU if ids.device.type == "cpu" else ACCELERATOR
        self.cache = DynamicCache()
        self.cache.layer_class_to_replicate = PrefixLayer
        columns, where = t.unique(return_inverse=True)
        try:
            logits = model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=columns).logits
        except IndexError as error:  # it looks for states that this cache does not have
            raise NotImplementedError("layers that keep something else than keys and values") from error
        index = rows * logits.shape[1] + (t if logits.shape[1] == ids.shape[1] else where)
        flat = logits.flatten(0, 1)
        self.logits = flat if len(index) == len(flat) else flat[index]  # (P, V)
        self.split = unembeds(model)  # its decoder and its LM head may be run apart
        self.windows, self.layers = set(), self.cache.layers
        for layer in self.layers:
            layer.packed = True

    @property
    def step(self):
        """Candidates of one pass; of one pass through the LM head."""
        width = self.model.get_input_embeddings().embedding_dim
        body = min(self.budget.tokens, max(512, self.budget.hidden // width))
        head = max(32, self.budget.logits // self.logits[0].nbytes)
        return (body if self.split else min(body, head)), head

    @property
    def capacity(self):
        """Nodes whose keys and values may be held at once."""
        per_node = sum(x[0, :, 0].nbytes for layer in self.layers for x in (layer.keys, layer.values))
        return max(1, KEPT_BYTES // per_node)

    def logits_of(self, level, keep=False):
        """Yield (start, stop, logits (stop - start, V)) over the level; keep its keys and values if asked."""
        parts, (body, head) = [], self.step
        for layer in self.layers:
            layer.keep = keep
        todo = evenly(0, len(level.root), body if level.depth else head)
        while todo:
            start, stop = todo.pop(0)
            if level.depth == 0:
                yield start, stop, self.logits[level.root[start:stop]]
                continue
            try:
                found = self.forward(level, start, stop)
            except torch.OutOfMemoryError as error:
                todo = self.halved(start, len(level.root), stop - start, error)
                continue
            if keep:
                parts.append([layer.fresh for layer in self.layers])
            cut = evenly(start, stop, head)
            while cut:
                first, last = cut.pop(0)
                here = found[:, first - start : last - start]
                try:
                    logits = unembed(self.model, here) if self.split else here
                except torch.OutOfMemoryError as error:
                    head = (last - first) // 2
                    cut = self.halved(first, stop, last - first, error)
                    continue
                yield first, last, logits[0]
        level.kv = [tuple(torch.cat(x, 1) for x in zip(*layer, strict=True)) for layer in zip(*parts, strict=True)]

    def halved(self, start, stop, size, error):
        """What is left to do, in passes of half the size, which is that of later ones too; the error where there is no half."""
        if size == 1:
            raise MemoryError("one candidate does not fit into the device's memory beside the model and its prefix") from error
        self.budget = dataclasses.replace(self.budget, tokens=size // 2, logits=self.budget.logits // 2)
        torch.accelerator.empty_cache()
        warnings.warn(f"out of memory: passes of {size // 2} candidates from here on", stacklevel=3)
        return evenly(start, stop, size // 2)

    def forward(self, level, start, stop):
        """The last states (1, n, d) of some candidates, or their logits (1, n, V) where the LM head is not run apart."""
        run, kind = (decoder(self.model), "last_hidden_state") if self.split else (self.model, "logits")
        root = level.root[start:stop]
        t, rows = self.t[root], self.rows[root]
        plan = Plan(self.layers, rows, t, level.depth, self.budget.queries, level.lineage(start, stop))
        places = self.places.behind(rows, t, level.path(start, stop))[:, -1]
        with attention_switched(self.model), serving(plan), positions_told(self.model, places):
            out = run(
                input_ids=level.token[None, start:stop],
                position_ids=places[None],
                past_key_values=self.cache,
                use_cache=True,
            )
        if plan.calls != len(self.layers):
            raise NotImplementedError(f"packed attention served {plan.calls} of {len(self.layers)} layers")
        self.windows |= plan.windows
        return out[kind].to(t.device)  # of a model on several devices the last layer may lie elsewhere
