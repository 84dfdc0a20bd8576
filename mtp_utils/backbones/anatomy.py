"""Where a decoder's parts are: its final norm, its LM head with what it does to logits, how many tokens it reads.

What cannot be read off a model's class is seen once, in a pass over a few random tokens of that very model.
"""

import inspect
import math
import re
import weakref
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from ..base.refusals import CannotDo, first_line, lacks_memory, require
from .wrapped import decoder, plain

BEHIND_PADDING = ("roberta", "camembert", "data2vec-text", "xmod")  # kinds whose positions begin behind the padding's index
LOOK = 8  # tokens of the pass
SOFT_CAP = re.compile("soft_?cap")


@dataclass(frozen=True)
class Finish:
    """How a model ends: logits = cap * tanh(after * head(before * state) / cap), state (..., d) being its decoder's last.

    norm: the name, in the decoder, of the norm whose output that state is. trouble: why its logits are not that, if they are not.
    uneven: why the hidden states of its layers are nothing that heads can read, if so.
    """

    norm: str | None = None
    before: float = 1.0
    after: float = 1.0
    cap: float | None = None
    trouble: str = ""
    uneven: str = ""


_finishes: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


def finish_of(model) -> Finish:
    """How the model ends; looked up once."""
    model = plain(model)
    if model not in _finishes:
        try:
            _finishes[model] = _seen(model, *_one_pass(model))
        except Exception as error:  # whatever the model does not support is a reason, not a failure
            if lacks_memory(error):
                raise
            reason = f"does not show its states ({first_line(error)})"
            _finishes[model] = Finish(trouble=reason, uneven=reason)
    return _finishes[model]


def final_norm(model: PreTrainedModel) -> torch.nn.Module:
    """The norm between the last layer and the LM head, which `hidden_states[-1]` has already been through.

    Raises CannotDo where the last state is not what a norm gave.
    """
    name = finish_of(model).norm
    require(name, f"{type(model).__name__} has no norm after its last layer, through which to read others", CannotDo)
    return decoder(model).get_submodule(name)


def unembed(model: PreTrainedModel, hidden: torch.Tensor, head: torch.nn.Module | None = None) -> torch.Tensor:
    """Logits (..., vocab) of normalised hidden states (..., d): the model's LM head (or `head`), with its factors and soft
    cap if any. Raises CannotDo where the model does anything else to its last state."""
    how = finish_of(model)
    require(not how.trouble, f"{type(model).__name__} {how.trouble}: its logits cannot be made from states", CannotDo)
    head = head or plain(model).get_output_embeddings()
    hidden = hidden if how.before == 1 else hidden * how.before
    dtype = torch.float32 if callable(head.weight) else head.weight.dtype  # a quantised head's weight is a method
    logits = head(hidden.to(dtype)).to(hidden.device)  # of a model on several devices the head may lie elsewhere
    return _finished(logits, how.after, how.cap)


def rows_of(head: torch.nn.Module) -> int:
    """Tokens that an LM head gives logits of."""
    return (head.weight() if callable(head.weight) else head.weight).shape[0]


def table_of(model: PreTrainedModel) -> torch.Tensor | None:
    """The LM head's weights (V, d); None where they are quantised, and no numbers to read or to learn."""
    weight = getattr(model.get_output_embeddings(), "weight", None)
    return weight if isinstance(weight, torch.Tensor) and weight.is_floating_point() else None


def unembeds(model: PreTrainedModel) -> bool:
    """Whether the model's logits are `unembed` of its decoder's last state."""
    return not finish_of(model).trouble


def require_layers(model: PreTrainedModel) -> None:
    """Raises CannotDo where the model's layers do not all hold states of one width (batch, T, d)."""
    how = finish_of(model)
    require(not how.uneven, f"{type(model).__name__} {how.uneven}", CannotDo)


def require_states(model: PreTrainedModel) -> None:
    """Raises CannotDo where heads on the model's hidden states would be wrong."""
    how = finish_of(model)
    reason = how.trouble or how.uneven
    require(not reason, f"{type(model).__name__} {reason}: heads on it would be wrong", CannotDo)


def _finished(logits: torch.Tensor, after: float, cap: float | None) -> torch.Tensor:
    logits = logits if after == 1 else logits * after
    return logits if cap is None else torch.tanh(logits / cap) * cap


@torch.no_grad()
def _one_pass(model) -> tuple:
    """What each norm outside the layers and the LM head took and gave in a pass; what the decoder gave; the logits (1, T, V)."""
    body, head, seen = decoder(model), model.get_output_embeddings(), {}
    if body is model or head is None:
        raise TypeError("its decoder and its LM head are no modules of their own")
    norms = {n: m for n, m in body.named_modules() if "norm" in type(m).__name__.lower() and not re.search(r"\.\d+\.", n)}
    watched = norms | {".head": head}
    hooks = [m.register_forward_hook(lambda m, given, out, n=n: seen.update({n: (given, out)})) for n, m in watched.items()]
    rows, training = model.get_input_embeddings().num_embeddings, [m for m in model.modules() if m.training]
    ids = torch.randint(rows, (1, LOOK), generator=torch.Generator().manual_seed(0)).to(model.device)  # a row may be of zeros
    try:
        with torch.autocast(ids.device.type, enabled=False):
            logits = model.eval()(input_ids=ids, use_cache=False).logits
            states = body(input_ids=ids, output_hidden_states=True, use_cache=False)  # some models pass by its forward
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    return seen, states, logits


