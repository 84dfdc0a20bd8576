"""C3b: the same heads on twins of one shape: the NTP backbone, one pre-trained for several tokens, one for offset 2 alone."""

from dataclasses import dataclass

import pandas as pd

from ..backbones.load import Backbone
from . import adjusted, arms, frozen_heads, gaps, head_claims, layer_readings, layers, metrics
from .frozen_heads import Decided


@dataclass(frozen=True)
class Twins:
    """Heads of one kind trained as far on the NTP backbone and on the twin pre-trained for several tokens (mtp), and the model
    trained on offset 2 alone, whose LM head is the answer. All are scored beside the NTP backbone's marginal."""

    ntp: Decided
    mtp: Decided
    offset2: Backbone

    @property
    def judge(self) -> Backbone:
        return self.ntp.bench.backbone


def of(run, ntp: Decided, mtp: Backbone, offset2: Backbone, test: dict) -> Twins:
    """The twins of an NTP backbone whose heads are trained."""
    return Twins(ntp, frozen_heads.as_far(run, mtp, test, ntp), offset2)


def second_run(run, first: Twins, ntp: Backbone, mtp: Backbone, offset2: Backbone, test: dict) -> Twins:
    """The same from another seed of pre-training: heads at the last budget alone, at the first run's rates, with one seed."""
    sides = ((ntp, first.ntp), (mtp, first.mtp))
    return Twins(*(frozen_heads.in_the_same_way(run, backbone, test, of) for backbone, of in sides), offset2)


def dedicated(run, twins: Twins, test: dict, score=gaps.everywhere, **given) -> pd.DataFrame:
    """Scores of the model trained on offset 2 alone; score: which, and what it is given."""
    bench = arms.bench_of(run, twins.offset2, test, tokens=1, layers=arms.depth_of(twins.offset2)[-1:])
    itself = arms.untrained_arm(run, bench, layers.lens(bench.train.layers[-1], (2,)))
    return score(run, bench, [itself], **given)


def effects(run, runs: list[Twins], test: dict) -> pd.DataFrame:
    """C3b's two contrasts at all eligible positions, for heads are held against heads. runs: of pre-training; the first one's
    heads with every seed of the profile."""
    found = [
        (
            *(gaps.everywhere(run, of.bench, [of.last] if i else of.seeded(run)) for of in (twins.ntp, twins.mtp)),
            dedicated(run, twins, test),
        )
        for i, twins in enumerate(runs)
    ]
    ours, theirs, alone = (pd.concat([x.assign(run=i) for i, x in enumerate(side)]) for side in zip(*found, strict=True))
    return head_claims.c3b_effects(ours, {"heads on the MTP twin": theirs, "trained on offset 2 alone": alone})


def behind_by_budget(run, twins: Twins) -> pd.DataFrame:
    """By corpus and budget the cross-entropy at offset 2 of heads on the NTP backbone minus that of heads on the MTP twin on as
    many positions, nats, at all eligible positions: a curve and no number."""
    rows = []
    for ours, theirs in zip(twins.ntp.by_budget, twins.mtp.by_budget, strict=True):
        scores = [gaps.everywhere(run, one.bench, [arm]) for one, arm in ((twins.ntp, ours), (twins.mtp, theirs))]
        found = head_claims.c3b_effects(scores[0], {"heads on the MTP twin": scores[1]})
        rows.append(found.assign(positions=ours.training.tokens))
    return pd.concat(rows, ignore_index=True)


def decomposition(run, twins: Twins, test: dict, seed: int) -> pd.DataFrame:
    """By corpus the frozen heads' gap to the marginal and its two parts, nats at offset 2, with intervals: to a model of the
    same size trained on offset 2 alone (heads against heads, at all eligible positions), and from that to the marginal (of
    adjusted.excess, as the whole is). The second part is the price of one pass, and no specialisation."""
    heads = twins.ntp.seeded(run)
    whole = adjusted.excess(run, twins.ntp.bench, heads, seed)
    price = dedicated(run, twins, test, adjusted.excess, seed=seed, base=twins.judge)
    wide = gaps.everywhere(run, twins.ntp.bench, heads)
    parts = {
        "heads - one pass": head_claims.ahead_effects(dedicated(run, twins, test), wide),
        "one pass - marginal": head_claims.c3a_effects(price),
        "heads - marginal": head_claims.c3a_effects(whole),
    }
    return pd.concat([found.assign(part=name) for name, found in parts.items()], ignore_index=True)


def next_token_cost(run, twins: Twins, test: dict) -> pd.DataFrame:
    """By corpus each twin's own next-token loss [nats/token], and how far the MTP twin's lies above the NTP backbone's (effect,
    paired by document, with its interval): what its lead at offset 2 costs."""
    benches = (arms.bench_of(run, backbone, test) for backbone in (twins.judge, twins.mtp.bench.backbone))
    rows, losses = [], pd.concat([gaps.next_token(run, bench, "04_ntp") for bench in benches])
    for corpus, part in losses.groupby("corpus", sort=False):
        mtp, ntp = (part[part.backbone == b.name] for b in (twins.mtp.bench.backbone, twins.judge))
        means = {"NTP": ntp["cross_entropy"].mean(), "MTP": mtp["cross_entropy"].mean()}
        rows.append({"corpus": corpus} | means | metrics.paired(mtp, ntp, "cross_entropy"))
    return pd.DataFrame(rows).drop(columns=["p", "n_positions"])


def best_layers(run, twins: Twins, test: dict) -> pd.DataFrame:
    """The layer from which a probe reads offset 2 best on validation (of the layers that notebook 03 probes), by twin."""
    rows = []
    for name, backbone in (("NTP", twins.judge), ("MTP", twins.mtp.bench.backbone)):
        bench = arms.bench_of(run, backbone, test)
        best = layer_readings.best_layer(layer_readings.probe_arms(run, bench, run.profile.probe_offsets), 2)
        rows.append({"backbone": backbone.name, "trained for": name, "offset 2 read best at layer": best})
        rows[-1]["of layers 0 to"] = bench.train.layers[-1]
    return pd.DataFrame(rows)
