"""C3: heads on a frozen backbone: the grid of kinds, what more tokens and other labels change, and the heads that decide."""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from ..backbones.load import Backbone
from ..heads.spec import HeadSpec
from ..heads.training import TRAIN_LABELS, Training, heads_from
from . import arms, gaps, head_claims, head_measures, layer_readings, layers, metrics, scoring, stored


def grid_arms(run, bench: arms.Bench) -> list[arms.Arm]:
    """Every kind of heads of the profile's grid, tuned on validation. `single` is the layer whose probe is best at offset 2."""
    read = (1, 2, 3, 4) if bench.backbone.name in run.profile.last_rungs else (2,)  # notebook 03's probes, where it has some
    single = layer_readings.best_layer(layer_readings.probe_arms(run, bench, read), 2)
    specs = [HeadSpec(kind, single if f == "single" else f, offsets=run.profile.grid_offsets) for kind, f in run.profile.grid]
    return arms.able_arms(run, bench, specs)


def for_offsets(run, bench: arms.Bench, arm: arms.Arm, last: int) -> list[arms.Arm]:
    """Further heads of the arm's kind, for those offsets up to `last` that it lacks: one arm, or none."""
    missing = tuple(k for k in range(2, last + 1) if k not in arm.spec.offsets)
    return [arms.tuned_arm(run, bench, replace(arm.spec, offsets=missing))] if missing else []


def drawn_once(scores: pd.DataFrame, backbone: Backbone) -> pd.DataFrame:
    """The scores without the heads on the best single layer, where that is the last one: they are those on the last layer."""
    return scores[scores["features"] != str(arms.depth_of(backbone)[-1])]


def losses_by_kind(trained: list[arms.Arm], backbone: str) -> pd.DataFrame:
    """One row: each kind's cross-entropy at offset 2 on validation, nats a token."""
    rows = [{"backbone": backbone, "arm": arm.kind, "loss": arm.loss(2)} for arm in trained if 2 in arm.spec.offsets]
    return pd.DataFrame(rows).pivot_table(index="backbone", columns="arm", values="loss", sort=False)


def at_offset_two(run, bench: arms.Bench, arm: arms.Arm) -> tuple[HeadSpec, Training]:
    """The arm's kind at offset 2 alone, and how it is trained on the profile's deciding_tokens: at the arm's rate, or at a
    lower one for as long as that is better on validation."""
    spec, how = replace(arm.spec, offsets=(2,)), replace(arm.training, tokens=run.profile.deciding_tokens, rate=arm.rate(2))
    return spec, arms.settled_arm(run, bench, spec, how).training


def deciding_scores(run, backbone: Backbone, test: dict, arm: arms.Arm, judge: Backbone | None = None) -> pd.DataFrame:
    """Scores at offset 2 of the arm's kind on a backbone, trained on the deciding tokens with every seed of the profile, beside
    the marginal of `judge` (its own, if None): what a verdict is about."""
    spec = replace(arm.spec, offsets=(2,))
    bench = arms.bench_of(run, backbone, test, tokens=run.profile.deciding_tokens, layers=arms.layers_of(backbone, spec))
    spec, how = at_offset_two(run, bench, arm)
    trained = [arms.trained_arm(run, bench, spec, replace(how, seed=seed)) for seed in run.profile.head_seeds]
    return gaps.scored(run, bench, trained, judge)


