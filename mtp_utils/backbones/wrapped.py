"""What a text decoder may be wrapped in (adapters, a compiler, a model that sees images too), and its own parts in there."""

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import PreTrainedModel

from ..base.refusals import CannotDo, require


def plain(model):
    """The model of transformers inside what peft, torch.compile or a data-parallel wrapper made of it: the same weights, adapters
    among them, so the same numbers. Anything else comes back as it is.

    Raises CannotDo for adapters that are no part of the weights (learned prompts).
    """
    while not isinstance(model, PreTrainedModel):
        if "_orig_mod" in getattr(model, "_modules", {}):
            model = model._orig_mod
        elif isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "peft_config", None), dict):
            prompts = [c.peft_type for c in model.peft_config.values() if getattr(c, "is_prompt_learning", False)]
            reason = f"{type(model).__name__} puts a learned prompt before the text ({', '.join(map(str, prompts))})"
            require(not prompts, f"{reason}, which positions do not count: give its base model, get_base_model()", CannotDo)
            model = model.base_model.model
        else:
            break
    return model


def decoder(model) -> torch.nn.Module:
    """What gives a causal LM's hidden states; of one that takes images or sound too, its text decoder alone."""
    model = plain(model)
    return model.get_decoder() if wraps_text(model) else model.base_model


def wraps_text(model) -> bool:
    """Whether the model has other parts than its text decoder and LM head, and a configuration for them."""
    return model.config.get_text_config() is not model.config


def text_parameters(model) -> dict[str, torch.nn.Parameter]:
    """The parameters by name that a text goes through: all, or those of the decoder and the LM head."""
    named = dict(model.named_parameters())
    if not wraps_text(model):
        return named
    used = {id(p) for part in (decoder(model), model.get_output_embeddings()) for p in part.parameters()}
    return {n: p for n, p in named.items() if id(p) in used}


def beside_text(model) -> list[str]:
    """Names of the modules with parameters of their own that no text goes through: none, but for a model that sees or hears."""
    used = {id(p) for p in text_parameters(model).values()}
    return [n for n, m in model.named_modules() if (own := list(m.parameters(recurse=False))) and not used & set(map(id, own))]
