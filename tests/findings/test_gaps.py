"""Gaps of heads to the marginal: scored on the same positions, tuned alike, bounded by what the width allows."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from mtp_utils.backbones.anatomy import unembed
from mtp_utils.backbones.load import load_backbone
from mtp_utils.base.profiles import PROFILES
from mtp_utils.base.records import Arrays
from mtp_utils.base.run import Run
from mtp_utils.findings import (
    adjusted,
    arms,
    controls,
    counting,
    frozen_heads,
    gaps,
    head_measures,
    layer_readings,
    layers,
    metrics,
    scoring,
    stored,
)
from mtp_utils.findings.means import by_document
from mtp_utils.heads.features import FrozenFeatures
from mtp_utils.heads.spec import HeadSpec
from mtp_utils.heads.training import Training, heads_from
from mtp_utils.marginal.future import future_log_probs
from mtp_utils.text import blocks
from mtp_utils.text.offsets import labels_of


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("ladder/w16", device="cpu")


@pytest.fixture(scope="module")
def text(backbone):
    return blocks.evaluation_blocks("prose", "test", backbone.tokenizer, n_documents=9, positions_per_document=2, horizon=4)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_BUILD", str(tmp_path))
    return Run("03_layer_specialization", PROFILES["smoke"])


@pytest.fixture
def bench(run, backbone, text, monkeypatch):
    monkeypatch.setattr(blocks, "stream", lambda c, s, t: np.random.default_rng(len(s)).integers(1, 1024, 4000).astype(np.uint16))
    monkeypatch.setattr(blocks, "begins", lambda c, s, t: np.arange(0, 4000, 400))
    return arms.bench_of(run, backbone, {"prose": text})


def test_the_lens_of_the_last_layer_is_the_model_and_its_gap_at_offset_one_is_zero(run, bench, text):
    arm = arms.untrained_arm(run, bench, layers.lens(6, (1, 2)))
    found = gaps.scored(run, bench, [arm])
    first = found[found.offset == 1]
    assert first["kl_to_marginal"].abs().max() < 1e-4
    assert (
        np.abs(first["log_prob"] - first["marginal_log_prob"]).max() < 0.05
        and (first["top1"] == first["marginal_top1"]).mean() > 0.9
    )
    assert found[found.offset == 2]["kl_to_marginal"].mean() > 0.5


def test_scores_are_those_of_the_head_and_of_the_marginal_on_the_same_labels(run, bench, text, backbone):
    arm = arms.untrained_arm(run, bench, layers.lens(3, (2,)))
    found = gaps.scored(run, bench, [arm])
    data = found[found.label_source == "data"].reset_index()
    with torch.no_grad():
        hidden = backbone.model(text.tokens, output_hidden_states=True).hidden_states[3]
        q = unembed(backbone.model, backbone.model.gpt_neox.final_layer_norm(hidden)).log_softmax(-1)[text.scored]
    m = future_log_probs(backbone.model, text.tokens, 2, exact=True, positions=text.scored).log_probs[text.scored]
    label = labels_of(text.tokens, text.scored, 2)
    assert np.abs(data["log_prob"] - q.gather(1, label[:, None])[:, 0].numpy()).max() < 0.05
    assert np.abs(data["marginal_log_prob"] - m.gather(1, label[:, None])[:, 0].numpy()).max() < 1e-3
    assert np.abs(data["kl_to_marginal"] - scoring.kl(m, q).numpy()).max() < 0.05
    assert np.abs(data["entropy_m2"] - scoring.entropy(m).numpy()).max() < 1e-3


def test_expected_cross_entropy_on_the_models_own_text_is_entropy_plus_kl(run, bench, text, backbone):
    arm = arms.untrained_arm(run, bench, layers.lens(6, (2,)))
    found = gaps.scored(run, bench, [arm])
    m = future_log_probs(backbone.model, text.tokens, 2, exact=True, positions=text.scored).log_probs[text.scored]
    with torch.no_grad():
        q = backbone.model(text.tokens).logits.log_softmax(-1)[text.scored]
    expected = -(m.exp() * q).sum(-1).numpy()
    data = found[found.label_source == "data"]
    assert np.abs(expected - data["entropy_m2"] - data["kl_to_marginal"]).max() < 0.05


def test_tuning_tries_the_same_rates_for_every_arm_and_goes_on_at_an_edge(run, bench):
    run.profile = dataclasses.replace(run.profile, head_tokens=2048, trial_tokens=1024)
    arm = arms.tuned_arm(run, bench, HeadSpec(offsets=(2,)))
    stored = {p.name for p in (run_tables(run)).glob("03_heads*.safetensors")}
    rates = {float(n.split("-1024-")[1].split("-seed")[0]) for n in stored if "-1024-" in n}
    assert rates >= set(arms.TRIALS) and arm.training.rate[0] in rates and arm.training.tokens == 2048
    best = sorted(arms.RATES.index(r) for r in rates)
    assert best == list(range(best[0], best[-1] + 1))
    chosen = arms.RATES.index(arm.training.rate[0])
    assert chosen in (0, len(arms.RATES) - 1) or best[0] < chosen < best[-1]
    before = {n: (run_tables(run) / n).stat().st_mtime_ns for n in stored}
    arms.tuned_arm(run, bench, HeadSpec(offsets=(2,)))  # a second call trains nothing
    assert all((run_tables(run) / n).stat().st_mtime_ns == t for n, t in before.items())


def test_rates_are_lowered_for_as_long_as_that_is_better_with_all_tokens(monkeypatch):
    def of_rate(run, bench, spec, how):
        loss = {1e-2: 3.0, 3e-3: 2.0, 1e-3: 2.5}.get(how.rates(spec.offsets)[0])
        if loss is None:
            raise FloatingPointError("it diverges")
        return arms.Arm(spec, how, Arrays({"validation": np.array([[loss]]), "kept": np.array([0])}, "x"), "x")

    monkeypatch.setattr(arms, "trained_arm", of_rate)
    assert arms.settled_arm(None, None, HeadSpec(offsets=(2,)), Training(1e-2, 100)).training.rate == (3e-3,)
    assert arms.settled_arm(None, None, HeadSpec(offsets=(2,)), Training(3e-3, 100)).training.rate == 3e-3
    assert arms.settled_arm(None, None, HeadSpec(offsets=(2,)), Training(1e-2, 100), arms.FIRST).training.rate == (3e-3,)
    assert arms.settled_arm(None, None, HeadSpec(offsets=(2,)), Training(1e-3, 100), arms.FIRST).training.rate == (3e-3,)


@pytest.mark.parametrize(("most", "budgets"), [(10_000, [100, 200, 400, 800]), (300, [100, 200])])
def test_heads_train_until_a_doubling_brings_too_little_or_to_the_cap(monkeypatch, most, budgets):
    def of_budget(run, bench, spec, how):
        loss = {100: 3.0, 200: 2.5, 400: 2.4}.get(how.tokens, 2.4 - arms.GAIN / 2)
        return arms.Arm(spec, how, Arrays({"validation": np.array([[loss]]), "kept": np.array([0])}, "x"), "x")

    monkeypatch.setattr(arms, "trained_arm", of_budget)
    bench = SimpleNamespace(train=SimpleNamespace(tokens=torch.zeros(3, 50)))
    found = arms.trained_out(None, bench, HeadSpec(offsets=(2,)), Training(1e-4, 100), most)
    assert [arm.training.tokens for arm in found] == budgets and arms.is_trained_out(found) == (most > 300)
    assert [arm.training.epochs for arm in found] == [-(-n // 150) for n in budgets]


def test_the_rate_is_settled_at_the_first_budget_and_at_the_last(monkeypatch):
    tried = []

    def of_budget(run, bench, spec, how):
        rate = how.rates(spec.offsets)[0]
        tried.append((how.tokens, rate))
        loss = 3.0 - how.tokens / 1000 + {1e-3: 0.2, 3e-3: 0.1 if how.tokens < 400 else -0.05, 1e-2: 0.0, 3e-2: 0.1}[rate]
        return arms.Arm(spec, how, Arrays({"validation": np.array([[loss]]), "kept": np.array([0])}, "x"), "x")

    monkeypatch.setattr(arms, "trained_arm", of_budget)
    bench = SimpleNamespace(train=SimpleNamespace(tokens=torch.zeros(3, 50)))
    found = arms.trained_out(None, bench, HeadSpec(offsets=(2,)), Training(3e-3, 100), 400)
    assert [arm.rate(2) for arm in found] == [1e-2, 1e-2, 3e-3]
    assert {rate for tokens, rate in tried if tokens == 100} == {3e-3, 1e-2, 3e-2}  # higher at the first
    assert {rate for tokens, rate in tried if tokens == 200} == {1e-2}  # carried on between
    assert {rate for tokens, rate in tried if tokens == 400} == {1e-2, 3e-3, 1e-3}  # lower at the last


def test_heads_that_have_to_go_as_far_as_others_do_not_stop_where_a_doubling_brings_little(monkeypatch):
    def flat(run, bench, spec, how):
        return arms.Arm(spec, how, Arrays({"validation": np.array([[2.0]]), "kept": np.array([0])}, "x"), "x")

    monkeypatch.setattr(arms, "trained_arm", flat)
    bench = SimpleNamespace(train=SimpleNamespace(tokens=torch.zeros(3, 50)))
    given = (None, bench, HeadSpec(offsets=(2,)), Training(1e-4, 100), 800)
    assert [a.training.tokens for a in arms.trained_out(*given)] == [100, 200]
    assert [a.training.tokens for a in arms.trained_out(*given, gain=-np.inf)] == [100, 200, 400, 800]


def test_the_lens_needs_no_training_and_is_what_an_untrained_linear_head_on_that_layer_says(run, bench, text, backbone):
    found = head_measures.lens_arrays(backbone, text, (1, 2))
    shape = 7, int(text.scored.sum())
    assert {name: x.shape for name, x in found.items()} == {"log_prob.1": shape, "log_prob.2": shape}
    for layer in (3, 6):
        by_head = gaps.scored(run, bench, [arms.untrained_arm(run, bench, layers.lens(layer, (2,)))])
        by_head = by_head[by_head.label_source == "data"]["log_prob"].to_numpy()
        assert np.abs(found["log_prob.2"][layer] - by_head).max() < 0.05  # the stored states are float16


def test_counting_is_scored_on_the_positions_of_the_heads(run, bench, text, backbone):
    found = gaps.counted(run, backbone, {"prose": text})
    heads = gaps.scored(run, bench, [arms.untrained_arm(run, bench, layers.lens(6, (2,)))])
    heads = heads[heads.label_source == "data"]
    for name in ("unigram", "skip_bigram", "skip_trigram"):
        rows = found[found["name"] == name]
        assert rows["position"].tolist() == heads["position"].tolist()
        assert np.allclose(rows["excess_ce"] + rows["log_prob"], heads["marginal_log_prob"])


def test_everywhere_is_all_eligible_positions_and_agrees_with_the_scored_ones(run, bench, text, backbone):
    wide = blocks.everywhere(text, backbone.tokenizer)
    assert (wide.scored & text.scored).sum() == text.scored.sum() and wide.fingerprint != text.fingerprint
    by_hand = [sum(31 <= t < n - 4 for t in range(256)) for n in text.mask.sum(1).tolist()]  # of prose all may be scored
    assert wide.scored.sum(1).tolist() == by_hand
    arm = arms.untrained_arm(run, bench, layers.lens(6, (2,)))
    found, few = gaps.everywhere(run, bench, [arm]), gaps.scored(run, bench, [arm])
    both = found.merge(few[few.label_source == "data"], on=["document", "position"], validate="one_to_one")
    assert len(found) == sum(by_hand) and len(both) == int(text.scored.sum())
    assert np.abs(both["log_prob_x"] - both["log_prob_y"]).max() < 1e-3


def test_of_a_large_vocabulary_every_nth_position_of_a_document_is_scored(text, backbone, monkeypatch):
    wide = blocks.everywhere(text, backbone.tokenizer)
    assert gaps.eligible(text, backbone).fingerprint == wide.fingerprint
    monkeypatch.setattr(gaps, "MOST_NUMBERS", int(wide.scored.sum()) * 1024 // 3)
    thin = gaps.eligible(text, backbone)
    assert not (thin.scored & ~wide.scored).any() and thin.fingerprint != wide.fingerprint
    kept = thin.scored.sum(1) / wide.scored.sum(1)
    assert ((0.2 < kept) & (kept < 0.5)).all() and len(set(thin.scored.int().argmax(1).tolist())) > 1


def test_a_layer_is_read_at_all_eligible_positions_and_each_documents_mean_is_kept(run, bench, text, backbone):
    wide = gaps.eligible(text, backbone)
    found = head_measures.lens_arrays(backbone, wide, (2,))["log_prob.2"]
    table = layer_readings.by_document(wide, [3, 6], {2: found[[3, 6]]})
    assert len(table) == 2 * len(text.documents) and table["positions"].tolist() == 2 * wide.scored.sum(1).tolist()
    first = found[6, : int(wide.scored[0].sum())].mean()
    assert table[table.layer == 6]["cross_entropy"].iloc[0] == pytest.approx(-first)
    whole = metrics.summarise(table, ["layer"], ["cross_entropy"])
    assert whole["n_positions"].tolist() == 2 * [int(wide.scored.sum())]
    counted = layer_readings.counted(run, backbone, {"prose": text})
    assert sorted(set(counted["name"])) == ["skip_bigram", "skip_trigram", "unigram"]
    assert counted[counted["name"] == "unigram"]["positions"].tolist() == wide.scored.sum(1).tolist()
    assert (counted["cross_entropy"] > 2).all()


def test_of_a_translation_all_german_labels_are_eligible_and_no_english_one(backbone):
    few = blocks.evaluation_blocks("translation", "test", backbone.tokenizer, n_documents=5, positions_per_document=2, horizon=4)
    wide = blocks.everywhere(few, backbone.tokenizer)
    assert (wide.scored & few.scored).sum() == 10 and 10 < wide.scored.sum() < few.mask.sum() / 2


def test_on_validation_heads_and_counting_are_asked_for_the_same_tokens(run, bench, backbone, monkeypatch):
    arm = arms.untrained_arm(run, bench, layers.lens(6, (2,)))
    monkeypatch.setattr(blocks, "begins", lambda c, s, t: np.array([0]))
    table = frozen_heads.on_validation(run, frozen_heads.Decided(bench, [arm]))
    assert table["corpus"].tolist() == ["translation", "code", "prose"]
    by_hand, tokens = [], bench.validation.tokens
    stream = blocks.stream("code", run.profile.control_split, backbone.tokenizer).astype(int)
    count = np.bincount(stream[2:], minlength=1024)
    unigram = (count + (count > 0).sum() / 1024) / (count.sum() + (count > 0).sum())
    with torch.no_grad():
        for row in tokens[1::3]:
            q = backbone.model(row[None]).logits[0].log_softmax(-1)
            by_hand += [(-float(q[t, row[t + 2]]), -np.log(unigram[row[t + 2]])) for t in range(2, 254)]
    code = table[table.corpus == "code"].iloc[0]
    assert (code["heads"], code["unigram"]) == pytest.approx(np.mean(by_hand, axis=0), abs=0.02)
    other = arms.untrained_arm(run, bench, layers.lens(3, (2,)))
    again = frozen_heads.on_validation(run, frozen_heads.Decided(bench, [other]))
    assert (again["heads"] != table["heads"]).all() and again.drop(columns="heads").equals(table.drop(columns="heads"))
    assert len(list(run_tables(run).glob("04_validation_counts*.csv"))) == 1  # counted once for all heads
    monkeypatch.setattr(frozen_heads, "LARGEST_COUNT", tokens.numel() * 1024 // 3 // 16)  # of a large vocabulary every 16th
    code = frozen_heads.on_validation(run, frozen_heads.Decided(bench, [arm])).iloc[1]
    few = np.reshape(by_hand, (-1, 252, 2))[:, ::16].mean((0, 1))
    assert (code["heads"], code["unigram"]) == pytest.approx(few, abs=0.02)


def test_one_rate_for_all_heads_or_the_same_for_each_is_the_same_arm(run, bench):
    spec = HeadSpec(offsets=(2, 3))
    one, each = (arms.trained_arm(run, bench, spec, Training(rate, 512)) for rate in (1e-3, (1e-3, 1e-3)))
    assert one.name == each.name and one.arrays.fingerprint == each.arrays.fingerprint
    assert len(list(run_tables(run).glob("03_heads*.safetensors"))) == 1


def test_text_for_other_heads_begins_where_the_first_ended(run, backbone, text, bench):
    given = {"test": {"prose": text}, "layers": (6,)}
    more, fresh = (
        arms.bench_of(run, backbone, **given, tokens=n, skip=skip).train.tokens for n, skip in ((2048, 0), (1024, 1024))
    )
    assert torch.equal(more[4:], fresh) and len(fresh) == 4


def test_states_are_made_once_and_read_by_whoever_asks_next(run, bench, monkeypatch):
    first, made = arms.make_states(run, bench), bench.train
    later = dataclasses.replace(bench, train=FrozenFeatures(made.backbone, made.tokens, made.layers))
    monkeypatch.setattr(FrozenFeatures, "_compute", None)
    assert first > 0 and arms.make_states(run, later) == first
    assert np.array_equal(later.train.states, made.states) and later.train.states.dtype == np.float16
    monkeypatch.setattr(head_measures, "BOUND", made.states.nbytes - 1)  # too many to be stored: they are made when asked for
    assert set(head_measures.states_made(made, made.layers)) == {"bytes"}


def run_tables(run):
    from mtp_utils.base import paths

    return paths.tables(run.profile.name)


def test_the_floor_of_a_head_is_zero_at_full_width_and_falls_with_it():
    generator = torch.Generator().manual_seed(0)
    log_m = torch.randn(5, 12, generator=generator).mul(2).log_softmax(-1)
    wide = torch.randn(12, 12, generator=generator)
    floors = [head_measures.unembedding_floor(log_m, wide[:, :d]).mean().item() for d in (1, 3, 6, 12)]
    assert floors[-1] < 1e-4 and all(a > b for a, b in zip(floors, floors[1:], strict=False))
    grid = torch.linspace(-8, 8, 20001)[:, None]
    brute = [scoring.kl(row, (grid @ wide[:, :1].T).log_softmax(-1)).min().item() for row in log_m]
    assert head_measures.unembedding_floor(log_m, wide[:, :1]).tolist() == pytest.approx(brute, abs=1e-4)


def test_cka_is_one_for_a_rotation_and_zero_for_independent_states_however_wide():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 20))
    rotation = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    assert metrics.cka([x, 3 * x @ rotation + 5]) == pytest.approx(np.ones((2, 2)))
    found = [metrics.cka([rng.standard_normal((60, 200)), rng.standard_normal((60, 200))])[0, 1] for _ in range(40)]
    assert abs(np.mean(found)) < 5 * np.std(found) / 40**0.5 + 1e-3  # the biased estimator is at .77 here


def test_an_untrained_backbone_is_another_one_and_always_the_same(backbone):
    other = layers.untrained(backbone)
    assert other.fingerprint != backbone.fingerprint and other.name == "untrained/ladder/w16"
    assert layers.untrained(backbone).fingerprint == other.fingerprint


def test_countings_gap_is_the_excess_loss_of_its_scores_over_all_labels(run, backbone, text):
    found = gaps.counted_kl(run, backbone, {"prose": text})
    log_m = torch.from_numpy(stored.marginal(run, backbone, text, 2).values["log_probs"]).double()
    tokenizer, split = scoring.Tokenizer(backbone.tokenizer), run.profile.control_split
    counts, models = controls.counted(tokenizer, text, split, blocks.stream_digest("prose", split, backbone.tokenizer), 2)
    assert found["name"].unique().tolist() == list(counting.PREDICTORS) and (found["gap"] > 0).all()
    keys, name = ["document", "position"], counting.PREDICTORS[-1]
    mine, excess = found[found["name"] == name], np.zeros(len(log_m))
    assert mine[keys].values.tolist() == scoring.positions_of(text)[keys].values.tolist()
    for token in range(log_m.shape[1]):
        label, p = np.full((len(log_m), 1), token), log_m[:, token].exp().numpy()
        log_q = counts.scores(label, {name: models[name]})[name]["log_prob"][:, 0]
        excess += np.where(p > 0, p * (log_m[:, token].numpy() - log_q), 0.0)
    assert np.allclose(mine["gap"], excess)


def test_excess_is_that_at_the_scored_positions_and_adjusted_the_mean_over_all_of_them(run, bench, text, backbone, monkeypatch):
    arm = arms.untrained_arm(run, bench, layers.lens(3, (2,)))
    at_one = adjusted.excess(run, bench, [arm], 1)
    scored = gaps.scored(run, bench, [arm])
    scored = scored[scored.label_source == "data"]
    plain = scored.groupby("document", sort=False)["excess_ce"].mean()
    assert np.allclose(at_one.set_index("document")["plain"][plain.index], plain) and at_one["document"].is_unique
    assert np.allclose(at_one["plain"], at_one["excess_ce"])  # nine documents are too few to adjust anything
    monkeypatch.setattr(run, "profile", dataclasses.replace(run.profile, backbones=(backbone.name,)))
    at_four = adjusted.excess(run, bench, [arm], 1)
    four = adjusted.more_positions(text, backbone.tokenizer, 4, 1)
    heads = head_measures.head_log_probs(heads_from(arm.arrays, backbone, arm.spec), bench.test["prose"][1], four.scored)[2]
    own = future_log_probs(backbone.model, four.tokens, 2, exact=True, attention_mask=four.mask, positions=four.scored)
    labels = labels_of(four.tokens, four.scored, 2)
    by_hand = (own.at(four.scored) - heads).gather(1, labels[:, None])[:, 0].numpy()
    by_hand = scoring.positions_of(four).assign(x=by_hand).groupby("document")["x"].mean()
    assert np.allclose(at_four.set_index("document")["plain"][by_hand.index], by_hand, atol=1e-4)


def test_adjusted_means_know_what_is_known_everywhere():
    """Of documents with forty positions one is scored; what makes it hard is known of all of them."""
    rng, errors = np.random.default_rng(0), []
    for _ in range(40):
        hard = rng.normal(0, 1, (200, 40))
        values = 0.5 + 1.5 * hard + rng.normal(0, 0.2, hard.shape)
        at = rng.integers(40, size=200)
        names = [f"d{i}" for i in range(200)]
        means = pd.Series(values[range(200), at], names)
        here = pd.DataFrame({"corpus": "c", "document": names, "position": at, "hard": hard[range(200), at]})
        everywhere = pd.DataFrame({"corpus": "c", "document": np.repeat(names, 40), "hard": hard.ravel()})
        everywhere["position"] = np.tile(np.arange(40), 200)
        everywhere.loc[everywhere.document == "d3", "hard"] = np.nan  # of one nothing more is known
        found = by_document(means, here, everywhere)
        errors.append((found.mean() - values.mean(), means.mean() - values.mean(), found.std() / 200**0.5))
    mine, plain, said = np.array(errors).T
    assert mine.std() < plain.std() / 3 and 0.6 < mine.std() / said.mean() < 1.5 and abs(mine.mean()) < 0.02
