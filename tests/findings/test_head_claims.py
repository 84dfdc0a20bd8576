"""C3 and C4's contrasts against data whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from mtp_utils.findings import head_claims


def scores(shift=0.0, seeds=(0, 1, 2), spread=0.0, documents=200, corpora=("code", "prose"), noise=0.3, stream=0):
    """Rows as gaps.scored makes them: heads `shift` nats behind the marginal, more or less by seed."""
    rng, frames = np.random.default_rng(stream), []
    for corpus in corpora:
        marginal = np.repeat(np.random.default_rng(7).normal(-3, 1, documents), 2)
        for seed in seeds:
            behind = shift + spread * (seed - 1) + noise * rng.standard_normal(2 * documents)
            frames.append(
                pd.DataFrame(
                    {
                        "corpus": corpus,
                        "document": np.repeat(np.arange(documents), 2),
                        "position": np.arange(2 * documents),
                        "offset": 2,
                        "label_source": "data",
                        "seed": seed,
                        "log_prob": marginal - behind,
                        "excess_ce": behind,
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


@pytest.mark.parametrize(("shift", "verdict"), [(0.2, "reproduced"), (-0.2, "not reproduced")])
def test_c3a_is_what_the_data_say(shift, verdict):
    effects = head_claims.c3a_effects(scores(shift))
    assert np.allclose(effects["effect"], shift, atol=0.05)
    assert (effects["ci_low"] < shift).all() and (effects["ci_high"] > shift).all()
    assert head_claims.c3a(effects, "ladder/w256", "residual", (0, 1, 2)).verdict == verdict


def test_heads_that_counting_is_ahead_of_decide_nothing():
    known = {"corpus": ["code", "prose"], "heads": [4.0, 5.2], "unigram": [6.0, 6.0], "skip_bigram": [5.0, 5.3]}
    behind = head_claims.behind_counting(pd.DataFrame(known | {"skip_trigram": [4.5, 5.1]}))
    assert behind == ["prose"] and head_claims.behind_counting(pd.DataFrame(known | {"skip_trigram": [4.5, 5.3]})) == []
    effects = head_claims.c3a_effects(scores(0.2))
    found = [head_claims.c3a(effects, "b", "block", (0, 1, 2), x) for x in ([], behind)]
    assert [v.verdict for v in found] == ["reproduced", "inconclusive"] and "counting in prose" in found[1].text
    both = head_claims.c3b_effects(scores(0.3), {"mtp": scores(0.1, stream=1), "offset2": scores(0.0, seeds=(0,), stream=3)})
    assert [head_claims.c3b(both, "b", "block", (0, 1, 2), x).verdict for x in ([], behind)] == ["reproduced", "inconclusive"]


def test_the_spread_between_seeds_widens_the_interval_and_its_sign_counts():
    narrow, wide = (head_claims.c3a_effects(scores(0.1, spread=s)).iloc[0] for s in (0.0, 0.3))
    assert wide.ci_high - wide.ci_low > 3 * (narrow.ci_high - narrow.ci_low)
    assert narrow.seeds_agree and not wide.seeds_agree
    assert head_claims.c3a(head_claims.c3a_effects(scores(0.1, spread=0.3)), "b", "residual", (0, 1, 2)).verdict != "reproduced"


def test_c3b_needs_the_ntp_heads_behind_every_control():
    frozen, better, worse = scores(0.3), scores(0.1, stream=1), scores(0.4, stream=2)
    both = head_claims.c3b_effects(frozen, {"mtp": better, "offset2": scores(0.0, seeds=(0,), stream=3)})
    assert np.allclose(both[both.control == "mtp"]["effect"], 0.2, atol=0.05)
    assert head_claims.c3b(both, "b", "residual", (0, 1, 2)).verdict == "reproduced"
    one = head_claims.c3b_effects(frozen, {"mtp": better, "offset2": worse})
    assert head_claims.c3b(one, "b", "residual", (0, 1, 2)).verdict == "not reproduced"


def test_c3b_is_decided_by_the_control_that_is_least_certain():
    near = scores(0.28, stream=1, noise=0.01)  # 0.02 behind this control, certainly
    far = scores(0.25, stream=2, seeds=(0,), noise=3.0)  # 0.05 behind that one, perhaps
    effects = head_claims.c3b_effects(scores(0.3, noise=0.01), {"near": near, "far": far})
    assert (effects[effects.control == "near"]["p"] < 1e-4).all() and (effects[effects.control == "far"]["p"] > 0.05).all()
    assert head_claims.c3b(effects, "b", "residual", (0, 1, 2)).verdict == "inconclusive"


def test_the_spread_between_pre_training_runs_is_in_the_interval_and_says_so():
    """Against the formula: two runs a side, each the mean of its seeds, are as many means as there are runs."""
    sides = []
    for runs in ((0.3, 0.4), (0.1, 0.05)):
        each = [scores(shift, seeds=(0, 1, 2) if i == 0 else (0,), stream=i).assign(run=i) for i, shift in enumerate(runs)]
        sides.append(pd.concat(each))
    one, two = (head_claims.c3b_effects(ours, {"mtp": theirs}) for ours, theirs in ([x[x.run == 0] for x in sides], sides))
    assert np.allclose(one["effect"], 0.2, atol=0.05) and np.allclose(two["effect"], 0.275, atol=0.05)
    assert (one["n_runs"] == 1).all() and (two["n_runs"] == 2).all() and (two["n_seeds"] == 4).all()
    for row in two.itertuples():
        means = [[x[(x.corpus == row.corpus) & (x.run == run)]["log_prob"].mean() for run in (0, 1)] for x in sides]
        assert np.isclose(row.se_seeds**2, sum(np.var(x, ddof=1) / 2 for x in means))
    assert "One pre-training run" in head_claims.c3b(one, "b", "block", (0, 1, 2)).text
    assert "One pre-training run" not in head_claims.c3b(two, "b", "block", (0, 1, 2)).text
    against = sides[0].assign(log_prob=sides[0]["log_prob"] + np.where(sides[0]["run"] == 1, 0.6, 0))  # the other way in one run
    assert not head_claims.c3b_effects(against, {"mtp": sides[1]})["seeds_agree"].any()


def test_interval_and_p_agree_on_zero_with_few_seeds():
    for spread in (0.0, 0.05, 0.1, 0.2):
        row = head_claims.seeded_effect(scores(0.15, spread=spread, corpora=("code",)), "excess_ce")
        assert (row["ci_low"] > 0) == (row["p"] < 0.05)


def test_errors_by_package_stand_beside_those_by_document_where_there_are_packages():
    table = scores(0.2, corpora=("code",))
    package = table["document"] % 10
    shared = table.assign(excess_ce=table["excess_ce"] + np.random.default_rng(1).normal(0, 0.5, 10)[package])
    shared["document"] = [f"p{p}/f{d}.py" for p, d in zip(package, table["document"], strict=True)]
    row = head_claims.seeded_effect(shared, "excess_ce")
    means = shared.groupby(package)["excess_ce"].mean()
    assert np.isclose(row["se_packages"], means.std() / 10**0.5) and row["se_packages"] > 3 * row["se_documents"]
    few = shared.assign(document=shared["document"].str.replace("p", "q/p"))
    assert np.isnan(head_claims.seeded_effect(few, "excess_ce")["se_packages"])


def test_other_documents_on_the_two_sides_are_refused():
    with pytest.raises(ValueError, match="other documents"):
        head_claims.c3b_effects(scores(0.1), {"mtp": scores(0.1, documents=150)})


def test_the_identity_holds_on_drawn_labels_and_fails_on_shifted_ones():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(50, 0.1), size=2000)
    q = rng.dirichlet(np.full(50, 1.0), size=2000)
    labels = np.array([rng.choice(50, p=row) for row in p])
    entropy, kl = -(p * np.log(p + 1e-300)).sum(1), (p * (np.log(p + 1e-300) - np.log(q))).sum(1)
    rows = np.arange(2000)
    assert abs(head_claims.identity_z(np.log(q[rows, labels]), entropy, kl, rows // 2)) < 4
    sharp = np.log(0.5 * p + 0.5 / 50)  # a head that knows p somewhat: shifted labels cost it
    kl = (p * (np.log(p + 1e-300) - sharp)).sum(1)
    assert abs(head_claims.identity_z(sharp[rows, labels], entropy, kl, rows // 2)) < 4
    assert head_claims.identity_z(sharp[rows, np.roll(labels, 1)], entropy, kl, rows // 2) > 4


def test_the_share_closed_is_that_of_the_gaps_and_is_not_said_where_there_is_no_frozen_gap():
    found = head_claims.shares_closed(scores(0.1, stream=1), scores(0.4, stream=2))
    assert np.allclose(found["value"], 0.75, atol=0.1)
    assert ((found["ci_low"] < 0.75) & (0.75 < found["ci_high"])).all() and (found["ci_high"] - found["ci_low"] < 0.4).all()
    for none in (0.0, -0.4):  # ahead of a marginal that does not know this text: no gap either
        assert head_claims.shares_closed(scores(0.1), scores(none, stream=3)).isna().any(axis=1).all()
    spread = head_claims.shares_closed(scores(0.1, spread=0.2, stream=1), scores(0.4, stream=2))
    assert (spread["ci_high"] - spread["ci_low"] > 1.5 * (found["ci_high"] - found["ci_low"])).all()


@pytest.mark.parametrize("claim", ["C4a", "C4b"])
def test_joint_heads_are_ahead_where_the_data_say_so_and_contradicted_where_they_say_so(claim):
    equal = {"C4a": "equal tokens", "C4b": "equal operations"}[claim]
    for frozen, verdict in ((0.5, "reproduced"), (0.1, "not reproduced"), (0.3, "inconclusive")):
        effects = head_claims.ahead_effects(scores(0.3, stream=1), scores(frozen, stream=2))
        assert np.allclose(effects["effect"], frozen - 0.3, atol=0.05)
        found = head_claims.c4_ahead(claim, effects, "b", "block", (0, 1, 2))
        assert found.verdict == verdict and equal in found.contrast and "exploratory" not in found.text
    mixed = [scores(shift, corpora=(corpus,), stream=2) for corpus, shift in (("code", 0.5), ("prose", 0.1))]
    effects = head_claims.ahead_effects(scores(0.3, stream=1), pd.concat(mixed))
    assert head_claims.c4_ahead(claim, effects, "b", "block", (0, 1, 2)).verdict == "contradicted in some corpora"
    assert head_claims.c4_ahead(claim, effects, "b", "block", (0, 1, 2), ["prose"]).verdict == "inconclusive"
    known = head_claims.c4_ahead(claim, effects, "b", "block", (0, 1, 2), ["prose"], ("prose",))
    assert known.verdict == "partly" and "Not testable on prose" in known.text and known.effect > 0
    assert "One training seed: exploratory" in head_claims.c4_ahead(claim, effects, "b", "block", (0,)).text


def test_a_corpus_that_the_backbone_does_not_know_is_said_and_not_judged():
    both = head_claims.c3a_effects(pd.concat([scores(0.6), scores(-0.5, corpora=("translation",))]))
    found = head_claims.c3a(both, "b", "block", (0, 1, 2), ["translation"], ("translation",))
    assert found.verdict == "partly" and found.effect > 0.4 and "Not testable on translation" in found.text
    assert "-0.5" in found.text and "not ahead of counting" not in found.text
    assert head_claims.c3a(both, "b", "block", (0, 1, 2)).verdict == "contradicted in some corpora"
    alone = both[both.corpus == "translation"]
    assert head_claims.c3a(alone, "b", "block", (0, 1, 2), unknown=("translation",)).verdict == "inconclusive"
    assert head_claims.c3a(both[both.corpus != "translation"], "b", "block", (0, 1, 2)).verdict == "reproduced"


def judged_c4c(joint, half, behind=()):
    doubling = head_claims.shares_closed(scores(joint, stream=1, noise=0.01), scores(half, stream=3, noise=0.01))
    effects = head_claims.c3a_effects(scores(joint, stream=1))
    return head_claims.c4c(effects, doubling, "b", "block", (0, 1, 2), list(behind))


def test_a_gap_remains_where_there_is_one_and_only_at_this_budget_where_the_last_doubling_still_closes_it():
    assert judged_c4c(0.3, 0.305).verdict == "reproduced" and "at this budget" not in judged_c4c(0.3, 0.305).contrast
    assert "at this budget" in judged_c4c(0.3, 0.5).contrast and "code: 0.40" in judged_c4c(0.3, 0.5).text
    assert judged_c4c(-0.2, 0.3).verdict == "not reproduced"
    effects = head_claims.c3a_effects(scores(0.3, corpora=("code", "translation")))
    rows = {"corpus": ["code", "translation"], "value": [0.01, np.nan], "ci_low": [0, np.nan], "ci_high": [0.02, np.nan]}
    doubling = pd.DataFrame(rows)
    settled = [head_claims.c4c(effects, doubling, "b", "block", (0, 1, 2), unknown=unknown) for unknown in (("translation",), ())]
    assert ["at this budget" in one.contrast for one in settled] == [False, True]  # only what is judged has to be settled
    assert judged_c4c(0.3, 0.305, ["code"]).verdict == "inconclusive"
