"""The expanded cache: the prefix once, then each position's candidates as a batch on its cache, as a user would write it.

For models that packed passes do not serve but whose cache can be copied: attention of any kind, recurrent states. A cache of
plain keys and values is cut at the position. Any other cannot be taken back, so it is led from position to position, a token at
a time as in generation, and candidates' tokens are fed one by one.
"""

import copy
import inspect
import math

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from ..backbones.anatomy import last_only
from .places import Places

CACHE_BYTES = 256 * 2**20  # of the candidates of one pass; and of the caches that are kept for the next level
LOGIT_BYTES = 104 * 2**20  # of one pass
PASS = 512  # candidates of one pass, at most
STEPS = 16  # tokens that a cache is led on one by one; further ones are read together with the prefix, anew
NAMES = ("past_key_values", "cache_params", "state", "past_buckets_states")  # what models call their cache


class Expanded:
    """p(. | prefix, path) for whole levels of paths, position by position; arguments as Packed's."""

    capacity = 2**16
    together = True  # several candidates in one pass

    def __init__(self, model, ids, rows, t):
        self.model, self.ids, self.rows, self.t, self.places = model, ids, rows, t, Places(model, ids)
        self.where_from = None, None  # the last root whose cache was made, and that cache
        self.kept, self.room = {}, CACHE_BYTES
        parameters = inspect.signature(model.forward).parameters
        self.name = next((name for name in NAMES if name in parameters), None)
        if self.name is None:
            raise NotImplementedError("no cache")
        self.placed = "position_ids" in parameters  # some count them wrongly from the cache of their first layer
        columns, where = t.unique(return_inverse=True)
        kept = {"logits_to_keep": columns} if "logits_to_keep" in parameters else {}
        outs = [model(input_ids=part, use_cache=True, **kept) for part in ids.split(len(ids) if self.together else 1)]
        logits = torch.cat([out.logits for out in outs])
        self.logits = logits[rows, t if logits.shape[1] == ids.shape[1] else where]  # (P, V)
        self.cache = outs[0].get(self.name)
        if self.cache is None:
            raise NotImplementedError("no cache comes back")
        self.cut = self.together and can_be_cut(self.cache, ids.shape[1])
        if not self.cut:
            self.cache = None

    def logits_of(self, level, keep=False):
        """Yield (start, stop, logits (stop - start, V)) over the level."""
        if level.depth == 0:
            for start in range(0, len(level.root), PASS):
                yield start, min(start + PASS, len(level.root)), self.logits[level.root[start : start + PASS]]
            return
        for first, last in level.by_root():
            root = int(level.root[first])
            cache = self.cache_of(root)
            size = self.step(cache)
            for start in range(first, last, size):
                stop = min(start + size, last)
                yield start, stop, self.after(cache, root, level.path(start, stop))

    def step(self, cache):
        """Candidates of one pass."""
        if not self.together:
            return 1
        fits = min(CACHE_BYTES // max(1, size_of(cache)), LOGIT_BYTES // self.logits[0].nbytes)
        return max(1, min(PASS, fits))

    def after(self, cache, root, path):
        """Logits (n, V) after each path (n, depth) below that root, to which that cache of one row leads."""
        cache = mapped(cache, lambda x: x.expand(len(path), *x.shape[1:]) if self.cut else repeated(x, len(path)))
        places = self.places.behind(self.rows[root].expand(len(path)), self.t[root].expand(len(path)), path)
        return (self.run if self.cut else self.led)(path, places, cache)[0]

    def run(self, ids, places=None, cache=None):
        """Logits (n, V) after the last token of ids (n, m), which stand at those places (n, m), and the cache after it."""
        given = {} if cache is None else {self.name: cache}
        if self.placed and cache is not None:
            given["position_ids"] = places
        out = self.model(input_ids=ids, use_cache=True, **given, **last_only(self.model))
        return out.logits[:, -1], out.get(self.name)

    def led(self, ids, places, cache):
        """`run`, a token at a time, as in generation."""
        for token, place in zip(ids.split(1, 1), places.split(1, 1), strict=True):
            logits, cache = self.run(token, place, cache)
        return logits, cache

    def cache_of(self, root):
        """The cache of that root's prefix, of one row; not to be written to."""
        row, t = int(self.rows[root]), int(self.t[root])
        if self.cut:
            return mapped(self.cache, lambda x: x[row : row + 1, :, : t + 1])
        if root in self.kept:
            return self.kept[root]
        last, cache = self.where_from
        ids = self.ids[row : row + 1, : t + 1]
        ahead = math.inf if last is None or int(self.rows[last]) != row else t - int(self.t[last])
        if 0 <= ahead <= STEPS:
            cache, new = mapped(cache, torch.clone), ids[:, t + 1 - ahead :]
            places = self.places.behind(self.rows[root, None], self.t[last, None], new)
            cache = self.led(new, places, cache)[1] if ahead else cache
        else:
            cache = self.run(ids)[1]
        self.where_from = root, cache
        if size_of(cache) <= self.room:
            self.room -= size_of(cache)
            self.kept[root] = cache
        return cache


class OneByOne(Expanded):
    """A candidate at a time: for models whose own step is right of one text alone."""

    together = False


def can_be_cut(cache, length):
    """Whether it holds a key and a value for each token of the prefix, and nothing else."""
    tensors, layers = [], getattr(cache, "layers", [])
    mapped(cache, lambda x: tensors.append(x) or x)
    whole = [x for x in layers if type(x) is DynamicLayer and x.is_initialized]
    return 0 < len(tensors) == 2 * len(whole) and all(x.shape[2] == length for x in tensors)


def mapped(thing, change):
    """A copy of a cache, every tensor of it changed: change(tensor)."""
    if torch.is_tensor(thing):
        return change(thing) if thing.ndim else thing
    if isinstance(thing, (list, tuple)):
        return type(thing)(mapped(x, change) for x in thing)
    if isinstance(thing, dict):
        return type(thing)((name, mapped(x, change)) for name, x in thing.items())
    if isinstance(thing, (type, PreTrainedConfig, torch.nn.Module)) or not hasattr(thing, "__dict__") or callable(thing):
        return thing
    found = copy.copy(thing)
    vars(found).update({name: mapped(x, change) for name, x in vars(thing).items()})
    return found


def repeated(x, times):
    """A copy of a tensor of one row for so many: the batch is its first dimension of one (some keep others before it)."""
    return x.repeat_interleave(times, x.shape.index(1)) if 1 in x.shape else x.clone()


def size_of(cache):
    """Bytes of a cache's tensors."""
    found = []
    mapped(cache, lambda x: found.append(x.nbytes) or x)
    return sum(found)
