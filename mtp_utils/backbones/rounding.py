"""What rounding does in a model's answers: in which numbers it computes, the same pass in float32, and whether what it says of a
text depends on what is read beside it."""

import contextlib
import threading
import weakref

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ..base.refusals import CannotDo, lacks_memory, require
from .anatomy import last_only, position_limit

TOKENS = 16  # of the two texts read alone and beside each other
EXACT = ("none", "ieee")  # settings under which products of float32 matrices are those of float32
ROUNDING = 2**10  # units in the last place of the largest logit, by which a model's layers may have magnified one


def halves(model) -> set[torch.dtype]:
    """Dtypes of the weights that are narrower than float32."""
    return {p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize < 4}


def computed_in(model) -> tuple[str, ...]:
    """What decides how the model's numbers are rounded: its weights' dtypes, autocast, TF32, attention, device."""
    device = model.device.type
    cast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else ""
    dtypes = sorted({str(p.dtype) for p in model.parameters()})
    short = "tf32" if _short_products(device) else ""
    return *dtypes, cast, short, str(model.config.get_text_config()._attn_implementation), str(model.device)


def state_of(model) -> int:
    """A number that changes when the weights do (in place, or others in their stead); nothing of them is kept."""
    return hash(tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()))


def coarsest(model) -> torch.dtype:
    """The dtype with the digits of the coarsest thing computed; TF32 has those of float16."""
    device = model.device.type
    dtypes = halves(model) | ({torch.get_autocast_dtype(device)} if torch.is_autocast_enabled(device) else set())
    dtypes |= {torch.float16} if _short_products(device) and model.dtype == torch.float32 else set()
    return max(dtypes or {model.dtype}, key=lambda dtype: torch.finfo(dtype).eps)


_setting = threading.RLock()  # that setting is one for all threads and models


def _products(device: str):
    return torch.backends.mkldnn.matmul if device == "cpu" else torch.backends.cuda.matmul


def _short_products(device: str) -> bool:
    """Whether products of float32 matrices may be rounded more (TF32); read where old and new settings agree."""
    with _setting:
        return _products(device).fp32_precision not in EXACT


class _Widened(TorchFunctionMode):
    """Every function gets float32 for what is narrower: weights for one call each, so that no copy of the model is held."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.nn.functional.embedding:  # some rows of a table, which need no copy of the whole
            return tree_map(_wide, func(*args, **kwargs))
        return tree_map(_wide, func(*tree_map(_wide, args), **tree_map(_wide, kwargs)))


def _wide(x):
    if isinstance(x, torch.dtype):
        return torch.float32 if x.is_floating_point and x.itemsize < 4 else x
    narrow = isinstance(x, torch.Tensor) and torch.Tensor.is_floating_point(x) and x.element_size() < 4
    return x.float() if narrow else x


@contextlib.contextmanager
def in_float32(model):
    """Inside, this thread's passes of the model compute in float32 at least, with its weights as they are; for short passes."""
    device, widened = model.device.type, _Widened() if halves(model) else contextlib.nullcontext()
    with _exact_products(device), torch.no_grad(), torch.autocast(device, enabled=False), widened:
        yield


@contextlib.contextmanager
def _exact_products(device: str):
    """Inside, products of float32 matrices are not rounded more; one thread at a time. The setting is as before afterwards, also
    where it follows one above it."""
    products = _products(device)
    with _setting:
        before = products.fp32_precision
        if before in EXACT:
            yield
            return
        products.fp32_precision = "ieee"
        try:
            yield
        finally:
            products.fp32_precision = "none"
            if products.fp32_precision != before:  # it was its own
                products.fp32_precision = before


_alone: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


def refuse_company(model, name: str = "") -> None:
    """Raises CannotDo where what the model says of a text changes with the text beside it, by more than rounding in float32:
    a norm over the batch, experts of limited room, activations quantised over a whole batch. In evaluation mode."""
    known = _alone.setdefault(model, {})
    way = computed_in(model)
    if way not in known:
        known[way] = _moved_by_company(model)
    moved = known[way]
    what = f"what {name or type(model).__name__} says of a text changes with the text beside it (logits by {moved:.1e})"
    require(not moved, f"{what}: nothing can be said of one text alone", CannotDo)


@torch.no_grad()
def _moved_by_company(model) -> float:
    """By how much a text's logits move, beside another text, more than rounding explains; 0.0 where they do not."""
    rows = model.get_input_embeddings().num_embeddings
    length = int(min(TOKENS, position_limit(model.config)))
    ids = torch.randint(rows, (3, length), generator=torch.Generator().manual_seed(0)).to(model.device)
    ids[2] = ids[1, 0]  # beside a text of one token alone, too

    def logits(which):
        try:
            with in_float32(model):
                return model(input_ids=ids[which], use_cache=False, **last_only(model)).logits[0]
        except Exception as error:  # operations of its own, which know their dtype alone
            if lacks_memory(error):
                raise
            return model(input_ids=ids[which], use_cache=False, **last_only(model)).logits[0]

    own = logits([0])
    there = own.abs() < torch.finfo(own.dtype).max / 2  # a token that is masked has the least number there is, or none
    if not there.any():
        return 0.0
    own = own[there]
    moved = max((logits([0, other])[there] - own).abs().max().item() for other in (1, 2))
    allowed = ROUNDING * torch.finfo(own.dtype).eps * own.abs().max().item()
    return moved if moved > min(allowed, own.abs().max().item() / 8) else 0.0
