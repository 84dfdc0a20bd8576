"""C3, layer by layer: layers of a backbone read out by trained probes and by the logit lens; what fades, what a mix chooses."""

import itertools
from dataclasses import dataclass

import pandas as pd

from ..backbones.load import Backbone
from ..heads.training import heads_from
from . import arms, gaps, head_claims, head_measures, jacobian, layers, stored


def probe_arms(run, bench: arms.Bench, offsets: tuple[int, ...]) -> list[arms.Arm]:
    """A trained probe for each layer of the bench, each at the rates that are best for it, an offset each."""
    return [arms.tuned_arm(run, bench, layers.probe(bench.backbone, layer, offsets)) for layer in bench.train.layers]


def best_layer(probes: list[arms.Arm], offset: int) -> int:
    """The layer whose probe has the lowest cross-entropy at that offset on validation."""
    return arms.best_at(offset, probes).spec.features


@dataclass(frozen=True)
class Reading:
    """What was read from a backbone's layers: the trained probes of some, and the scores on data labels of those and of the lens
    of every layer: columns of gaps.scored, `layer` and `readout` (probe, lens)."""

    probes: list[arms.Arm]
    scores: pd.DataFrame


def read_layers(run, bench: arms.Bench, offsets: tuple[int, ...], judge: Backbone, name: str | None = None) -> Reading:
    """Layers of a backbone read out at every offset: those of the bench by a trained probe, all by the logit lens. The labels
    that it is scored on are those of `judge`; the tables call the backbone `name`."""
    probes = probe_arms(run, bench, offsets)
    scores = [scored_by_layer(run, bench, probes, "probe", judge)]
    for blocks, _ in bench.test.values():
        stem = f"03_lens_{stored.stem_of(bench.backbone, blocks)}_{judge.name.replace('/', '-')}"
        given = {"backbone": bench.backbone, "blocks": blocks, "labels": stored.labels(run, judge, blocks), "at": offsets}
        scores.append(run.measure(stem, head_measures.lens_table, **given, bf16=bench.train.bf16))
    return Reading(probes, pd.concat(scores, ignore_index=True).assign(backbone=name or bench.backbone.name))


def read_ahead(run, bench: arms.Bench, offsets: tuple[int, ...]) -> pd.DataFrame:
    """Scores of the Jacobian lens of every layer of a backbone on its own data labels: as the lens's of `Reading.scores`."""
    name = bench.backbone.name.replace("/", "-")
    read = run.measure_arrays(f"03_jacobians_{name}", jacobian.jacobians, features=bench.train, at=offsets)
    scores = []
    for blocks, _ in bench.test.values():
        given = {"backbone": bench.backbone, "blocks": blocks, "labels": stored.labels(run, bench.backbone, blocks)}
        stem = f"03_jacobian_lens_{stored.stem_of(bench.backbone, blocks)}"
        scores.append(run.measure(stem, jacobian.jacobian_table, **given, read=read, at=offsets))
    return pd.concat(scores, ignore_index=True)


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
        heads = heads_from(arm.arrays, backbones[name], arm.spec)
        for offset, weights in heads.mix_weights().items():
            rows += [(name, offset, layer, w) for layer, w in zip(heads.layers, weights, strict=True)]
    return pd.DataFrame(rows, columns=["backbone", "offset", "layer", "weight"])