def scores_by_tokens(run, backbone: Backbone, test: dict, arm: arms.Arm) -> pd.DataFrame:
    """Scores on data labels at offset 2 of the arm's kind trained on a quarter of the deciding tokens, on all of them, and on
    four times as many, at the rate that suits the deciding tokens. `name`: the kind of head."""
    most = 4 * run.profile.deciding_tokens
    bench = arms.bench_of(run, backbone, test, tokens=most, layers=_read_by(backbone, arm))
    spec, how = at_offset_two(run, bench, arm)
    trained = [arms.trained_arm(run, bench, spec, replace(how, tokens=tokens)) for tokens in (most // 16, most // 4, most)]
    scores = pd.concat([gaps.scored(run, bench, [one]) for one in trained], ignore_index=True)
    return scores[scores.label_source == "data"].assign(name=arm.spec.kind)


def bench_for_labels(run, backbone: Backbone, test: dict, arm: arms.Arm) -> arms.Bench:
    """Where heads of the arm's kind are trained on labels that the backbone drew."""
    return arms.bench_of(run, backbone, test, layers=_read_by(backbone, arm), horizon=2)


def _read_by(backbone: Backbone, arm: arms.Arm) -> tuple[int, ...]:
    """The layers that the arm's kind reads at offset 2, and the last one."""
    return tuple(sorted({*arms.layers_of(backbone, replace(arm.spec, offsets=(2,))), arms.depth_of(backbone)[-1]}))


def taught_by(run, bench: arms.Bench, arm: arms.Arm) -> dict[str, arms.Arm]:
    """train_labels -> the arm's kind at offset 2, tuned on those labels: the text's own, drawn from the backbone, soft."""
    spec = replace(arm.spec, offsets=(2,))
    return {labels: arms.tuned_arm(run, bench, spec, labels) for labels in TRAIN_LABELS}


def identity_table(run, bench: arms.Bench, arm: arms.Arm) -> pd.DataFrame:
    """By corpus the z of -log q(w) - (H(m2) + KL(m2 || q)) over labels w drawn from the backbone, which must be near 0, and
    with each document's label exchanged for the next one's, which must not be (head_claims.identity_z)."""
    rows = []
    for corpus, (blocks, states) in bench.test.items():
        log_q = head_measures.head_log_probs(heads_from(arm.arrays, bench.backbone, arm.spec), states, blocks.scored)[2]
        log_m = torch.from_numpy(stored.marginal(run, bench.backbone, blocks, 2).values["log_probs"])
        labels = stored.labels(run, bench.backbone, blocks).table
        labels = labels[(labels.offset == 2) & (labels.label_source == "sampled")]
        drawn = labels["label"].to_numpy().copy()
        terms = scoring.entropy(log_m).numpy(), scoring.kl(log_m, log_q).numpy(), labels["document"].to_numpy()
        others = np.roll(drawn, run.profile.positions_per_document)
        z = [head_claims.identity_z(log_q[range(len(w)), w].numpy(), *terms) for w in (drawn, others)]
        rows.append({"corpus": corpus, "z on drawn labels": z[0], "z on another document's": z[1]})
    return pd.DataFrame(rows)


def size_table(run, backbones: dict[str, Backbone], test: dict, scores: pd.DataFrame, best: dict[str, arms.Arm]) -> pd.DataFrame:
    """At offset 2, by backbone and corpus: top-1 and cross-entropy of the marginal and of the best frozen head (`name`), and as
    `gap` KL(m2 || head) beside the least gap that a head of this width can have on the frozen unembedding (`floor`), with
    intervals. scores: of the grid, gaps.scored; best: of each backbone the arm that is best on validation."""
    data, rows = scores[(scores.offset == 2) & (scores.label_source == "data")], []
    for name, backbone in backbones.items():
        for corpus, part in test.items():
            log_m = torch.from_numpy(stored.marginal(run, backbone, part, 2).values["log_probs"])
            floor = head_measures.unembedding_floor(log_m, backbone.model.get_output_embeddings().weight.cpu())
            rows.append(scoring.positions_of(part).assign(backbone=name, name="floor", gap=floor.numpy()))
            kind = best[name].spec
            ours = data[(data.backbone == name) & (data.corpus == corpus)]
            ours = ours[(ours["head"] == kind.kind) & (ours["features"] == str(kind.features))]
            rows.append(ours.assign(name="frozen", gap=ours["kl_to_marginal"], cross_entropy=-ours["log_prob"]))
            theirs = {"top1": ours["marginal_top1"], "cross_entropy": -ours["marginal_log_prob"], "gap": np.nan}
            rows.append(ours.assign(name="marginal", **theirs))
    table = pd.concat(rows, ignore_index=True)
    found = metrics.summarise(table, ["backbone", "corpus", "name"], ["top1", "cross_entropy", "gap"]).dropna(subset="value")
    return found.assign(n_params=found["backbone"].map({name: b.n_params for name, b in backbones.items()}))


def twin_controls(run, mtp: Backbone, offset2: Backbone, test: dict, arm: arms.Arm, judge: Backbone) -> dict[str, pd.DataFrame]:
    """C3b's two controls, scored beside the marginal of `judge`: the same kind of heads, tuned anew, on the twin pre-trained for
    several tokens (mtp); and the model trained on offset 2 alone (offset2), whose LM head is the answer."""
    tuned = arms.tuned_arm(run, arms.bench_of(run, mtp, test), replace(arm.spec, offsets=(2,)))
    bench = arms.bench_of(run, offset2, test)
    itself = arms.untrained_arm(run, bench, layers.lens(bench.train.layers[-1], (2,)))
    return {
        "heads on the MTP twin": deciding_scores(run, mtp, test, tuned, judge),
        "trained on offset 2 alone": gaps.scored(run, bench, [itself], judge),
    }
