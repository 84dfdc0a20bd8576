"""C3, layer by layer: every layer of a backbone read out by a trained probe and by the logit lens; what fades, what a mix
chooses."""

import itertools
from dataclasses import dataclass

import pandas as pd

from ..backbones.load import Backbone
from ..heads.training import heads_from
from . import arms, gaps, head_claims, layers


def probe_arms(run, bench: arms.Bench, offsets: tuple[int, ...]) -> list[arms.Arm]:
    """A trained probe for each layer of the bench, at the rates that are best for the last one, an offset each."""
    tuned = arms.tuned_arm(run, bench, layers.probe(bench.train.layers[-1], offsets))
    return [arms.trained_arm(run, bench, layers.probe(layer, offsets), tuned.training) for layer in bench.train.layers]


def best_layer(probes: list[arms.Arm], offset: int) -> int:
    """The layer whose probe has the lowest cross-entropy at that offset on validation."""
    return arms.best_at(offset, probes).spec.features


@dataclass(frozen=True)
class Reading:
    """What was read from every layer of a backbone: the trained probes, and the scores of probes and lenses on data labels:
    columns of gaps.scored, `layer` and `readout` (probe, lens)."""

    probes: list[arms.Arm]
    scores: pd.DataFrame


def read_layers(run, bench: arms.Bench, offsets: tuple[int, ...], judge: Backbone, name: str | None = None) -> Reading:
    """Every layer of a bench read out at every offset: by a trained probe, and by the logit lens. The labels and the marginal
    that it is scored beside are those of `judge`; the tables call the backbone `name`."""
    probes = probe_arms(run, bench, offsets)
    lenses = [arms.untrained_arm(run, bench, layers.lens(layer, offsets)) for layer in bench.train.layers]
    scores = [scored_by_layer(run, bench, readers, kind, judge) for kind, readers in (("probe", probes), ("lens", lenses))]
    return Reading(probes, pd.concat(scores, ignore_index=True).assign(backbone=name or bench.backbone.name))


def read_noise(run, bench: arms.Bench, like: Reading) -> Reading:
    """A probe, trained as the one of the bench's last layer was, that is shown noise in place of its states."""
    last, arm = bench.train.layers[-1], like.probes[-1]
    noise = layers.on_noise(bench, last)
    blind = arms.trained_arm(run, noise, layers.probe(last, arm.spec.offsets), arm.training)
    return Reading([blind], scored_by_layer(run, noise, [blind], "probe", bench.backbone).assign(backbone="noise"))


def scored_by_layer(run, bench: arms.Bench, readers: list[arms.Arm], readout: str, judge: Backbone) -> pd.DataFrame:
    """Scores of read-outs on data labels, with the layer each reads and its cross-entropy."""
    found = gaps.scored(run, bench, readers, judge)
    found = found[found.label_source == "data"]
    return found.assign(readout=readout, layer=found["features"].astype(int), cross_entropy=-found["log_prob"])


def fading_table(readings: dict[str, Reading], offsets: tuple[int, ...]) -> pd.DataFrame:
    """For each backbone, offset and corpus the layer with the best probe on validation, and what the last layer lacks of it on
    test (head_claims.fading)."""
    rows = []
    for (name, reading), offset in itertools.product(readings.items(), offsets):
        chosen, last = best_layer(reading.probes, offset), reading.probes[-1].spec.features
        probes = reading.scores[(reading.scores.readout == "probe") & (reading.scores.offset == offset)]
        for corpus, part in probes.groupby("corpus", sort=False):
            keys = {"backbone": name, "corpus": corpus, "offset": offset, "best layer on validation": chosen}
            rows.append(keys | head_claims.fading(part, chosen, last))
    return pd.DataFrame(rows)


def mix_table(mixes: dict[str, arms.Arm], backbones: dict[str, Backbone]) -> pd.DataFrame:
    """The weight that each trained layer mix ended with: backbone, offset, layer, weight."""
    rows = []
    for name, arm in mixes.items():
        found = heads_from(arm.arrays, backbones[name], arm.spec).mix_weights()
        rows += [(name, offset, layer, w) for offset, weights in found.items() for layer, w in enumerate(weights)]
    return pd.DataFrame(rows, columns=["backbone", "offset", "layer", "weight"])
