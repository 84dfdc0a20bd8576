"""Why heads are slow to learn: whose unembedding they have and where it starts, blocks a step, warm-up, one thing at a time.

Exploratory. Kept is what was seen on the way; the heads are let go.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ..backbones.checkpoints import WARMUP, warm_steps
from ..heads.features import FrozenFeatures
from ..heads.spec import HeadSpec
from ..heads.training import Training, plan, trained_heads
from ..text.blocks import CONTEXT
from . import arms, metrics

CHECKS = 8  # validations on the way


@dataclass(frozen=True)
class Way:
    """One way of training heads, and the panel in which it is drawn. unembedding, rank, unigram: of HeadSpec; blocks, warmup: of
    Training."""

    name: str
    panel: str
    unembedding: str = "own"
    rank: int = 0
    unigram: bool = False
    blocks: int = arms.STEP
    warmup: float = WARMUP


START, BATCH, WARM = "whose unembedding", "blocks a step", "warm-up"
PLAIN = "the LM head's, as it is"
WAYS = (
    Way(PLAIN, START, "shared"),
    Way("and a temperature and bias, as unigram", START, "corrected", 0, unigram=True),
    *(Way(f"and a correction of rank {rank}", START, "corrected", rank) for rank in (16, 64)),
    Way("and of rank 64, as unigram", START, "corrected", 64, unigram=True),
    Way("a copy", START, "copied"),
    Way("its own, as unigram", START),
    *(Way(f"{n}", BATCH, blocks=n) for n in (1, 4, 16)),
    *(Way(f"{share:.0%}", WARM, warmup=share) for share in (0.0, 0.05, 0.25)),
)


def paces(run, bench: arms.Bench, spec: HeadSpec) -> pd.DataFrame:
    """Each of WAYS on heads of a kind at one offset, all on as many positions (a sixteenth of the profile's most), each at the
    rate that is best for it at the end, with every seed of the profile's heads: panel, name, rate, seed, positions, loss. Without
    warm-ups that are no longer than another's in so few steps."""
    tokens = max(run.profile.most_tokens // 16, max(way.blocks for way in WAYS) * CONTEXT)
    frames, seen = [], set()
    for way in WAYS:
        same = replace(way, name="", warmup=warm_steps(tokens // (way.blocks * CONTEXT), way.warmup))
        if same in seen:
            continue
        seen.add(same)
        bf16 = arms.fast_in_bf16(bench.backbone)
        how = Training(0.0, tokens, blocks=way.blocks, checks=CHECKS, bf16=bf16, warmup=way.warmup)
        own = replace(spec, unembedding=way.unembedding, rank=way.rank, unigram=way.unigram)

        def train(rate: float, seed: int, how=how, own=own) -> dict:
            this = replace(how, rate=rate, seed=seed)
            stem = f"04_pace_{bench.backbone.name.replace('/', '-')}_{arms.name_of(bench, own, this)}"
            given = {"features": bench.train, "validation": bench.validation, "spec": own, "training": this}
            return run.measure_arrays(stem, paced, **given).values

        rate = _best_rate(lambda rate, train=train: train(rate, run.profile.head_seeds[0])["loss"][-1])
        for seed in run.profile.head_seeds:
            found = pd.DataFrame({x: train(rate, seed)[x] for x in ("positions", "loss")})
            frames.append(found.assign(panel=way.panel, name=way.name, rate=rate, seed=seed))
    return pd.concat(frames, ignore_index=True)


def paced(features: FrozenFeatures, validation: FrozenFeatures, spec: HeadSpec, training: Training) -> dict[str, np.ndarray]:
    """What trained_heads sees of heads at one offset on the way: positions (checks,) and loss (checks,), cross-entropy on
    validation [nats/token], the first before any step."""
    loss = trained_heads(features, validation, spec, training)["validation"][:, 0]
    steps = np.array(sorted({0, *plan(features, spec, training)[1]}))  # of few steps some checks fall together
    return {"positions": steps * training.blocks * features.tokens.shape[1], "loss": loss}


def _best_rate(loss_at) -> float:
    """Of arms.TRIALS the rate with the least loss, and of further ones while that is at an edge; inf where it diverges."""
    losses, wanted = {}, list(arms.TRIALS)
    while wanted:
        rate = wanted.pop()
        try:
            losses[rate] = float(loss_at(rate))
        except FloatingPointError:
            losses[rate] = np.inf
        if not wanted:
            best = arms.RATES.index(min(losses, key=losses.get))
            wanted = [r for r in arms.RATES[max(0, best - 1) : best + 2] if r not in losses]
    return arms.RATES[best]


def curves(found: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds with their t-intervals where there are several: panel, name, positions, value, ci_low, ci_high."""
    rows = []
    for (panel, name, positions), part in found.groupby(["panel", "name", "positions"], sort=False):
        n = len(part)
        error = float(part["loss"].std(ddof=1) / n**0.5) if n > 1 else 0.0
        value = float(part["loss"].mean())
        row = {"panel": panel, "name": name, "positions": positions, "rate": part["rate"].iloc[0], "value": value}
        rows.append(row | metrics.t_interval(value, error, max(1, n - 1)) | {"n_seeds": n})
    return pd.DataFrame(rows).drop(columns="p")


def helped(curves: pd.DataFrame) -> pd.DataFrame:
    """By way its rate, its loss at the end, and how many times fewer positions it took to be as good as PLAIN is at its end (on a
    straight line between checks, all of one schedule; inf: before any step; nan: never)."""
    target, rows = curves[curves.name == PLAIN]["value"].iloc[-1], []
    for (panel, name), part in curves.groupby(["panel", "name"], sort=False):
        positions, loss = part["positions"].to_numpy(float), np.minimum.accumulate(part["value"].to_numpy())
        there = float(np.interp(-target, -loss, positions)) if loss[-1] <= target else np.nan
        last = part.iloc[-1]
        row = {"panel": panel, "way": name, "rate": last.rate, "loss": last.value, "ci_low": last.ci_low, "ci_high": last.ci_high}
        rows.append(row | {"times faster": positions[-1] / there if there else np.inf})
    return pd.DataFrame(rows)
