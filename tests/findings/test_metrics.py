"""Offsets, scores, counts and intervals against definitions written out."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from mtp_utils.findings import counting, marginal_claims, metrics, scoring
from mtp_utils.text.offsets import labels_at, labels_of, predictions_at


def test_position_t_is_paired_with_token_t_plus_k():
    ids = torch.arange(10).repeat(2, 1)
    for k in (1, 2, 4):
        assert torch.equal(labels_at(ids, k) - predictions_at(ids, k), torch.full((2, 10 - k), k))
    wanted = torch.zeros(2, 10, dtype=torch.bool)
    wanted[0, 3] = wanted[1, 7] = True
    assert labels_of(ids, wanted, 2).tolist() == [5, 9]


@pytest.mark.parametrize("offset", [0, 10])
def test_an_offset_outside_the_sequence_is_refused(offset):
    with pytest.raises(ValueError, match=f"offset={offset}"):
        labels_at(torch.zeros(1, 10), offset)


def test_hits_count_ranks_and_ties_as_argmax_does():
    log_probs = torch.log_softmax(torch.tensor([[3.0, 2, 1, 0, -1, -2], [1, 1, 0, 0, 0, 0]]), -1)
    found = scoring.scores(log_probs, torch.tensor([5, 1]))
    assert found["top1"].tolist() == [0, 0] and found["top5"].tolist() == [0, 1]
    assert np.allclose(found["log_prob"], [log_probs[0, 5], log_probs[1, 1]])
    assert scoring.scores(log_probs, log_probs.argmax(1))["top1"].tolist() == [1, 1]


def test_kl_and_entropy_are_the_sums_they_stand_for():
    p, q = torch.tensor([[0.5, 0.25, 0.25, 0.0]]).double(), torch.tensor([[0.25, 0.25, 0.25, 0.25]]).double()
    assert scoring.entropy(p.log()).item() == pytest.approx(1.5 * np.log(2))
    assert scoring.kl(p.log(), q.log()).item() == pytest.approx(2 * np.log(2) - 1.5 * np.log(2))
    assert scoring.kl(q.log(), p.log()).item() == float("inf")


def test_interval_covers_the_mean_at_its_stated_rate():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(120):
        values = rng.exponential(size=60)
        _, low, high = metrics.mean_interval(values, np.arange(60))
        covered += low <= 1 <= high
    assert 104 <= covered <= 120  # 95 % of 120 is 114; fewer than 104 has probability below 1e-3 for a 93 % interval


def test_intervals_are_scipys_bca_but_for_the_draws():
    rng = np.random.default_rng(1)
    means = np.stack([rng.exponential(size=80), rng.normal(size=80), (rng.random(80) < 0.1).astype(float), np.ones(80)], 1)
    centre, low, high = metrics.intervals(means)
    for i in range(3):
        theirs = stats.bootstrap((means[:, i],), np.mean, n_resamples=20000, rng=0).confidence_interval
        slack = 0.08 * (theirs.high - theirs.low) + (i == 2) / 80  # the third takes steps of 1/80
        assert abs(low[i] - theirs.low) <= slack and abs(high[i] - theirs.high) <= slack
    assert centre[3] == low[3] == high[3] == 1


def test_documents_not_positions_are_resampled():
    one = np.repeat([0.0, 1.0, 0.0, 1.0], 50)  # 200 positions, but four documents
    _, low, high = metrics.mean_interval(one, np.repeat(np.arange(4), 50))
    assert high - low > 0.4


def test_pairing_refuses_other_positions():
    first = pd.DataFrame({"document": ["a", "b"], "position": [1, 2], "top1": [1.0, 0.0]})
    with pytest.raises(ValueError, match="same positions"):
        metrics.paired(first, first.assign(position=[1, 3]), "top1")
    assert metrics.paired(first.assign(top1=[1.0, 1.0]), first, "top1")["effect"] == 0.5


def test_an_infinite_effect_is_the_hardest_of_its_group_and_one_document_shows_nothing():
    effects = pd.DataFrame({"corpus": ["a", "a"], "effect": [0.4, -np.inf], "p": [1e-6, np.nan]})
    assert metrics.hardest(effects, "corpus")["effect"].tolist() == [-np.inf]
    one = pd.DataFrame({"document": ["x"], "position": [3], "m": [0.7]})
    assert metrics.paired(one, one.assign(m=0.2), "m")["p"] == 1.0


def test_holm_is_the_textbook_example():
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_auroc_is_the_share_of_ordered_pairs():
    score, correct = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    pairs = [(a > b) + 0.5 * (a == b) for a in score[correct] for b in score[~correct]]
    assert metrics.auroc(score, correct) == pytest.approx(np.mean(pairs))


def fake_scores(gain: float, n: int = 200, seed: int = 0, own: float = 0.3) -> pd.DataFrame:
    """Scores of a backbone that is `gain` better than the controls at offset 2, and `own` at offset 1."""
    rng = np.random.default_rng(seed)
    frames = []
    for corpus in ("code", "prose"):
        for offset, difference in ((1, own), (2, gain)):
            for predictor in ("marginal", *counting.CONTROLS):
                better = difference if predictor == "marginal" else 0.0
                about = {"backbone": "b", "corpus": corpus, "position": 40, "offset": offset, "label_source": "data"}
                frames.append(
                    pd.DataFrame(
                        {"document": [f"d{i}" for i in range(n)], "top1": (rng.random(n) < 0.3 + better).astype(float)}
                    ).assign(**about, predictor=predictor, log_prob=rng.normal(-3 + 5 * better, 1, n))
                )
    return pd.concat(frames, ignore_index=True)


@pytest.mark.parametrize(("gain", "verdict"), [(0.3, "reproduced"), (-0.3, "not reproduced")])
def test_c1_says_what_the_table_holds(gain, verdict):
    assert marginal_claims.c1(marginal_claims.c1_effects(fake_scores(gain), "b"), "b").verdict == verdict


def test_c1_claims_nothing_of_equal_predictors():
    verdicts = [marginal_claims.c1(marginal_claims.c1_effects(fake_scores(0.0, seed=s), "b"), "b").verdict for s in range(10)]
    assert verdicts.count("reproduced") == 0


def test_c1_is_not_judged_on_a_backbone_that_loses_at_its_own_task():
    verdict = marginal_claims.c1(marginal_claims.c1_effects(fake_scores(-0.2, own=-0.2), "b"), "b")
    assert verdict.verdict == "inconclusive" and "Not testable on code, prose" in verdict.text


def test_a_corpus_that_the_backbone_does_not_know_leaves_c1_to_the_others():
    known, unknown = fake_scores(0.3), fake_scores(-0.3, own=-0.2)
    scores = pd.concat([known[known.corpus == "code"], unknown[unknown.corpus == "prose"]])
    verdict = marginal_claims.c1(marginal_claims.c1_effects(scores, "b"), "b")
    assert verdict.verdict == "partly" and verdict.effect > 0 and "not testable on prose" in verdict.contrast
    lost = pd.concat([fake_scores(-0.3).query("corpus == 'code'"), unknown[unknown.corpus == "prose"]])
    assert marginal_claims.c1(marginal_claims.c1_effects(lost, "b"), "b").verdict == "not reproduced"


def test_one_metric_that_is_worse_stops_c1():
    scores = fake_scores(0.3)
    worse = (scores.predictor == "marginal") & (scores.offset == 2) & (scores.corpus == "code")
    scores.loc[worse, "log_prob"] -= 5
    assert marginal_claims.c1(marginal_claims.c1_effects(scores, "b"), "b").verdict == "contradicted in some corpora"


def test_slope_interval_holds_the_spread_of_training_runs():
    sizes = {f"r{i}": 1000 * 4**i for i in range(5)}
    runs = {r: (r, 0) for r in sizes} | {f"{r}-s{s}": (r, s) for r in list(sizes)[:3] for s in (1, 2)}

    def table(run_sd, slope=-0.2):
        rng = np.random.default_rng(1)
        frames = []
        for name, (rung, _) in runs.items():
            level = 4 + slope * int(rung[1]) + rng.normal(0, run_sd)
            frames.append(
                pd.DataFrame(
                    {
                        "backbone": name,
                        "corpus": "code",
                        "document": [f"d{i}" for i in range(50)],
                        "log_prob": -level - np.random.default_rng(2).normal(0, 0.3, 50),
                    }
                )
            )
        return marginal_claims.slopes(pd.concat(frames), sizes, runs)

    calm, noisy = table(0.001), table(0.3)
    assert calm["slope"].item() == pytest.approx(-0.2, abs=0.005)
    assert noisy["ci_high"].item() - noisy["ci_low"].item() > 5 * (calm["ci_high"].item() - calm["ci_low"].item())
    assert marginal_claims.c2_size(calm, (0, 1, 2)).verdict == "reproduced"
    assert marginal_claims.c2_size(table(0.001, slope=0.1), (0, 1, 2)).verdict == "not reproduced"


@pytest.mark.parametrize(("offset", "weight"), [(1, 0.0), (2, 0.0), (2, 3.0), (3, 16.0)])
def test_counting_equals_loops_over_the_text_and_over_the_documents_own_words(offset, weight):
    rng = np.random.default_rng(offset)
    vocab, end = 7, 0
    stream = rng.integers(0, vocab, 400).astype(np.uint16)
    prefixes = [rng.integers(1, vocab, n) for n in (4, 30, 60)]
    counts = counting.Counts(stream, np.flatnonzero(stream == end), prefixes, offset, vocab)
    models = {n: (n, weight) for n in range(4)}
    found = counts.scores(np.tile(np.arange(vocab), (len(prefixes), 1)), models)  # every token as a label
    for row, prefix in enumerate(prefixes):
        p = np.full(vocab, 1 / vocab)
        for n in range(4):
            c = np.zeros(vocab)
            for text, factor, first in ((stream, 1, end), (prefix, weight, None)):
                for t in range(max(n - 1, 0), len(text) - offset):
                    a = t - max(n - 1, 0)
                    crosses = first is not None and (text[a + 1 : t + offset + 1] == first).any()
                    if not crosses and list(text[t - n + 1 : t + 1] if n else []) == list(prefix[len(prefix) - n :]):
                        c[text[t + offset]] += factor
            d = max((c > 0).sum(), c.sum() == 0)
            p = (c + d * p) / (c.sum() + d)
            of = {what: values[row] for what, values in found[n].items()}
            assert np.allclose(np.exp(of["log_prob"]), p, atol=1e-12) and p.sum() == pytest.approx(1)
            order = np.argsort(-p, kind="stable")  # a tie is the lower id's
            assert of["top1"].nonzero()[0].tolist() == order[:1].tolist() and set(of["top5"].nonzero()[0]) == set(order[:5])


def test_the_cache_model_is_chosen_by_the_loss_on_the_labels_it_is_asked_with():
    prefixes = [np.tile([1, 2, 3, 4], 10) for _ in range(6)]  # a document that repeats itself, in a text that never does so
    stream = np.concatenate([[0], np.random.default_rng(0).integers(1, 5, 300)]).astype(np.uint16)
    counts = counting.Counts(stream, np.array([0]), prefixes, 1, 5)
    right, wrong = np.full(6, 1), np.full(6, 3)
    assert counts.best(right)[1] == counting.WEIGHTS[-1] and counts.best(wrong)[1] == 0


def test_variates_narrow_an_interval_and_leave_its_mean_and_its_coverage():
    rng, means, held, widths = np.random.default_rng(0), [], [], []
    for _ in range(200):
        of_document = rng.normal(0.3, 0.2, 100)  # what is asked for: its mean, 0.3
        cheap = rng.normal(size=(100, 50, 2)) + of_document[:, None, None]  # known at all 50 positions of a document
        dear = of_document[:, None] + 0.8 * (cheap[..., 0] - of_document[:, None]) + rng.normal(0, 0.3, (100, 50))
        scored = rng.integers(50, size=100)
        at = np.arange(100)
        here, all_of = pd.DataFrame(cheap[at, scored]), pd.DataFrame(cheap.mean(1))
        values = metrics.adjusted(pd.Series(dear[at, scored]), here, all_of)
        error = values.std() / 10
        means.append(values.mean())
        held.append(abs(values.mean() - 0.3) < 1.984 * error)
        widths.append(values.std() / np.std(dear[at, scored]))
    assert abs(np.mean(means) - 0.3) < 4 * np.std(means) / 200**0.5
    assert 0.9 < np.mean(held) <= 0.995 and np.mean(widths) < 0.55


def test_with_few_documents_nothing_is_adjusted():
    few = pd.Series([1.0, 2.0, 4.0])
    assert metrics.adjusted(few, pd.DataFrame({"a": [1.0, 2.0, 3.0]}), pd.DataFrame({"a": [0.0, 0.0, 0.0]})).equals(few)
