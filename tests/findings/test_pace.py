"""What makes heads learn faster: the loop is that of the heads, and each start is what it is called."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import VOCAB, tiny_backbone

from mtp_utils.backbones.anatomy import unembed
from mtp_utils.backbones.checkpoints import WARMUP
from mtp_utils.findings import pace, pace_measures
from mtp_utils.heads import FrozenFeatures, HeadSpec, Training, trained_heads

SPEC = HeadSpec("residual", offsets=(2,))


def frozen(seed: int, blocks: int = 8) -> FrozenFeatures:
    tokens = torch.randint(VOCAB, (blocks, 12), generator=torch.Generator().manual_seed(seed))
    return FrozenFeatures(tiny_backbone("gpt_neox"), tokens, (2,))


@pytest.mark.parametrize("unembedding", ["shared", "own"])
def test_the_loop_is_that_of_the_heads(unembedding):
    spec, how = HeadSpec("block", unembedding=unembedding, offsets=(2,)), Training(1e-2, 8 * 12 * 3, epochs=3, blocks=2, checks=3)
    found = pace_measures.paced(frozen(0), frozen(1), spec, how, 0, False, WARMUP)
    theirs = trained_heads(frozen(0), frozen(1), spec, how)["validation"][:, 0]
    assert np.allclose(found["loss"], theirs, atol=1e-5) and found["positions"].tolist() == [0, 96, 192, 288]
    assert not np.allclose(pace_measures.paced(frozen(0), frozen(1), spec, how, 0, False, 0.5)["loss"][1:], theirs[1:], atol=1e-5)


def test_a_correction_starts_as_the_lm_head_or_as_the_unigram_and_learns():
    f, hidden = frozen(0), torch.randn(5, 16)
    plain, unigram = (pace_measures.Corrected(f.backbone, SPEC, 4, start) for start in (False, True))
    for heads in (plain, unigram):
        heads.begin(f.tokens)
    assert torch.allclose(plain.log_probs(2, hidden), unembed(f.backbone.model, hidden).log_softmax(-1), atol=1e-5)
    counts = torch.bincount(f.tokens.flatten(), minlength=VOCAB) + 1.0
    assert torch.allclose(unigram.log_probs(2, hidden).exp(), (counts / counts.sum()).expand(5, -1), atol=1e-5)
    assert sum(p.numel() for n, p in plain.of(2).items() if n.endswith((".A", ".B"))) == 4 * (16 + VOCAB)
    for rank, start in ((4, False), (4, True), (0, True)):
        loss = pace_measures.paced(f, f, SPEC, Training(3e-2, 8 * 12 * 20, epochs=20), rank, start, 0.05)["loss"]
        assert loss[-1] < loss[0] - 0.3


def test_the_warm_up_is_a_share_of_the_steps():
    rates = [pace_measures.rate_at(step, 20, 2.0, 0.25) for step in range(20)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0]) and rates[5] == 2.0 and rates[19] < 0.25
    assert pace_measures.rate_at(0, 20, 2.0, 0.0) == 2.0


def test_each_way_has_its_best_rate_and_is_held_against_the_lm_head_s_start(monkeypatch):
    monkeypatch.setattr(pace, "CONTEXT", 4)
    best = {way.name: rate for way, rate in zip(pace.WAYS, [1e-4, 1e-1, *[3e-3] * 20], strict=False)}  # the first two: at an edge
    by = {(w.unembedding, w.rank, w.unigram, w.warmup, w.blocks): w.name for w in pace.WAYS}

    def measure_arrays(stem, function, *, rank, unigram, warmup, features, validation, spec, training):
        name = by[spec.unembedding, rank, unigram, warmup, training.blocks]
        end = 3.0 + abs(np.log10(training.rate / best[name])) + 0.1 * training.seed - 0.5 * (name != pace.PLAIN)
        return SimpleNamespace(values={"positions": np.array([0, 50, 100]), "loss": np.array([6.0, 4.0, end])})

    profile = SimpleNamespace(most_tokens=16 * 100, head_seeds=(0, 1, 2))
    monkeypatch.setattr(pace.arms, "fast_in_bf16", lambda backbone: False)
    bench = SimpleNamespace(train=None, validation=None, backbone=SimpleNamespace(name="b"))
    found = pace.paces(SimpleNamespace(profile=profile, measure_arrays=measure_arrays), bench, SPEC)
    assert all(rate == best[name] for name, rate in zip(found["name"], found["rate"], strict=True))
    table = pace.helped(pace.curves(found)).set_index("way")
    assert table.loc[pace.PLAIN, "times faster"] == 1 and table.loc[pace.PLAIN, "loss"] == pytest.approx(3.1)
    there = 50 + 50 * (4.0 - 3.1) / (4.0 - 2.6)
    assert table.loc["a copy", "times faster"] == pytest.approx(100 / there)
    slower = pd.DataFrame(
        {"panel": "p", "name": "slow", "positions": [0, 100], "value": [6.0, 5.0], "rate": 1.0, "ci_low": 0, "ci_high": 9}
    )
    both = pd.concat([pace.curves(found), slower])
    assert np.isnan(pace.helped(both).set_index("way").loc["slow", "times faster"])
