"""C3b's contrast over two pre-training runs, on backbones that stand in for the twins."""

from dataclasses import replace

import numpy as np
import pytest

from mtp_utils.backbones.load import load_backbone
from mtp_utils.base.profiles import PROFILES
from mtp_utils.base.run import Run
from mtp_utils.findings import arms, frozen_heads, gaps, twins
from mtp_utils.heads.features import FrozenFeatures
from mtp_utils.heads.spec import HeadSpec
from mtp_utils.text import blocks

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
    assert two.ntp.last.training.tokens == one.ntp.last.training.tokens
    both, alone = twins.effects(run, [one, two], test), twins.effects(run, [one], test)
    assert (both["n_runs"] == 2).all() and (alone["n_runs"] == 1).all() and len(both) == len(alone) == 2

    def loss(arm):
        return gaps.everywhere(run, arm[0].bench, [arm[1]]).groupby("document")["cross_entropy"].mean().mean()

    by_hand = [loss((x.ntp, x.ntp.last)) - loss((x.mtp, x.mtp.last)) for x in (one, two)]
    heads = both[both.control == "heads on the MTP twin"].iloc[0]
    assert np.isclose(heads["effect"], np.mean(by_hand)) and by_hand[0] != by_hand[1]
    assert both["se_seeds"].min() > 0


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
