"""Heads against the marginal on the same positions: scores, and the long table of their gaps."""


import numpy as np
import pandas as pd
import torch

from ..base.records import Arrays
from ..heads.features import BLOCKS, FrozenFeatures
from ..heads.heads import Heads
from ..heads.spec import HeadSpec
from ..heads.training import heads_from
from . import metrics, scoring, stored
from .arms import Arm, Bench
from .scoring import Labels
from .stored import stem_of

SCORES = ("log_prob", "top1", "top5")


def scored(run, bench: Bench, arms: list[Arm], base=None) -> pd.DataFrame:
    """Scores of arms on every test corpus beside the marginal of `base` (the base model; the arms' own backbone if None).

    Columns of measures.py, and those of the arm; kl_to_marginal KL(m_k || head) in nats; marginal_log_prob, marginal_top1,
    marginal_top5 of the same position and label; excess_ce, the marginal's log_prob minus the head's, nats; entropy_m2 of
    the marginal at that offset; estimator of the marginal.
    """
    base, frames = base or bench.backbone, []
    offsets = sorted({k for arm in arms for k in arm.spec.offsets})
    for blocks, states in bench.test.values():
        labels = stored.labels(run, base, blocks)
        marginals = {k: stored.marginal(run, base, blocks, k) for k in offsets}
        table = dict(list(stored.marginal_scores(run, base, blocks, tuple(offsets)).groupby("offset")))
        for arm in arms:
            stem = f"03_gaps_{stem_of(bench.backbone, blocks)}_{arm.name}"
            found = run.measure_arrays(
                stem if base is bench.backbone else f"{stem}_{base.name.replace('/', '-')}",
                gap_arrays,
                features=states,
                blocks=blocks,
                labels=labels,
                marginals={k: marginals[k] for k in arm.spec.offsets},
                heads=arm.arrays,
                spec=arm.spec,
            )
            names = {"backbone": bench.backbone.name, "predictor": "head", **arm.columns}
            frames += [_beside(table[k], found.values, k).assign(**names) for k in arm.spec.offsets]
    return pd.concat(frames, ignore_index=True)


def _beside(marginal: pd.DataFrame, found: dict[str, np.ndarray], offset: int) -> pd.DataFrame:
    """A head's arrays at one offset beside the marginal's scores of the same positions and labels."""
    keys = ["corpus", "document", "position", "offset", "label_source", "token_class", "estimator"]
    theirs = {f"marginal_{name}": marginal[name] for name in SCORES} | {"entropy_m2": marginal["entropy"]}
    ours = {name: found[f"{name}.{offset}"] for name in (*SCORES, "entropy", "kl_to_marginal")}
    shape = ours["log_prob"].shape  # (sources, positions); what no label plays a part in has positions alone
    found = marginal[keys].assign(**theirs, **{name: np.broadcast_to(x, shape).ravel() for name, x in ours.items()})
    return found.assign(excess_ce=found["marginal_log_prob"] - found["log_prob"])


@torch.no_grad()
def gap_arrays(features: FrozenFeatures, blocks, labels: Labels, marginals: dict, heads: Arrays, spec: HeadSpec) -> dict:
    """What the head says at every offset k: `log_prob.k`, `top1.k`, `top5.k` (sources, positions), nats;
    `entropy.k` and `kl_to_marginal.k` (positions,)."""
    found = {}
    for k, log_q in head_log_probs(heads_from(heads, features.backbone, spec), features, blocks.scored).items():
        log_m = torch.from_numpy(marginals[k].values["log_probs"])
        found[f"kl_to_marginal.{k}"] = scoring.kl(log_m - log_m.logsumexp(-1, keepdim=True), log_q).double().numpy()
        found[f"entropy.{k}"] = scoring.entropy(log_q).double().numpy()
        rows = labels.table[labels.table.offset == k].groupby("label_source", sort=False)["label"]
        each = [scoring.scores(log_q, torch.from_numpy(part.to_numpy().copy())) for _, part in rows]
        found |= {f"{name}.{k}": np.stack([s[name] for s in each]) for name in SCORES}
    return found


@torch.no_grad()
def head_log_probs(heads: Heads, features: FrozenFeatures, scored: torch.Tensor) -> dict[int, torch.Tensor]:
    """offset -> (positions, vocab) log-probs of the heads at the scored positions of each block."""
    found = {k: [] for k in heads.spec.offsets}
    for start in range(0, len(scored), BLOCKS):
        part = slice(start, start + BLOCKS)
        here, states = scored[part].to(features.device), features.batch(part, heads.layers)
        if heads.spec.kind != "block":  # it alone reads other positions
            here, states = here[here][None], states[here][None]
        for k, h in heads(states).items():
            found[k].append(heads.log_probs(k, h[here]).cpu())
    return {k: torch.cat(parts) for k, parts in found.items()}


def gap_summary(scores: pd.DataFrame, by_class: bool = False) -> pd.DataFrame:
    """The long table: one row per arm, corpus, offset, label source (and class of the label) and metric, with intervals."""
    table = scores.assign(cross_entropy=-scores["log_prob"], marginal_cross_entropy=-scores["marginal_log_prob"])
    if not by_class:
        table = table.assign(token_class="all")
    return metrics.summarise(table, KEYS, METRICS)


KEYS = ["backbone", "corpus", "label_source", "train_labels", "offset", "head", "features", "head_layers", "unembedding"]
KEYS += ["train_tokens", "seed", "estimator", "token_class"]
METRICS = ["top1", "top5", "cross_entropy", "excess_ce", "kl_to_marginal", "entropy_m2"]
METRICS += ["marginal_top1", "marginal_cross_entropy"]


def unembedding_floor(log_m: torch.Tensor, weight: torch.Tensor, bias=None, steps: int = 200) -> torch.Tensor:
    """min over h in R^d of KL(m || softmax(W h + b)), nats (positions,): what the head's width alone costs.

    Convex in h, and each position has its own; L-BFGS over all at once, so an upper bound that `steps` brings down to the
    minimum. log_m (positions, vocab), normalised; weight (vocab, d); bias (vocab,) or None.
    """
    log_m, weight, bias = (None if x is None else x.detach().double() for x in (log_m, weight, bias))
    h = torch.zeros(len(log_m), weight.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([h], max_iter=steps, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-9)
    m = log_m.exp()

    def log_q() -> torch.Tensor:
        return torch.nn.functional.linear(h, weight, bias).log_softmax(-1)

    def closure():
        optimizer.zero_grad()
        loss = -(m * log_q()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return scoring.kl(log_m, log_q())
