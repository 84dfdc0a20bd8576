"""One arm: a kind of heads trained in one way on one backbone, and its name in words."""

from dataclasses import dataclass

from ..base.records import Arrays
from ..heads.spec import HeadSpec
from ..heads.training import Training

FEATURES = {"last": "last layer", "mix": "layer mix", "concat": "all layers"}  # in words


@dataclass(frozen=True)
class Arm:
    """Trained heads: what they are, how they were trained, their stored arrays and their place in the tables."""

    spec: HeadSpec
    training: Training
    arrays: Arrays
    name: str

    @property
    def columns(self) -> dict:
        """head, features, head_layers, unembedding, train_labels, train_tokens, seed."""
        s, t = self.spec, self.training
        return {
            "head": s.kind,
            "features": str(s.features),
            "head_layers": s.layers,
            "unembedding": s.unembedding,
            "train_labels": t.labels,
            "train_tokens": t.tokens,
            "seed": t.seed,
        }

    @property
    def kind(self) -> str:
        """What kind of heads in words: `block, last layer, own unembedding`."""
        return kind_of(self.spec)

    def rate(self, offset: int) -> float:
        """The peak learning rate of its head at an offset."""
        return self.training.rates(self.spec.offsets)[self.spec.offsets.index(offset)]

    def loss(self, offset: int) -> float:
        """Its cross-entropy at an offset on validation, nats a token."""
        i, values = self.spec.offsets.index(offset), self.arrays.values
        return float(values["validation"][values["kept"][i], i])


def kind_of(spec: HeadSpec) -> str:
    """A kind of heads in words; the backbone's own unembedding goes without saying."""
    words = f"{spec.kind}, {FEATURES.get(spec.features, f'layer {spec.features}')}"
    return words if spec.unembedding == "shared" else f"{words}, {spec.unembedding} unembedding"
