"""Which heads there are: HeadSpec."""

from dataclasses import dataclass

KINDS = ("linear", "residual", "block", "next_token")
FEATURES = ("last", "mix", "concat")
UNEMBEDDINGS = ("shared", "corrected", "copied", "own")
MOST_LAYERS = 7  # that are read at once: the states of all layers of a deep model are too many to keep


@dataclass(frozen=True)
class HeadSpec:
    """Which heads: the trunk's `kind` and number of `layers`, the `features` it reads, whose `unembedding`, which `offsets`.

    kind: `linear` (W h + b, W = 1 at the start), `residual` (h + SiLU(W h + b), W = b = 0 at the start, so that the head
    starts as the LM head), `block` (a transformer layer of the backbone's kind), `next_token` (a control that sees nothing
    but p(.|x): q = p T with a row-stochastic T). features: `last`, the number of any one layer (0 = embeddings), `mix` or
    `concat` of `spread` layers. unembedding: the backbone's U (`shared`, which rests where the backbone does); or that with what
    each offset learns beside it (`corrected`): logits U (gamma h) + B A h + b, B A of a `rank` (as in LoRA, arXiv 2106.09685)
    that starts at zero; or a trained copy of it for each offset (`copied`); or one of each offset's `own`, which starts at zero.
    The last, and a corrected one if `unigram`, has the log-frequencies of the training text as its bias: the head then starts as
    the unigram instead of being sure of the wrong token (gamma = 0 in a corrected one, else 1). What else a
    model does to its logits, a soft cap or a factor, it does to those by U alone.

    Raises:
        ValueError: an argument outside these, naming it.
    """

    kind: str = "residual"
    features: str | int = "last"
    layers: int = 1
    unembedding: str = "shared"
    offsets: tuple[int, ...] = (2, 3, 4)
    rank: int = 64
    unigram: bool = True

    def __post_init__(self):
        _one_of("kind", self.kind, KINDS)
        if not isinstance(self.features, int):
            _one_of("features", self.features, FEATURES)
        _one_of("layers", self.layers, (1, 2))
        _one_of("unembedding", self.unembedding, UNEMBEDDINGS)
        if self.rank < 0:
            raise ValueError(f"rank={self.rank} must be at least 0")
        if not self.offsets or min(self.offsets) < 1 or len(set(self.offsets)) < len(self.offsets):
            raise ValueError(f"offsets={self.offsets} must be different integers >= 1")
        if self.kind == "next_token" and (self.features, self.layers, self.unembedding) != ("last", 1, "shared"):
            raise ValueError("kind='next_token' sees only p(.|x): features='last', layers=1, unembedding='shared'")

    @property
    def begins_as_unigram(self) -> bool:
        """Whether the heads do before the first step."""
        return self.unembedding == "own" or (self.unembedding == "corrected" and self.unigram)

    @property
    def reads_backbones(self) -> bool:
        """Whether their logits are made by the backbone's own unembedding."""
        return self.unembedding in ("shared", "corrected")


def _one_of(name: str, value, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}; there are {', '.join(map(str, allowed))}")


def spread(n: int) -> tuple[int, ...]:
    """Layers 0 (embeddings) to n, or MOST_LAYERS of them evenly spread, the first and the last among them."""
    count = min(n + 1, MOST_LAYERS)
    return tuple(round(i * n / max(1, count - 1)) for i in range(count))
