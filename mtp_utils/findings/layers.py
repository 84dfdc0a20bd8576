"""Read-outs of one layer as kinds of heads (the logit lens untrained, a probe trained), and controls for them: an untrained
backbone, noise in place of states."""

import dataclasses
import hashlib

import numpy as np
import torch

from ..backbones.load import Backbone
from ..heads.features import FrozenFeatures, state_array
from ..heads.spec import HeadSpec
from . import arms


def lens(layer: int, offsets: tuple[int, ...]) -> HeadSpec:
    """The logit lens of a layer: its state through the final norm (the last has been) and the LM head. Not to be trained."""
    return HeadSpec("linear", layer, offsets=offsets)


def probe(layer: int, offsets: tuple[int, ...]) -> HeadSpec:
    """A trained read-out of a layer: its own norm, a linear map, its own copy of the unembedding, for each offset."""
    return HeadSpec("linear", layer, unembedding="copied", offsets=offsets)


def untrained(backbone: Backbone) -> Backbone:
    """A backbone of the same shape and tokenizer with random weights: what the architecture alone gives a probe."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = type(backbone.model)._from_config(backbone.model.config, dtype=torch.float32)
    model = model.to(backbone.model.device).eval().requires_grad_(False)
    digest = hashlib.sha256(b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters())).hexdigest()
    return dataclasses.replace(backbone, name=f"untrained/{backbone.name}", model=model, fingerprint=digest, revision=None)


class NoiseFeatures(FrozenFeatures):
    """Gaussian noise in place of the states, the same size in every layer: what a probe says that sees nothing."""

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"noise 1 {self.layers} {super().fingerprint}".encode()).hexdigest()

    def _compute(self, dtype) -> np.ndarray:
        width = self.backbone.model.config.get_text_config().hidden_size
        found = state_array((len(self.layers), *self.tokens.shape, width), dtype)
        rng = np.random.default_rng(int(self.fingerprint[:8], 16))
        for block in range(len(self.tokens)):
            found[:, block] = rng.standard_normal(found[:, block].shape, np.float32)
        return found


def on_noise(bench: arms.Bench, layer: int) -> arms.Bench:
    """The same bench with noise in place of the states of one layer."""

    def noise(f: FrozenFeatures) -> NoiseFeatures:
        return NoiseFeatures(f.backbone, f.tokens, (layer,), f.horizon)

    return arms.Bench(noise(bench.train), noise(bench.validation), {c: (part, noise(f)) for c, (part, f) in bench.test.items()})
