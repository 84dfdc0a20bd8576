"""Frozen and joint heads are treated alike: as many trials of their rates, and the best of them on validation."""

import math
from types import SimpleNamespace

import pytest
import torch

from mtp_utils.findings.joint_heads import Study, settled
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
