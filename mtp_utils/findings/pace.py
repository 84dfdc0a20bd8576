"""Why heads are slow to learn: whose unembedding they have and where it starts, blocks a step, warm-up, one thing at a time.

Exploratory. The loop is that of heads.training, in one process, with what that one holds fixed as an argument.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import nn

from ..backbones.anatomy import unembed
from ..backbones.checkpoints import FLOOR, WARMUP
from ..base.runtime import progress
from ..heads.features import FrozenFeatures
from ..heads.heads import Heads
from ..heads.spec import HeadSpec
from ..heads.training import Training, head_groups, plan, step_losses, validate
from ..text.blocks import CONTEXT
from . import arms, metrics

CHECKS = 8  # validations on the way


@dataclass(frozen=True)
class Way:
    """One way of training heads, and the panel in which it is drawn. unembedding: of HeadSpec; rank, unigram: of Corrected;
    warmup: share of the steps."""

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
    Way("and a temperature and bias, as unigram", START, "shared", unigram=True),
    *(Way(f"and a correction of rank {rank}", START, "shared", rank) for rank in (16, 64)),
    Way("and of rank 64, as unigram", START, "shared", 64, unigram=True),
    Way("a copy", START, "copied"),
    Way("its own, as unigram", START),
    *(Way(f"{n}", BATCH, blocks=n) for n in (1, 4, 16)),
    *(Way(f"{share:.0%}", WARM, warmup=share) for share in (0.0, 0.05, 0.25)),
)


class Corrected(Heads):
    """Heads on the backbone's unembedding U with a trained correction for each offset: logits s U h + B A h + b.

    rank: of B A (B starts at zero; 0: none, as in LoRA, arXiv 2106.09685). s and b start at 1 and 0, so that the head starts as
    the LM head; unigram: at 0 and the log-frequencies of the training text, so that it starts as the unigram.
    """

    def __init__(self, backbone, spec: HeadSpec, rank: int, unigram: bool, seed: int = 0):
        super().__init__(backbone, spec, seed)
        width, self.unigram = backbone.model.config.get_text_config().hidden_size, unigram
        self.corrections = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for k in spec.offsets:
                tensors = {"scale": torch.tensor(0.0 if unigram else 1.0), "bias": torch.zeros(self.vocabulary)}
                if rank:
                    tensors |= {"A": torch.randn(rank, width) / width**0.5, "B": torch.zeros(self.vocabulary, rank)}
                self.corrections[str(k)] = nn.ParameterDict(tensors)
        self.to(device=backbone.model.device)

    def log_probs(self, offset: int, hidden: torch.Tensor) -> torch.Tensor:
        """As of Heads."""
        c = self.corrections[str(offset)]
        low = hidden @ c["A"].T @ c["B"].T if "A" in c else 0.0
        return (c["scale"] * unembed(self.model, hidden) + low + c["bias"]).float().log_softmax(-1)

    @torch.no_grad()
    def begin(self, tokens: torch.Tensor) -> None:
        """The bias as the unigram of these tokens (one more of each counted), where heads start so."""
        counts = torch.bincount(tokens.flatten().cpu(), minlength=self.vocabulary) + 1.0
        for c in self.corrections.values() if self.unigram else ():
            c["bias"].copy_((counts / counts.sum()).log())


def paced(
    features: FrozenFeatures,
    validation: FrozenFeatures,
    spec: HeadSpec,
    training: Training,
    rank: int,
    unigram: bool,
    warmup: float,
) -> dict[str, np.ndarray]:
    """Cross-entropy at the one offset on validation [nats/token] on the way: positions (checks,) and loss (checks,), the first
    before any step. training: at one rate, on data. Raises FloatingPointError at a loss that is not finite."""
    made, given = (Corrected, (rank, unigram)) if rank or unigram else (Heads, ())
    heads = made(features.backbone, spec, *given, training.seed)
    heads.begin(features.tokens)
    order, checks = plan(features, spec, training)
    parameters = list(heads.of(spec.offsets[0]).values())
    optimizer = torch.optim.AdamW(head_groups(heads, spec.offsets[0], 1.0), betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    seen = [(0, *validate(heads, validation, "data"))]
    for step in progress(range(len(order)), f"pace of {spec.kind}, {features.backbone.name}"):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate_at(step, len(order), training.rate, warmup)
        with torch.autocast(features.device.type, torch.bfloat16, enabled=training.bf16):
            loss = step_losses(heads, features, order[step], "data", torch.Tensor.backward)[0]
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        if not (np.isfinite(loss) and torch.isfinite(norm)):
            raise FloatingPointError(f"loss {loss}, norm {norm} at step {step} (rate {training.rate})")
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in checks:
            seen.append(((step + 1) * training.blocks * features.tokens.shape[1], *validate(heads, validation, "data")))
    positions, losses = zip(*seen, strict=True)
    return {"positions": np.array(positions), "loss": np.array(losses)}


def rate_at(step: int, steps: int, peak: float, warmup: float) -> float:
    """backbones.checkpoints.rate_at with another share of warm-up."""
    warm = max(1, int(warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm))))


def paces(run, bench: arms.Bench, spec: HeadSpec) -> pd.DataFrame:
    """Each of WAYS on heads of a kind at one offset, all on as many positions (a sixteenth of the profile's most), each at the
    rate that is best for it at the end, with every seed of the profile's heads: panel, name, rate, seed, positions, loss."""
    tokens = max(run.profile.most_tokens // 16, max(way.blocks for way in WAYS) * CONTEXT)
    frames = []
    for way in WAYS:
        how = Training(0.0, tokens, blocks=way.blocks, checks=CHECKS, bf16=arms.fast_in_bf16(bench.backbone))
        own = replace(spec, unembedding=way.unembedding)

        def train(rate: float, seed: int, way=way, how=how, own=own) -> dict:
            given = {"rank": way.rank, "unigram": way.unigram, "warmup": way.warmup}
            stem = f"04_pace_{bench.backbone.name.replace('/', '-')}_{own.kind}-{own.features}-{own.unembedding}"
            stem += f"_{'-'.join(f'{x:g}' for x in given.values())}-{way.blocks}-{tokens}-{rate:g}-seed{seed}"
            given |= {"features": bench.train, "validation": bench.validation, "spec": own}
            return run.measure_arrays(stem, paced, **given, training=replace(how, rate=rate, seed=seed)).values

        rate = _best_rate(lambda rate, train=train: train(rate, run.profile.head_seeds[0])["loss"][-1])
        for seed in run.profile.head_seeds:
            found = pd.DataFrame({x: train(rate, seed)[x] for x in ("positions", "loss")})
            frames.append(found.assign(panel=way.panel, name=way.name, rate=rate, seed=seed))
    return pd.concat(frames, ignore_index=True)


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
    straight line between checks; nan where it never was)."""
    target, rows = curves[curves.name == PLAIN]["value"].iloc[-1], []
    for (panel, name), part in curves.groupby(["panel", "name"], sort=False):
        positions, loss = part["positions"].to_numpy(float), np.minimum.accumulate(part["value"].to_numpy())
        there = float(np.interp(-target, -loss, positions)) if loss[-1] <= target else np.nan
        last = part.iloc[-1]
        row = {"panel": panel, "way": name, "rate": last.rate, "loss": last.value, "ci_low": last.ci_low, "ci_high": last.ci_high}
        rows.append(row | {"times faster": positions[-1] / there})
    return pd.DataFrame(rows)
