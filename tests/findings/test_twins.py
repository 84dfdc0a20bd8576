"""C3b's contrast over two pre-training runs, on backbones that stand in for the twins."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mtp_utils.backbones.load import load_backbone
from mtp_utils.base.profiles import PROFILES
from mtp_utils.base.records import Arrays
from mtp_utils.base.run import Run
from mtp_utils.findings import arms, frozen_heads, gaps, head_measures, twins
from mtp_utils.heads.features import FrozenFeatures
from mtp_utils.heads.heads import Heads
from mtp_utils.heads.spec import HeadSpec
from mtp_utils.text import blocks, corpora

FIRST, SECOND = ("w16", "w16-seed1", "w16-seed2"), ("w16-seed2", "w16", "w16-seed1")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_BUILD", str(tmp_path))
    monkeypatch.setattr(blocks, "stream", lambda c, s, t: np.random.default_rng(len(s)).integers(1, 1024, 6000).astype(np.uint16))
    monkeypatch.setattr(blocks, "begins", lambda c, s, t: np.arange(0, 6000, 400))
    return Run("04_frozen_heads", PROFILES["smoke"])


def test_each_side_is_the_mean_of_its_pre_training_runs(run):
    ntp, mtp, offset2 = (load_backbone(f"ladder/{name}", device="cpu") for name in FIRST)
    test = {"prose": blocks.evaluation_blocks("prose", "test", ntp.tokenizer, n_documents=9, positions_per_document=1, horizon=4)}
    grid = [arms.tuned_arm(run, arms.bench_of(run, ntp, test), HeadSpec("residual", offsets=(2,)))]
    one = twins.of(run, frozen_heads.decided(run, ntp, test, grid), mtp, offset2, test)
    two = twins.second_run(run, one, *(load_backbone(f"ladder/{name}", device="cpu") for name in SECOND), test)
    assert len(two.ntp.by_budget) == len(two.mtp.by_budget) == 1
    assert [two.ntp.last.training, two.mtp.last.training] == [one.ntp.last.training, one.mtp.last.training]  # the rates too
    both, alone = twins.effects(run, [one, two], test), twins.effects(run, [one], test)
    assert (both["n_runs"] == 2).all() and (alone["n_runs"] == 1).all() and len(both) == len(alone) == 2

    def loss(arm):
        return gaps.everywhere(run, arm[0].bench, [arm[1]]).groupby("document")["cross_entropy"].mean().mean()

    by_hand = [loss((x.ntp, x.ntp.last)) - loss((x.mtp, x.mtp.last)) for x in (one, two)]
    heads = both[both.control == "heads on the MTP twin"].iloc[0]
    assert np.isclose(heads["effect"], np.mean(by_hand)) and by_hand[0] != by_hand[1]
    assert both["se_seeds"].min() > 0
    parts = twins.decomposition(run, one, test, 1).set_index("part")
    dedicated = alone[alone.control == "trained on offset 2 alone"].iloc[0]
    assert np.isclose(parts.loc["heads - one pass", "effect"], dedicated["effect"])
    whole, price = (parts.loc[name, "plain_effect"] for name in ("heads - marginal", "one pass - marginal"))
    scored = gaps.scored(run, one.ntp.bench, [one.ntp.last])
    scored = scored[(scored.label_source == "data") & (scored.offset == 2)]
    assert np.isclose(whole, scored["excess_ce"].mean()) and whole != price and (parts["ci_low"] < parts["effect"]).all()
    cost = twins.next_token_cost(run, one, test).iloc[0]
    assert np.isclose(cost["effect"], cost["MTP"] - cost["NTP"]) and cost["ci_low"] < cost["effect"] < cost["ci_high"]


def test_the_kind_is_chosen_by_the_text_that_the_backbone_knows(run, monkeypatch):
    ntp = load_backbone("ladder/w16", device="cpu")
    test = {"prose": blocks.evaluation_blocks("prose", "test", ntp.tokenizer, n_documents=9, positions_per_document=1, horizon=4)}
    bench = arms.bench_of(run, ntp, test)
    trained = [arms.tuned_arm(run, bench, HeadSpec(kind, offsets=(2, 3))) for kind in ("residual", "linear")]
    asked, names = [], tuple(corpora.names())
    losses = {"residual": (3.0, 1.0, 9.0), "linear": (2.0, 3.0, 1.0)}
    losses = {kind: dict(zip(names, values, strict=True)) for kind, values in losses.items()}

    def table(features, heads, spec, corpora):
        asked.append(spec.kind)
        rows = [(c, k, losses[spec.kind][c] if k == 2 else 0.0) for c in corpora for k in spec.offsets]
        return pd.DataFrame(rows, columns=["corpus", "offset", "cross_entropy"])

    monkeypatch.setattr(run, "measure", lambda stem, f, **given: table(**given))
    for unknown, first in (((), None), (names, None), (names[2:], "residual"), (names[1:2], "linear")):
        monkeypatch.setattr(frozen_heads.marginal_tables, "unknown_to", lambda *_, unknown=unknown: unknown)
        asked.clear()
        found = frozen_heads.from_best(run, bench, trained)
        by_all = sorted(trained, key=lambda arm: arm.loss(2))
        assert [a.name for a in found] == [a.name for a in by_all] if first is None else found[0].spec.kind == first
        assert asked == ([] if first is None else ["residual", "linear"])


def test_validation_losses_by_corpus_are_those_of_the_blocks_that_take_turns(run):
    ntp = load_backbone("ladder/w16", device="cpu")
    text = torch.randint(1024, (6, 16), generator=torch.Generator().manual_seed(0))
    spec, names = HeadSpec("residual", offsets=(2, 3)), ("a", "b", "c")
    heads, features = Heads(ntp, spec), FrozenFeatures(ntp, text, (6,))
    found = head_measures.validation_losses(features, Arrays(heads.arrays(), ""), spec, names).set_index(["corpus", "offset"])
    with torch.no_grad():
        for c, corpus in enumerate(names):
            rows = text[[c, c + 3]]
            q = ntp.model(rows).logits.log_softmax(-1)  # what untrained heads say at every offset
            for k in (2, 3):
                loss = -q[:, :-k].gather(-1, rows[:, k:, None]).mean()
                assert found.loc[(corpus, k), "cross_entropy"] == pytest.approx(float(loss), abs=2e-3)


def test_kinds_that_meet_again_read_states_that_are_made_once(run, monkeypatch):
    few = {"head_tokens": 512, "trial_tokens": 512, "text_tokens": 4096, "most_tokens": 8192}
    run, ntp = Run("04_frozen_heads", replace(run.profile, **few)), load_backbone("ladder/w16", device="cpu")
    test = {"prose": blocks.evaluation_blocks("prose", "test", ntp.tokenizer, n_documents=9, positions_per_document=1, horizon=4)}
    specs = [HeadSpec("residual", read, offsets=(2,)) for read in ("last", "mix", "concat")]
    grid = [arms.tuned_arm(run, arms.bench_of(run, ntp, test), spec) for spec in specs]
    made, compute = [], FrozenFeatures._compute
    monkeypatch.setattr(FrozenFeatures, "_compute", lambda self, dtype: made.append(len(self.tokens)) or compute(self, dtype))
    found = frozen_heads.decided(run, ntp, test, grid)
    assert made.count(4096 // blocks.CONTEXT) == 1
    assert len(found.by_budget) > 1 and found.last.loss(2) <= found.by_budget[0].loss(2)
    alone = frozen_heads.deciding_bench(run, ntp, test, found.last.spec)
    assert alone.train.fingerprint == found.bench.train.fingerprint  # the same numbers, whoever reads beside