def _seen(model, seen: dict, body, logits: torch.Tensor) -> Finish:
    """The Finish that a pass showed."""
    (into,), out = seen.pop(".head")
    last = body.last_hidden_state
    norms = [n for n, (_, x) in seen.items() if torch.is_tensor(x) and x.shape == last.shape and torch.equal(x.to(last), last)]
    found = Finish(norm=norms[-1] if norms else None, uneven=_uneven(model, body))
    if into.shape == last.shape and logits.shape == out.shape:
        before, config = _ratio(into, last), model.config.get_text_config().to_dict()
        caps = [x for n, x in config.items() if SOFT_CAP.search(n) and "att" not in n and isinstance(x, (int, float)) and x > 0]
        ways = [(after, cap) for cap in (*caps, None) for after in (1.0, _ratio(_uncapped(logits, cap), out))]
        errors = [_error(_finished(out, *way), logits) for way in ways]
        best = next((i for i, error in enumerate(errors) if error < 0.1), errors.index(min(errors)))  # small logits: either
        after, cap = ways[best]
        if max(errors[best], _error(before * last, into)) <= 1:
            return replace(found, before=before, after=after, cap=cap)
    return replace(found, trouble="does more than its LM head, a factor and a soft cap to its last state")


def _uneven(model, body) -> str:
    """Why the states of the layers are not layers + 1 of (1, T, d), the last of them the decoder's; nothing where they are."""
    config, states = model.config.get_text_config(), getattr(body, "hidden_states", None) or ()
    shapes = list(dict.fromkeys(tuple(x.shape) for x in states))
    wanted, n = (1, LOOK, config.hidden_size), config.num_hidden_layers + 1
    if shapes != [wanted]:
        return f"has hidden states of shape {' and '.join(map(str, shapes)) or None}, not {wanted} in every layer"
    if len(states) != n or _error(states[-1], body.last_hidden_state) > 1:
        return f"has {len(states)} hidden states, not {n} of which the last one enters its LM head"
    return ""


def _uncapped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """What the logits were before a soft cap; nan where they are too near it to tell."""
    share = logits.double().cpu() / (cap or math.inf)
    return logits if cap is None else torch.where(share.abs() < 0.99, cap * share.atanh(), torch.nan)


def _ratio(a: torch.Tensor, b: torch.Tensor) -> float:
    """The c of least squares in a = c b, over what is finite; 1.0 where it is that but for rounding."""
    a, b = (x.double().cpu().flatten() for x in (a, b))
    there = a.isfinite() & b.isfinite()
    c = float(a[there] @ b[there] / (b[there] @ b[there]))
    return 1.0 if abs(c - 1) <= 1e-6 or not math.isfinite(c) else c


def _error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest error in units of what rounding may do; infinite where anything is no number."""
    eps = max(torch.finfo(x.dtype).eps for x in (ours, theirs, torch.ones(1)))
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    allowed = min(64 * eps, 1e-3) * theirs.abs().max() + 4 * eps * theirs.abs()
    return float(((ours - theirs).abs() / allowed).nan_to_num(0.0 if ours.equal(theirs) else torch.inf).max())


def last_only(model: PreTrainedModel) -> dict[str, int]:
    """What makes the model's forward return the logits of the last position alone, if it can: all of them may not fit."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def padding_counted(model: PreTrainedModel) -> int | None:
    """The padding token where a model counts positions from its number on and leaves it out (RoBERTa's kin), else None."""
    if not any(kind in model.config.model_type for kind in BEHIND_PADDING):
        return None
    return next((m.padding_idx for m in model.modules() if hasattr(m, "position_embeddings") and hasattr(m, "padding_idx")), None)


def position_limit(config) -> float:
    """The most tokens that a model of this configuration reads; infinite where its positions are not counted."""
    config = config.get_text_config()
    rows = getattr(config, "max_position_embeddings", None) or math.inf
    if any(kind in config.model_type for kind in BEHIND_PADDING):
        rows -= (config.pad_token_id or 0) + 1
    return rows if rows > 0 else math.inf  # XLNet, which has no limit, says -1


def crop_vocabulary(model: PreTrainedModel, vocabulary: int) -> None:
    """Leave the model its first `vocabulary` rows, in place: many have more than their tokenizer has tokens, to fill a multiple
    of 64, and what stands for no text can be no candidate, draft or label. The others' probabilities then sum to 1.

    Where either of its embeddings lies on no device (offloaded) both keep all rows.
    """
    config = model.config.get_text_config()
    parts = ((model.get_input_embeddings(), "num_embeddings"), (model.get_output_embeddings(), "out_features"))
    if any(p.is_meta for part, _ in parts if part is not None for p in part.parameters()):  # one without the other would not fit
        return
    for part, name in parts:
        weights = [x for x in (getattr(part, "weight", None), getattr(part, "bias", None)) if x is not None]
        if not weights or getattr(part, name, 0) <= vocabulary:
            continue
        for x in weights:  # of tied ones the first of the two finds both
            x.data = x.data[:vocabulary].clone()
        setattr(part, name, vocabulary)
        config.vocab_size = vocabulary
        if (getattr(part, "padding_idx", None) or 0) >= vocabulary:
            part.padding_idx = None
    if (getattr(config, "pad_token_id", None) or 0) >= vocabulary:
        config.pad_token_id = None
