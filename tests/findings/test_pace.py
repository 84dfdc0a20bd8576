"""What makes heads learn faster: each way at its own best rate, held against the LM head's start."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import VOCAB, tiny_backbone

from mtp_utils.findings import pace
from mtp_utils.heads import FrozenFeatures, HeadSpec, Training, trained_heads

SPEC = HeadSpec("residual", offsets=(2,))


def frozen(seed: int, blocks: int = 8) -> FrozenFeatures:
    tokens = torch.randint(VOCAB, (blocks, 12), generator=torch.Generator().manual_seed(seed))
    return FrozenFeatures(tiny_backbone("gpt_neox"), tokens, (2,))


def test_what_is_kept_is_what_the_heads_saw_on_the_way():
    how = Training(1e-2, 8 * 12 * 3, epochs=3, blocks=2, checks=3)
    found = pace.paced(frozen(0), frozen(1), SPEC, how)
    assert found["positions"].tolist() == [0, 96, 192, 288]
    assert np.array_equal(found["loss"], trained_heads(frozen(0), frozen(1), SPEC, how)["validation"][:, 0])
    few = pace.paced(frozen(0), frozen(1), SPEC, Training(1e-2, 8 * 12, blocks=4, checks=8))  # two steps, eight checks
    assert few["positions"].tolist() == [0, 48, 96] and few["loss"].shape == (3,)


def test_each_way_has_its_best_rate_and_is_held_against_the_lm_head_s_start(monkeypatch):
    monkeypatch.setattr(pace, "CONTEXT", 4)
    best = {way.name: rate for way, rate in zip(pace.WAYS, [1e-4, 1e-1, *[3e-3] * 20], strict=False)}  # the first two: at an edge
    by = {(w.unembedding, w.rank, w.unigram, w.warmup, w.blocks): w.name for w in pace.WAYS}

    def measure_arrays(stem, function, *, features, validation, spec, training):
        name = by[spec.unembedding, spec.rank, spec.unigram, training.warmup, training.blocks]
        end = 3.0 + abs(np.log10(training.rate / best[name])) + 0.1 * training.seed - 0.5 * (name != pace.PLAIN)
        return SimpleNamespace(values={"positions": np.array([0, 50, 100]), "loss": np.array([6.0, 4.0, end])})

    profile = SimpleNamespace(most_tokens=16 * 100, head_seeds=(0, 1, 2))
    monkeypatch.setattr(pace.arms, "fast_in_bf16", lambda backbone: False)
    bench = SimpleNamespace(train=SimpleNamespace(fingerprint="text"), validation=None, backbone=SimpleNamespace(name="b"))
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
