"""By how much one token must lead the next before rounding cannot have turned them over: measured on the model itself."""

import weakref

import torch

from ..backbones.anatomy import position_limit
from ..backbones.rounding import coarsest, computed_in, in_float32, state_of

# In numbers of that dtype, the least margin; all there is to it where nothing is computed more coarsely than in float32.
LEAST = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
# [measured, ladder, 49,920 positions] Leads of up to 3 times that difference were turned over.
SAFETY = 4
UNMEASURED = {torch.float16: 0.05, torch.bfloat16: 0.25}  # [measured, ladder] twice the largest lead turned over, and more
TEXT = (2, 128)  # random tokens

_margins: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


def margin_of(model) -> float:
    """Least gap S(first) - S(second), beyond 1 - M, that rounding in this model cannot turn over.

    A constant of the dtype in float32 and float64. Where less is computed with (half precision, autocast, TF32), SAFETY times the
    largest difference of a probability between the model's own pass over random tokens and one in float32 with the same weights,
    which widens each weight for one operation, so that it needs no second copy; once for each way of computing, and again
    when the weights have changed.
    """
    dtype = coarsest(model)
    least = LEAST.get(dtype, LEAST[torch.bfloat16])
    if dtype.itemsize >= 4:
        return least
    known, name, state = _margins.setdefault(model, {}), computed_in(model), state_of(model)
    if name not in known or known[name][0] != state:
        known[name] = state, max(least, _measured(model, UNMEASURED.get(dtype, UNMEASURED[torch.bfloat16])))
    return known[name][1]


@torch.no_grad()
def _measured(model, otherwise: float) -> float:
    """SAFETY times the largest |p - p in float32|; `otherwise` where the model's operations take no float32."""
    rows, length = model.get_input_embeddings().num_embeddings, int(min(TEXT[1], position_limit(model.config)))
    ids = torch.randint(rows, (TEXT[0], length), generator=torch.Generator().manual_seed(0)).to(model.device)
    own = model(input_ids=ids, use_cache=False).logits.float().softmax(-1)
    try:
        with in_float32(model):
            wide = model(input_ids=ids, use_cache=False).logits.softmax(-1)
    except Exception:  # kernels of its own, or no room for one of its weights
        return otherwise
    worst = (own - wide).abs().max().item()
    return SAFETY * worst if wide.dtype.itemsize >= 4 and worst == worst else otherwise
