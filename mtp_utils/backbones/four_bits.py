"""A backbone rounded to four bits as the files of the package index are: what that does to a model can then be measured."""

import copy
import dataclasses

import torch
from gguf import GGMLQuantizationType, quants

from ..base.files import sha256
from .load import Backbone

BLOCK = 32  # weights of a row that share a scale


def in_four_bits(backbone: Backbone) -> Backbone:
    """A copy, called `<name> in four bits`: matrices rounded to GGUF's Q4_1 (by blocks of 32 along a row an integer of four bits
    times a scale, plus a minimum, both float16), embeddings and LM head to Q8_0, as in SmolLM2's file; vectors and matrices
    whose rows are no whole blocks stay."""
    model = copy.deepcopy(backbone.model)
    ends = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2 and weight.shape[1] % BLOCK == 0:
                kind = GGMLQuantizationType.Q8_0 if id(weight) in ends else GGMLQuantizationType.Q4_1
                rounded = quants.dequantize(quants.quantize(weight.float().cpu().numpy(), kind), kind)
                weight.copy_(torch.from_numpy(rounded))
    digest = sha256(f"{backbone.fingerprint} Q4_1".encode())
    return dataclasses.replace(backbone, name=f"{backbone.name} in four bits", model=model, fingerprint=digest)
