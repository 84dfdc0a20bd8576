"""Read-outs of one layer as kinds of heads (the logit lens untrained, a probe trained), and a control: an untrained
backbone."""

import dataclasses
import hashlib

import torch

from ..backbones.anatomy import rows_of
from ..backbones.load import Backbone
from ..heads.spec import HeadSpec

LARGEST_OWN = 8192  # vocabulary up to which a probe has an unembedding of its own, one for each layer and offset


def lens(layer: int, offsets: tuple[int, ...]) -> HeadSpec:
    """The logit lens of a layer: its state through the final norm (the last has been) and the LM head. Not to be trained."""
    return HeadSpec("linear", layer, offsets=offsets)


def probe(backbone: Backbone, layer: int, offsets: tuple[int, ...]) -> HeadSpec:
    """A trained read-out of a layer: its own norm, a linear map, for each offset an unembedding of its own that starts as the
    unigram; of a large vocabulary the backbone's."""
    small = rows_of(backbone.model.get_output_embeddings()) <= LARGEST_OWN
    return HeadSpec("linear", layer, unembedding="own" if small else "shared", offsets=offsets)


def untrained(backbone: Backbone) -> Backbone:
    """A backbone of the same shape and tokenizer with random weights: what the architecture alone gives a probe."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = type(backbone.model)._from_config(backbone.model.config, dtype=torch.float32)
    model = model.to(backbone.model.device).eval().requires_grad_(False)
    digest = hashlib.sha256(b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters())).hexdigest()
    return dataclasses.replace(backbone, name=f"untrained/{backbone.name}", model=model, fingerprint=digest, revision=None)
