"""What each layer of a backbone holds: controls for its read-outs, and how alike layers are. Read-outs themselves are heads
on one layer: untrained (the logit lens) and trained (a probe), from gaps.py."""

import dataclasses
import hashlib

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM

from . import metrics
from .backbones import Backbone
from .features import FrozenFeatures
from .heads import HeadSpec


def lens(layer: int, offsets: tuple[int, ...]) -> HeadSpec:
    """The logit lens of a layer: its state through the final norm (the last has been) and the LM head. Not to be trained."""
    return HeadSpec("linear", layer, offsets=offsets)


def probe(layer: int, offsets: tuple[int, ...]) -> HeadSpec:
    """A trained read-out of a layer: its own norm, a linear map, its own copy of the unembedding, for each offset."""
    return HeadSpec("linear", layer, unembedding="copied", offsets=offsets)


def untrained(backbone: Backbone, seed: int = 0) -> Backbone:
    """A backbone of the same shape and tokenizer with random weights: what the architecture alone gives a probe."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(backbone.model.config, dtype=torch.float32)
    model = model.to(backbone.model.device).eval().requires_grad_(False)
    digest = hashlib.sha256(b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters())).hexdigest()
    return dataclasses.replace(backbone, name=f"untrained/{backbone.name}", model=model, fingerprint=digest, revision=None)


class NoiseFeatures(FrozenFeatures):
    """Gaussian noise in place of the states, the same size in every layer: what a probe says that sees nothing."""

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"noise" + super().fingerprint.encode()).hexdigest()

    def _compute(self, dtype) -> np.ndarray:
        shape = (len(self.layers), *self.tokens.shape, self.backbone.model.config.get_text_config().hidden_size)
        rng = np.random.default_rng(int(self.fingerprint[:8], 16))
        return rng.standard_normal(shape, np.float32).astype(dtype)


def similarity_table(features: FrozenFeatures, blocks, n: int = 1500, seed: int = 0) -> pd.DataFrame:
    """Unbiased linear CKA of every two layers over `n` tokens drawn from the blocks, never a block's first: layer, other, cka."""
    rng = np.random.default_rng(seed)
    inside = blocks.mask.clone()
    inside[:, 0] = False
    row, t = (x.numpy() for x in inside.nonzero(as_tuple=True))
    chosen = rng.choice(len(row), min(n, len(row)), replace=False)
    states = [features.states[i][row[chosen], t[chosen]].astype(np.float64) for i in range(len(features.layers))]
    rows = [
        (features.backbone.name, blocks.corpus, a, b, metrics.cka(states[i], states[j]))
        for i, a in enumerate(features.layers)
        for j, b in enumerate(features.layers)
    ]
    return pd.DataFrame(rows, columns=["backbone", "corpus", "layer", "other", "cka"])
