"""Where a decoder's parts are: its final norm, its LM head with what it does to logits, how many tokens it reads."""

import inspect
import math
import re
import weakref

import torch
from transformers import PreTrainedModel

from ..base.refusals import CannotDo

BEHIND_PADDING = ("roberta", "camembert", "data2vec-text", "xmod")  # kinds whose positions begin behind the padding's index


def final_norm(model: PreTrainedModel) -> torch.nn.Module:
    """The norm between the last layer and the LM head, which `hidden_states[-1]` has already been through.

    Raises CannotDo where the last module of the decoder outside its layers is no norm.
    """
    outside = [(n, m) for n, m in model.base_model.named_modules() if "Norm" in type(m).__name__ and not re.search(r"\.\d+\.", n)]
    if not outside:
        raise CannotDo(f"{type(model).__name__} has no norm after its last layer")
    return outside[-1][1]


def unembed(model: PreTrainedModel, hidden: torch.Tensor, head: torch.nn.Module | None = None) -> torch.Tensor:
    """Logits (..., vocab) of normalised hidden states (..., d): the model's LM head (or `head`), with its soft cap if any."""
    head = head or model.get_output_embeddings()
    logits = head(hidden.to(head.weight.dtype)).to(hidden.device)  # of a model on several devices the head may lie elsewhere
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


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
    config = config.get_text_config()
    rows = getattr(config, "max_position_embeddings", None) or math.inf
    if any(kind in config.model_type for kind in BEHIND_PADDING):
        rows -= (config.pad_token_id or 0) + 1
    return rows if rows > 0 else math.inf  # XLNet, which has no limit, says -1


def crop_vocabulary(model: PreTrainedModel, vocabulary: int) -> None:
    """Leave the model its first `vocabulary` rows, in place: many have more than their tokenizer has tokens, to fill a multiple
    of 64, and what stands for no text can be no candidate, draft or label. The others' probabilities then sum to 1.

    Embeddings that lie on no device (offloaded) keep all rows.
    """
    config = model.config.get_text_config()
    for part, name in ((model.get_input_embeddings(), "num_embeddings"), (model.get_output_embeddings(), "out_features")):
        weights = [x for x in (getattr(part, "weight", None), getattr(part, "bias", None)) if x is not None]
        if not weights or weights[0].is_meta or getattr(part, name, 0) <= vocabulary:
            continue
        for x in weights:  # of tied ones the first of the two finds both
            x.data = x.data[:vocabulary].clone()
        setattr(part, name, vocabulary)
        config.vocab_size = vocabulary
        if (getattr(part, "padding_idx", None) or 0) >= vocabulary:
            part.padding_idx = None
    if (getattr(config, "pad_token_id", None) or 0) >= vocabulary:
        config.pad_token_id = None
