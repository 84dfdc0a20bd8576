"""C3, layer by layer: layers of a backbone read out by trained probes and by the logit lens; what fades, what a mix chooses."""

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..backbones.load import Backbone
from ..base.records import Arrays
from ..heads.training import heads_from
from . import arms, gaps, head_claims, head_measures, jacobian, layers, scoring, stored
from .counting import PREDICTORS


def probe_arms(run, bench: arms.Bench, offsets: tuple[int, ...], few: bool = False) -> list[arms.Arm]:
    """A trained probe for each layer of the bench (few: the first, the middle and the last), each at the rates that are best for
    it, an offset each."""
    every = bench.train.layers
    read = sorted({every[0], every[len(every) // 2], every[-1]}) if few else every
    return [arms.tuned_arm(run, bench, layers.probe(bench.backbone, layer, offsets)) for layer in read]


def best_layer(probes: list[arms.Arm], offset: int) -> int:
    """The layer whose probe has the lowest cross-entropy at that offset on validation."""
    return arms.best_at(offset, probes).spec.features


@dataclass(frozen=True)
class Reading:
    """What was read from a backbone's layers: the trained probes of some, and the scores on the data's own tokens of those and of
    the lens of every layer, at all eligible positions: rows of `by_document`, `readout` (probe, lens) and `backbone`."""

    probes: list[arms.Arm]
    scores: pd.DataFrame


def read_layers(run, bench: arms.Bench, offsets: tuple[int, ...], name: str | None = None, few: bool = False) -> Reading:
    """Layers of a backbone read out: those of the bench by a trained probe at these offsets, all by the logit lens at every one
    up to the horizon. The tables call the backbone `name`. few: three layers and no lens, which is enough of one that knows
    nothing."""
    probes, scores = probe_arms(run, bench, offsets, few), []
    numbers, every = [arm.spec.features for arm in probes], tuple(range(1, run.profile.horizon + 1))
    for blocks, states in bench.test.values():
        wide = gaps.eligible(blocks, bench.backbone)
        each = [gaps.on_data(run, bench, wide, states, arm) for arm in probes]
        read = {k: np.stack([found[k] for found in each]) for k in offsets}
        scores.append(by_document(wide, numbers, read).assign(readout="probe"))
        if few:
            continue
        given = {"backbone": bench.backbone, "blocks": wide, "at": every, "bf16": bench.train.bf16}
        stem = f"03_lens_{stored.stem_of(bench.backbone, blocks)}"
        found = run.measure_arrays(stem, head_measures.lens_arrays, **given)
        scores.append(_every_layer(wide, found, every).assign(readout="lens"))
    return Reading(probes, pd.concat(scores, ignore_index=True).assign(backbone=name or bench.backbone.name))


def read_ahead(run, bench: arms.Bench, offsets: tuple[int, ...]) -> pd.DataFrame:
    """Scores of the Jacobian lens of every layer of a backbone: as the lens's of `Reading.scores`."""
    name = bench.backbone.name.replace("/", "-")
    read, scores = run.measure_arrays(f"03_jacobians_{name}", jacobian.jacobians, features=bench.train, at=offsets), []
    for blocks, _ in bench.test.values():
        wide = gaps.eligible(blocks, bench.backbone)
        given = {"backbone": bench.backbone, "blocks": wide, "read": read, "at": offsets}
        stem = f"03_jacobian_lens_{stored.stem_of(bench.backbone, blocks)}"
        found = run.measure_arrays(stem, jacobian.jacobian_arrays, **given)
        scores.append(_every_layer(wide, found, offsets).assign(readout="jacobian"))
    return pd.concat(scores, ignore_index=True)


def by_document(wide, numbers: list[int], read: dict[int, np.ndarray]) -> pd.DataFrame:
    """Each document's mean cross-entropy [nats/token] over its scored positions, by offset and layer: corpus, document, offset,
    layer, cross_entropy, positions. numbers: of the layers; read: offset -> (layers, positions) log-probs."""
    row, _ = np.nonzero(wide.scored.numpy())
    positions, frames = np.bincount(row, minlength=len(wide.documents)), []
    for k, log_probs in read.items():
        for layer, values in zip(numbers, log_probs, strict=True):
            means = -np.bincount(row, values, len(positions)) / positions.clip(1)
            keys = {"corpus": wide.corpus, "document": wide.documents, "offset": k, "layer": layer}
            frames.append(pd.DataFrame({**keys, "cross_entropy": means, "positions": positions})[positions > 0])
    return pd.concat(frames, ignore_index=True)


def _every_layer(wide, found: Arrays, offsets: tuple[int, ...]) -> pd.DataFrame:
    read = {k: found.values[f"log_prob.{k}"] for k in offsets}
    return by_document(wide, list(range(len(read[offsets[0]]))), read)


def counted(run, backbone: Backbone, test: dict) -> pd.DataFrame:
    """What counting says at the same positions of the data's own token after next (`name`: the control): by corpus and document
    the mean cross_entropy [nats/token], and its `positions`."""
    frames = []
    for blocks in test.values():
        keys = scoring.positions_of(gaps.eligible(blocks, backbone))
        table = keys.merge(stored.counted_everywhere(run, backbone, blocks), on=list(keys), validate="one_to_many")
        table = table[table.predictor.isin(PREDICTORS)].assign(cross_entropy=-table["log_prob"])
        by = table.groupby(["corpus", "document", "predictor"], sort=False)["cross_entropy"].agg(["mean", "size"]).reset_index()
        frames.append(by.rename(columns={"predictor": "name", "mean": "cross_entropy", "size": "positions"}))
    return pd.concat(frames, ignore_index=True)


def fading_table(readings: dict[str, Reading], offsets: tuple[int, ...]) -> pd.DataFrame:
    """For each backbone and offset whose best probe on validation is not the last layer's: that layer, and by corpus what the
    last one lacks of it on test (head_claims.fading)."""
    rows = []
    for (name, reading), offset in itertools.product(readings.items(), offsets):
        chosen, last = best_layer(reading.probes, offset), reading.probes[-1].spec.features
        if chosen == last:
            continue
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
