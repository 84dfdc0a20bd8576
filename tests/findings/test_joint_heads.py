"""Frozen and joint heads are treated alike: as many trials of their rates, and the best of them on validation."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from mtp_utils.findings import joint_heads
from mtp_utils.findings.joint_heads import Study, Trained, settled
from mtp_utils.findings.joint_tables import ahead_by_budget, contrasts
from mtp_utils.heads.training import Training


def trained(best: tuple[float, ...], calls: list, diverges_above: float = math.inf):
    """A training whose loss grows with the distance of its rates from the best ones, on a logarithmic scale."""

    def train(*rates):
        calls.append(rates)
        if max(rates) > diverges_above:
            raise FloatingPointError("a loss that is not finite")
        return SimpleNamespace(rates=rates, loss=sum(math.log(r / b) ** 2 for r, b in zip(rates, best, strict=True)))

    return train


@pytest.mark.parametrize("best", [(1e-3,), (1e-3, 0.03)])
@pytest.mark.parametrize("trials", [1, 3, 5, 8])
def test_every_way_has_as_many_trials_whatever_it_finds_and_no_rates_twice(best, trials):
    calls = []
    found = settled(trained(best, calls), tuple(3 * b for b in best), trials)
    assert len(calls) == trials == len(set(calls)) and found.rates in calls
    assert found.loss == min(trained(best, [])(*rates).loss for rates in calls)


def test_rates_are_found_where_they_are_best_finer_than_tenfold():
    for best, start in (((1e-3,), (1e-2,)), ((3e-3, 0.1), (1e-2, 0.1)), ((1e-2, 0.02), (1e-2, 0.1))):
        found = settled(trained(best, []), start, 9)
        assert all(max(r / b, b / r) < 2 for r, b in zip(found.rates, best, strict=True))


def test_rates_at_which_it_diverges_are_no_candidates(capsys):
    calls = []
    found = settled(trained((1e-3,), calls, diverges_above=2e-2), (0.1,), 5)
    assert calls[0] == (0.1,) and found.rates[0] < 2e-2 and "not finite" in capsys.readouterr().out
    with pytest.raises(FloatingPointError, match="none of the rates"):
        settled(trained((1e-3,), [], diverges_above=0.0), (0.1,), 3)


def test_less_text_is_read_in_the_more_epochs():
    def bench(tokens):
        return SimpleNamespace(train=SimpleNamespace(tokens=torch.zeros(tokens // 256, 256)), on=bench)

    study = Study(None, {}, bench(8192), None, 1e-3)
    found = [study.over(text)._how(Training, 1e-3, 8192) for text in (8192, 2048, 1024)]
    assert [how.epochs for how in found] == [1, 4, 8] and {(how.tokens, how.blocks) for how in found} == {(8192, 4)}


@pytest.mark.parametrize(("enough", "tokens"), [(3072, 3072), (8192, 8192), (4.1 * 8192, 4 * 8192), (3.6 * 8192, 4 * 8192)])
def test_frozen_heads_in_as_many_operations_read_all_of_the_text_equally_often(enough, tokens, monkeypatch):
    monkeypatch.setattr(joint_heads, "as_many_tokens", lambda *given: int(enough))
    study = Study(None, {}, SimpleNamespace(train=SimpleNamespace(tokens=torch.zeros(32, 256)), backbone=None), None, 1e-3)
    assert study.for_as_many_operations(SimpleNamespace(operations=1.0)) == tokens
    epochs = study._how(Training, 1e-3, tokens).epochs
    assert tokens % epochs == 0 and (epochs == 1 or tokens // epochs == 8192)


def test_frozen_heads_are_scored_on_states_that_are_made_once():
    bench = SimpleNamespace(backbone=object())
    assert Study(None, {}, bench, None, 1e-3).reads(Trained("frozen", None, bench, lambda: bench.backbone)) is bench


def test_the_three_contrasts_are_each_of_the_ways_that_they_name():
    def scored(way: str, shift: float) -> pd.DataFrame:
        rows = [(c, f"{c}/{d}", 0, 2, seed) for c in ("code", "prose") for d in range(5) for seed in range(2)]
        table = pd.DataFrame(rows, columns=["corpus", "document", "position", "offset", "seed"])
        noise = np.random.default_rng(len(way)).normal(0, 0.001, len(table))
        return table.assign(arm=way, label_source="data", log_prob=-shift + noise, excess_ce=shift - 2 + noise)

    frame = pd.concat([scored(way, shift) for way, shift in (("joint", 4.0), ("as many", 4.5), ("as dear", 3.8), ("other", 9.0))])
    found = contrasts(frame, frame, "joint", "as many", "as dear")
    for claim, effect in (("C4a", 0.5), ("C4b", -0.2), ("C4c", 2.0)):
        assert found[claim]["corpus"].tolist() == ["code", "prose"]
        assert np.allclose(found[claim]["effect"], effect, atol=0.01)
    ways = (("joint, 1x", 4.0), ("frozen, 1x", 4.3), ("joint, 2x", 3.5), ("frozen, 2x", 3.6))
    by_budget = ahead_by_budget(pd.concat([scored(way, shift) for way, shift in ways]), {"1x": 10, "2x": 20})
    assert by_budget["positions"].tolist() == [10, 10, 20, 20]
    assert np.allclose(by_budget["effect"], [0.3, 0.3, 0.1, 0.1], atol=0.01)


def test_one_budget_is_settled_at_the_smallest_first_and_operations_are_the_joint_runs(monkeypatch):
    asked = []

    def train(kind):
        def training(study, tokens, trials, like=None):
            asked.append((kind, tokens, trials, like and like.tokens))
            return SimpleNamespace(kind=kind, tokens=tokens)

        return training

    for kind in ("frozen", "joint"):
        monkeypatch.setattr(Study, kind, train(kind))
    monkeypatch.setattr(Study, "for_as_many_operations", lambda study, of: 4 * of.tokens if of.kind == "joint" else None)
    run = SimpleNamespace(profile=SimpleNamespace(joint_trials=(3, 2, 1, 4), joint_tokens=4096))
    ways, kinds = Study(run, {}, None, None, 1e-3).by_budget(), ("frozen", "joint")
    wanted = {f"{kind}, {n}x": (kind, n * 1024) for n in (1, 2, 4) for kind in kinds}
    wanted |= {"frozen, as many operations": ("frozen", 4 * 4096)}
    assert {way: (one.kind, one.tokens) for way, one in ways.items()} == wanted
    assert asked[:4] == [(kind, *how) for how in ((1024, 3, None), (2048, 2, 1024)) for kind in kinds]
    assert asked[4:] == [("frozen", 4096, 1, 2048), ("joint", 4096, 1, 2048), ("frozen", 16384, 4, 4096)]
