"""Where a decoder's parts are: its final norm, its LM head with what it does to logits, how many tokens it reads."""

import inspect
import math
import re
import weakref

import torch
from transformers import PreTrainedModel


def final_norm(model: PreTrainedModel) -> torch.nn.Module:
    """The norm between the last layer and the LM head, which `hidden_states[-1]` has already been through.

    Raises ValueError where the last module of the decoder outside its layers is no norm.
    """
    outside = [(n, m) for n, m in model.base_model.named_modules() if "Norm" in type(m).__name__ and not re.search(r"\.\d+\.", n)]
    if not outside:
        raise ValueError(f"{type(model).__name__} has no norm after its last layer")
    return outside[-1][1]


def unembed(model: PreTrainedModel, hidden: torch.Tensor, head: torch.nn.Module | None = None) -> torch.Tensor:
    """Logits (..., vocab) of normalised hidden states (..., d): the model's LM head (or `head`), with its soft cap if any."""
    head = head or model.get_output_embeddings()
    dtype = torch.float32 if callable(head.weight) else head.weight.dtype  # a quantised head's weight is a method
    logits = head(hidden.to(dtype)).to(hidden.device)  # of a model on several devices the head may lie elsewhere
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def rows_of(head: torch.nn.Module) -> int:
    """Tokens that an LM head gives logits of."""
    return (head.weight() if callable(head.weight) else head.weight).shape[0]


_unembeds: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


@torch.no_grad()
def unembeds(model: PreTrainedModel) -> bool:
    """Whether the model's logits are `unembed` of its last hidden state, with no scale of its own or the like."""
    if model not in _unembeds:
        rows, training = model.get_input_embeddings().num_embeddings, model.training
        ids = torch.randint(rows, (1, 8), generator=torch.Generator().manual_seed(0)).to(model.device)  # a row may be of zeros
        out = model.eval()(ids, output_hidden_states=True, use_cache=False)
        model.train(training)
        error = (unembed(model, out.hidden_states[-1]).float() - out.logits.float()).abs().max()
        _unembeds[model] = bool(error <= 1e-3 * out.logits.float().abs().max() + 1e-6)
    return _unembeds[model]


def last_only(model: PreTrainedModel) -> dict[str, int]:
    """What makes the model's forward return the logits of the last position alone, if it can: all of them may not fit."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def position_limit(config) -> float:
    """The most tokens that a model of this configuration reads; infinite where its positions are not counted."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf
