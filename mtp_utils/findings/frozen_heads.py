"""C3: heads on a frozen backbone: the grid of kinds, the heads that decide, how far they are trained, what labels change."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from ..backbones.anatomy import finish_of, rows_of, table_of
from ..backbones.load import Backbone
from ..heads.operations import draft_operations, pass_operations
from ..heads.spec import HeadSpec
from ..heads.training import TRAIN_LABELS, Training, heads_from
from ..text import corpora
from ..text.blocks import CONTEXT, stream_digest
from . import arms, gaps, head_claims, head_measures, marginal_tables, metrics, scoring, stored
from .scoring import Tokenizer

LARGEST_COUNT = 2**24  # probabilities of heads beside counting held at once


def grid_arms(run, bench: arms.Bench) -> list[arms.Arm]:
    """Every kind of heads of the profile's grid, tuned on validation."""
    specs = [HeadSpec(kind, read, unembedding=own, offsets=run.profile.grid_offsets) for kind, read, own in run.profile.grid]
    return arms.able_arms(run, bench, specs)


def for_offsets(run, bench: arms.Bench, arm: arms.Arm, last: int, alike: bool = False) -> list[arms.Arm]:
    """Further heads of the arm's kind, for those offsets up to `last` that it lacks: one arm, or none. Tuned, or `alike`: trained
    as its head for offset 2 was."""
    missing = tuple(k for k in range(2, last + 1) if k not in arm.spec.offsets)
    if not missing:
        return []
    spec = replace(arm.spec, offsets=missing)
    if alike:
        return [arms.trained_arm(run, bench, spec, replace(arm.training, rate=arm.rate(2)))]
    return [arms.tuned_arm(run, bench, spec)]


def losses_by_kind(trained: list[arms.Arm]) -> pd.DataFrame:
    """Each kind's cross-entropy at offset 2 on validation, nats a token: a row for trunk and features, a column for whose
    unembedding it has."""
    rows = [{"kind": arms.kind_of(replace(a.spec, unembedding="shared")), "unembedding": a.spec.unembedding, "loss": a.loss(2)}
            for a in trained if 2 in a.spec.offsets]  # fmt: skip
    return pd.DataFrame(rows).pivot_table(index="kind", columns="unembedding", values="loss", sort=False)


def sizes_by_kind(backbone: Backbone, trained: list[arms.Arm]) -> pd.DataFrame:
    """What a head of each kind holds and costs, for one offset: its own weights in millions, and in millions of multiply-adds
    what it adds to a token's pass behind CONTEXT tokens, as a share of the backbone's own too."""
    rows, own = [], pass_operations(backbone, CONTEXT)
    for arm in trained:
        one = replace(arm.spec, offsets=arm.spec.offsets[:1])
        weights = sum(x.size for n, x in arm.arrays.values.items() if n.startswith("heads.")) / len(arm.spec.offsets)
        cost = draft_operations(backbone, one, CONTEXT)
        rows.append({"kind": arm.kind, "weights [M]": weights / 1e6, "multiply-adds [M]": cost / 1e6, "of a pass": cost / own})
    return pd.DataFrame(rows)


def from_best(run, bench: arms.Bench, trained: list[arms.Arm]) -> list[arms.Arm]:
    """The arms from the best at offset 2 on validation to the worst: by the text of those corpora that the backbone knows, where
    it knows some and not all (on the others heads that learn the text are held against a marginal that says nothing of it)."""
    names = tuple(corpora.names())
    unknown = marginal_tables.unknown_to(run, bench.backbone, bench.blocks) if min(len(names), len(trained)) > 1 else ()
    known = [corpus for corpus in names if corpus not in unknown]
    if not known or len(known) == len(names):
        return sorted(trained, key=lambda arm: arm.loss(2))

    def loss(arm: arms.Arm) -> float:
        stem = f"04_validation_losses_{bench.backbone.name.replace('/', '-')}_{arm.name}"
        given = {"features": bench.validation, "heads": arm.arrays, "spec": arm.spec, "corpora": names}
        table = run.measure(stem, head_measures.validation_losses, **given)
        return float(table[(table.offset == 2) & table.corpus.isin(known)]["cross_entropy"].mean())

    return sorted(trained, key=loss)


@dataclass(frozen=True)
class Decided:
    """Heads of one kind at offset 2 on one backbone, trained on doubling budgets: what they are trained and scored on, and the
    arm at every budget (seed 0). The last one decides."""

    bench: arms.Bench
    by_budget: list[arms.Arm]

    @property
    def last(self) -> arms.Arm:
        return self.by_budget[-1]

    @property
    def said(self) -> str:
        """How far they were trained, in words."""
        n, gain = self.last.training.tokens, arms.last_gain(self.by_budget)
        end = "trained out" if arms.is_trained_out(self.by_budget) else "not trained out, at the cap"
        brought = f"the last doubling brought {gain:.3f} nats on validation"
        return f"{n:,} positions in {self.last.training.epochs} epochs ({end}: {brought})"

    def seeded(self, run) -> list[arms.Arm]:
        """The last arm with every seed of the profile."""
        each = [replace(self.last.training, seed=seed) for seed in run.profile.head_seeds]
        return [arms.trained_arm(run, self.bench, self.last.spec, how) for how in each]


def decided(run, backbone: Backbone, test: dict, grid: list[arms.Arm]) -> Decided:
    """The kind that is best at offset 2 on validation (from_best), trained until it is trained out, or to the profile's
    most_tokens. The three best of the grid meet again at the first budget, an eighth, where it is more than the grid's."""
    best, first = from_best(run, arms.bench_of(run, backbone, test), grid), first_budget(run)
    again = best[: 3 if first > run.profile.head_tokens else 1]
    bench = deciding_bench(run, backbone, test, *(arm.spec for arm in again))
    arms.make_states(run, bench)
    arm = from_best(run, bench, [arms.settled_arm(run, bench, *_alone(arm, first), arms.FIRST) for arm in again])[0]
    return Decided(bench, arms.trained_out(run, bench, arm.spec, arm.training, run.profile.most_tokens))


def as_far(run, backbone: Backbone, test: dict, like: Decided, all_budgets: bool = True) -> Decided:
    """Heads of the same kind on another backbone, trained as far (at every budget, or at the last alone), at their own rates."""
    bench, most = deciding_bench(run, backbone, test, like.last.spec), like.last.training.tokens
    start = like.by_budget[0 if all_budgets else -1].training
    how = replace(start, rate=arms.tuned_arm(run, bench, like.last.spec).rate(2))
    return Decided(bench, arms.trained_out(run, bench, like.last.spec, how, most, gain=-np.inf))


def in_the_same_way(run, backbone: Backbone, test: dict, first: Decided) -> Decided:
    """The last of those heads on a backbone of another pre-training run, trained in the same way, at the same rates."""
    bench = deciding_bench(run, backbone, test, first.last.spec)
    return Decided(bench, [arms.trained_arm(run, bench, first.last.spec, first.last.training)])


def first_budget(run) -> int:
    """Positions that heads which decide are first trained on: an eighth of the most, one step at least."""
    return max(run.profile.most_tokens // 8, arms.STEP * CONTEXT)


def deciding_bench(run, backbone: Backbone, test: dict, *specs: HeadSpec) -> arms.Bench:
    """The states that heads of these kinds, of which one decides, read on the profile's text_tokens, and the last layer's."""
    return arms.bench_of(run, backbone, test, tokens=run.profile.text_tokens, layers=_read_by(backbone, *specs))


def _alone(arm: arms.Arm, tokens: int) -> tuple[HeadSpec, Training]:
    """The arm's kind at offset 2 alone, and its training on that many positions, several blocks a step."""
    return replace(arm.spec, offsets=(2,)), replace(arm.training, tokens=tokens, rate=arm.rate(2), blocks=arms.STEP)


def scores_by_budget(run, of: Decided) -> pd.DataFrame:
    """Scores on data labels of the heads at every budget; `name`: frozen."""
    scores = gaps.scored(run, of.bench, of.by_budget)
    return scores[scores.label_source == "data"].assign(name="frozen")


def slopes(by_budget: pd.DataFrame) -> pd.DataFrame:
    """By corpus what each doubling of the budget took off the excess over the marginal, nats. by_budget: a summary."""
    rows = by_budget[(by_budget.metric == "excess_ce") & (by_budget["name"] == "frozen")]
    table = rows.pivot_table(index="corpus", columns="train_tokens", values="value", sort=False).sort_index(axis=1)
    return -table.diff(axis=1).iloc[:, 1:]


def on_validation(run, of: Decided) -> pd.DataFrame:
    """By corpus the cross-entropy at offset 2 on validation of the heads and of counting: what says whether they may decide."""
    validation, names, split = of.bench.validation, tuple(corpora.names()), run.profile.control_split
    backbone, size = validation.backbone, validation.tokens.numel()
    vocabulary = rows_of(backbone.model.get_output_embeddings())
    asked = {"corpora": names, "step": max(1, size * vocabulary // LARGEST_COUNT // len(names))}
    stem = f"04_validation_{backbone.name.replace('/', '-')}_{of.last.name}"
    given = {"features": validation, "heads": of.last.arrays, "spec": of.last.spec}
    heads = run.measure(stem, head_measures.validation_table, **given, **asked)
    text = [stream_digest(corpus, part, backbone.tokenizer) for part in (split, "validation") for corpus in names]
    given = {"tokenizer": Tokenizer(backbone.tokenizer), "n_blocks": len(validation.tokens), "vocabulary": vocabulary}
    stem = f"04_validation_counts_{len(validation.tokens)}"
    counts = run.measure(stem, head_measures.validation_counts, **given, **asked, split=split, text=text)
    return heads.merge(counts, on="corpus", validate="one_to_one")


def bench_for_labels(run, backbone: Backbone, test: dict, arm: arms.Arm) -> arms.Bench:
    """Where heads of the arm's kind are trained on labels that the backbone drew."""
    return arms.bench_of(run, backbone, test, layers=_read_by(backbone, arm.spec), horizon=2)


def _read_by(backbone: Backbone, *specs: HeadSpec) -> tuple[int, ...]:
    """The layers that heads of these kinds read, and the last one."""
    read = (arms.layers_of(backbone, replace(spec, offsets=(2,))) for spec in specs)
    return tuple(sorted({arms.depth_of(backbone)[-1]}.union(*read)))


def taught_by(run, bench: arms.Bench, arm: arms.Arm, asked: tuple[str, ...] = TRAIN_LABELS) -> dict[str, arms.Arm]:
    """train_labels -> the arm's kind at offset 2, tuned on those labels: the text's own, drawn from the backbone, soft, and soft
    ones by which acceptance is asked for."""
    spec = replace(arm.spec, offsets=(2,))
    return {labels: arms.tuned_arm(run, bench, spec, labels) for labels in asked}


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


def _floor(backbone: Backbone, log_m: torch.Tensor) -> np.ndarray:
    """The least gap (positions,) on the backbone's own unembedding; nan where that is more than a table and a bias."""
    table, how = table_of(backbone.model), finish_of(backbone.model)
    if table is None or how.cap:
        return np.full(len(log_m), np.nan)
    bias = getattr(backbone.model.get_output_embeddings(), "bias", None)
    return head_measures.unembedding_floor(log_m, table.cpu(), None if bias is None else how.after * bias.cpu()).numpy()


def size_table(run, each: dict[str, Decided], test: dict) -> pd.DataFrame:
    """At offset 2, by backbone and corpus: top-1 and cross-entropy of the marginal, of counting and of frozen heads trained on
    the same budget at every size (`name`), and as `gap` KL(m2 || head), or to counting, beside the least gap that a head of this
    width can have on the frozen unembedding as it is (`floor`), with intervals."""
    rows = []
    for name, of in each.items():
        backbone = of.bench.backbone
        for part in test.values():
            log_m = torch.from_numpy(stored.marginal(run, backbone, part, 2).values["log_probs"])
            rows.append(scoring.positions_of(part).assign(backbone=name, name="floor", gap=_floor(backbone, log_m)))
        ours = gaps.scored(run, of.bench, [of.last])
        ours = ours[ours.label_source == "data"]
        rows.append(ours.assign(name="frozen", gap=ours["kl_to_marginal"], cross_entropy=-ours["log_prob"]))
        theirs = {"top1": ours["marginal_top1"], "cross_entropy": -ours["marginal_log_prob"], "gap": np.nan}
        rows.append(ours.assign(name="marginal", **theirs))
        counted, keys = gaps.counted(run, backbone, test), ["corpus", "document", "position", "name"]
        rows.append(counted.merge(gaps.counted_kl(run, backbone, test), on=keys, how="left").assign(backbone=name))
    table = pd.concat(rows, ignore_index=True)
    found = metrics.summarise(table, ["backbone", "corpus", "name"], ["top1", "cross_entropy", "gap"]).dropna(subset="value")
    return found.assign(n_params=found["backbone"].map({name: of.bench.backbone.n_params for name, of in each.items()}))
