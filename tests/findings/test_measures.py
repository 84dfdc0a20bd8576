"""Measuring functions: what a table must hold, and what it must not depend on."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from mtp_utils.backbones.load import load_backbone
from mtp_utils.base import records
from mtp_utils.base.profiles import get_profile
from mtp_utils.findings import (
    adjusted,
    controls,
    kinds,
    marginal_claims,
    marginal_tables,
    measures,
    metrics,
    scoring,
    stored,
)
from mtp_utils.findings.means import error_by_package
from mtp_utils.marginal.future import future_log_probs, future_tokens
from mtp_utils.marginal.packed import Packed
from mtp_utils.marginal.rows import one_prefix
from mtp_utils.text import blocks
from mtp_utils.text.offsets import labels_of


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("ladder/w16", device="cpu")


@pytest.fixture(scope="module")
def text(backbone):
    return blocks.evaluation_blocks("code", "test", backbone.tokenizer, n_documents=12, positions_per_document=2, horizon=3)


ESTIMATORS = {"1": {"exact": True}, "2": {"exact": True}, "3": {"top_k": 4, "samples": 8}}


@pytest.fixture(scope="module")
def arrays(backbone, text):
    return measures.marginal_arrays(backbone, text, ESTIMATORS, stored.DRAWN)


def test_of_a_large_vocabulary_the_logits_of_fewer_rows_are_held_and_nothing_else_changes(backbone, text, monkeypatch):
    whole, sizes = measures.next_token_arrays(backbone, text), []
    monkeypatch.setattr(scoring, "LOGITS", 3 * 256 * 1024)
    hook = backbone.model.register_forward_pre_hook(lambda _, a, given: sizes.append(len(given["input_ids"])), with_kwargs=True)
    few = measures.next_token_arrays(backbone, text)
    hook.remove()
    assert set(sizes) == {3} and scoring.rows_at_once(backbone.model, 10**9) == 1
    assert np.allclose(few["log_prob"], whole["log_prob"], atol=1e-4, equal_nan=True) and (few["top1"] == whole["top1"]).all()


def labels_in(arrays, text):
    return scoring.Labels(measures.label_table(text, {s: arrays[f"labels.{s}"] for s in stored.DRAWN}))


@pytest.fixture(scope="module")
def labels(arrays, text):
    return labels_in(arrays, text)


@pytest.fixture
def alone():
    """A run of the smoke profile that stores nothing."""
    functions = {
        "measure": lambda stem, function, **given: function(**given),
        "measure_arrays": lambda stem, function, **given: records.Arrays(function(**given), ""),
    }
    return SimpleNamespace(profile=get_profile("smoke"), **functions)


def marginal_in(arrays, offset):
    return records.Arrays({n[:-2]: x for n, x in arrays.items() if n.endswith(f".{offset}")}, "")


def test_data_labels_are_the_documents_own_tokens(labels, text):
    for k in (1, 2, 3):
        rows = labels.table[(labels.table.offset == k) & (labels.table.label_source == "data")]
        assert rows["label"].tolist() == labels_of(text.tokens, text.scored, k).tolist()


def test_greedy_and_sampled_labels_continue_the_data_prefix(labels, text, backbone):
    row, t = (x[0] for x in text.scored.nonzero(as_tuple=True))
    ids = text.tokens[row : row + 1, : t + 1]
    first = labels.table[(labels.table.document == text.documents[row]) & (labels.table.position == int(t))]
    for k in (1, 2, 3):
        here = first[(first.offset == k) & (first.label_source == "greedy")]["label"].item()
        assert here == backbone.model(ids).logits[0, -1].argmax().item()
        ids = torch.cat([ids, torch.tensor([[here]])], 1)
    drawn = labels.table[labels.table.label_source == "sampled"]["label"]
    assert drawn.nunique() > labels.table[labels.table.label_source == "greedy"]["label"].nunique()


def test_labels_are_drawn_once_and_for_all(labels, text, backbone, monkeypatch):
    monkeypatch.setattr(scoring, "BATCH", 5)
    again = measures.marginal_arrays(backbone, text, {}, stored.DRAWN)
    assert labels_in(again, text).table.equals(labels.table)


def test_a_shared_prefix_pass_changes_nothing_and_is_made_once(arrays, backbone, text, monkeypatch):
    made = []
    real = Packed.__init__

    def counted(self, *arguments):
        made.append(1)
        real(self, *arguments)

    monkeypatch.setattr(Packed, "__init__", counted)
    rows = slice(0, scoring.BATCH)
    call = {"attention_mask": text.mask[rows], "positions": text.scored[rows]}
    alone = [
        future_log_probs(backbone.model, text.tokens[rows], k, **e, **call).log_probs
        for k, e in ((2, {"exact": True}), (3, {"top_k": 4}))
    ]
    assert len(made) == 2
    with one_prefix():
        shared = [
            future_log_probs(backbone.model, text.tokens[rows], k, **e, **call).log_probs
            for k, e in ((2, {"exact": True}), (3, {"top_k": 4}))
        ]
        tokens = future_tokens(backbone.model, text.tokens[rows], 3, **call)
        assert len(made) == 3
        fewer = text.scored[rows] & (torch.arange(text.tokens.shape[1]) < 100)
        future_log_probs(backbone.model, text.tokens[rows], 2, top_k=2, attention_mask=text.mask[rows], positions=fewer)
        assert len(made) == 4  # other positions, another prefix pass
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert (tokens[text.scored[rows]].numpy() == arrays["labels.greedy"][: int(text.scored[rows].sum())]).all()


def test_scores_do_not_depend_on_batch_size_or_threads(backbone, text, labels, monkeypatch):
    before = torch.get_num_threads()
    runs = []
    try:
        for batch, threads in ((8, 1), (3, 2)):
            monkeypatch.setattr(scoring, "BATCH", batch)
            torch.set_num_threads(threads)
            runs.append(measures.marginal_arrays(backbone, text, ESTIMATORS, ()))
    finally:
        torch.set_num_threads(before)
    for offset, estimator in ((2, ESTIMATORS["2"]), (3, ESTIMATORS["3"])):
        tables = [measures.marginal_table(marginal_in(a, offset), labels, backbone.name, offset, estimator) for a in runs]
        assert tables[0][["document", "position", "label_source"]].equals(tables[1][["document", "position", "label_source"]])
        assert np.abs(tables[0]["log_prob"] - tables[1]["log_prob"]).max() < 1e-4


def test_the_exact_marginal_equals_a_loop_over_the_token_between(backbone, text, labels, arrays):
    table = measures.marginal_table(marginal_in(arrays, 2), labels, backbone.name, 2, {"exact": True})
    row, t = (x[0] for x in text.scored.nonzero(as_tuple=True))
    ids = text.tokens[row : row + 1, : t + 1]
    p = backbone.model(ids).logits[0, -1].double().softmax(-1)
    after = torch.cat([backbone.model(torch.cat([ids.expand(len(v), -1), v[:, None]], 1)).logits[:, -1]
                       for v in torch.arange(len(p)).split(256)]).double().softmax(-1)  # fmt: skip
    m2 = p @ after
    here = table[(table.document == text.documents[row]) & (table.position == int(t)) & (table.label_source == "data")]
    assert here["log_prob"].item() == pytest.approx(m2[text.tokens[row, t + 2]].log().item(), abs=1e-4)
    assert here["entropy"].item() == pytest.approx(torch.special.entr(m2).sum().item(), abs=1e-4)
    lost = torch.special.entr(m2).sum() - p @ torch.special.entr(after).sum(-1)
    assert here["mutual_information"].item() == pytest.approx(lost.item(), abs=1e-3)


def test_truncation_table_keeps_the_bounds_and_reaches_the_exact_sum(backbone, text):
    table = measures.truncation_table(backbone, text, [{"top_k": 8}, {"top_k": 1024}, {"mass": 0.9}, {"samples": 16}])
    assert table["outside_bounds"].fillna(0).sum() == 0
    whole = table[(table.estimator == "top_k=1024") & (table.scored == "S")]
    assert whole["total_variation"].max() < 1e-5 and (whole["same_argmax"] == 1).all()
    assert (table[table.estimator == "mass=0.9"]["captured_mass"] >= 0.9 - 1e-6).all()


def test_another_documents_labels_are_met_as_often_as_their_frequencies_say(arrays, text, labels):
    found = controls.negative_control_table(marginal_in(arrays, 2), text, labels, "b", draws=50)
    table = labels.table[(labels.table.offset == 2) & (labels.table.label_source == "data")]
    argmax, expected = marginal_in(arrays, 2).values["log_probs"].argmax(1), []
    for document, guess in zip(table["document"], argmax, strict=True):
        expected.append((table[table.document != document]["label"] == guess).mean())
    error = found["rate"].std() / np.sqrt(len(found))
    assert abs(found["rate"].mean() - np.mean(expected)) < 5 * error + 1e-9
    assert found["top1_true_pairs"].iloc[0] == (argmax == table["label"]).mean()


def test_greedy_path_is_scored_on_the_other_sources_only(labels):
    found = controls.greedy_path_table(labels, "b")
    assert set(found["label_source"]) == {"data", "sampled"} and found["top1"].isin([0.0, 1.0]).all()


def test_kinds_of_text_are_told_apart_by_means_over_documents_with_welchs_interval():
    rng, rows = np.random.default_rng(0), []
    for corpus, shift in (("translation", 1.0), ("prose", 0.0)):
        for d in range(40):
            for predictor, offset in (("marginal", 1), ("marginal", 2), ("skip_trigram", 2)):
                better = shift * (predictor == "marginal") * (offset == 2)
                hit, log_prob = rng.random() < 0.2 + 0.5 * better, rng.normal(-3.0 + better)
                rows.append(("b", corpus, f"{corpus}{d}", predictor, offset, "data", float(hit), log_prob))
    columns = ["backbone", "corpus", "document", "predictor", "offset", "label_source", "top1", "log_prob"]
    scores = pd.DataFrame(rows, columns=columns)
    found = kinds.between_kinds(scores, "b").set_index("measure")
    assert set(found.index) == {"top1", "excess", "lead"} and (found["ci_low"] > 0).all()
    second = scores[(scores.predictor == "marginal") & (scores.offset == 2)].set_index("corpus")["top1"]
    a, b = second["translation"], second["prose"]
    test = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    row = found.loc["top1"]
    assert np.allclose([row.effect, row.ci_low, row.ci_high], [a.mean() - b.mean(), test.low, test.high])
    of_documents = a.var() / len(a), b.var() / len(b)
    assert np.isclose(row.se**2, sum(of_documents)) and np.isclose(row.se_packages, row.se)  # each document alone in a package
    of_five = scores["document"].str.removeprefix("prose").where(scores["corpus"] == "prose", 0).astype(int) % 5
    of_packages = scores.assign(document=of_five.astype(str) + "/" + scores["document"])
    of_packages["document"] = of_packages["document"].where(scores["corpus"] == "prose", "ours/" + scores["document"])
    row = kinds.between_kinds(of_packages, "b").set_index("measure").loc["top1"]
    means = b.groupby(np.arange(40) % 5).mean()
    assert np.isclose(row.se_packages**2, of_documents[0] + means.var() / 5)


def test_a_bracket_holds_the_accuracy_whatever_the_uncertified_arg_maxes_are():
    rows = pd.DataFrame({"document": list("abcd"), "top1": [1.0, 1.0, 0.0, 0.0], "certified": [1.0, 0.0, 1.0, 0.0]})
    rows = rows.assign(predictor="marginal", label_source="data", backbone="b", corpus="c", offset=2, estimator="e")
    (found,) = marginal_tables.brackets(rows.assign(candidates=8, captured_mass=0.9)).itertuples()
    assert (found.top1_least, found.top1, found.top1_most, found.certified) == (0.25, 0.5, 0.75, 0.5)


def test_where_no_exact_sum_can_be_had_estimators_are_held_against_one_that_is_nearly_it(backbone, text):
    estimators, nearly = [{"top_k": 8, "samples": 8}], {"top_k": 900, "samples": 256}
    of_nearly = measures.truncation_table(backbone, text, estimators, nearly)
    exact = measures.truncation_table(backbone, text, estimators)
    assert np.allclose(of_nearly["log_prob_exact"], exact["log_prob_exact"], atol=0.02)
    assert np.array_equal(of_nearly["log_prob"], exact["log_prob"])


@pytest.mark.parametrize(("lead", "verdict"), [(0.2, "reproduced"), (0.0, "inconclusive"), (-0.2, "not reproduced")])
def test_kinds_of_text_are_judged_by_the_less_certain_of_excess_and_lead_on_translations_by_people(lead, verdict):
    rows = [
        (kind, against, measure, value, value - 0.1, value + 0.1, {0.5: 1e-6, 0.0: 1.0}.get(value, 1e-4), 400)
        for against in ("code", "prose")
        for kind, measure, value in (
            ("translation", "lead", 0.5), ("translation", "excess", 0.5), ("catalogues", "top1", 0.5),
            ("catalogues", "excess", 0.5), ("catalogues", "lead", lead),
        )
    ]  # fmt: skip
    columns = ["kind", "against", "measure", "effect", "ci_low", "ci_high", "p", "n_documents"]
    found = kinds.c2_data(pd.DataFrame(rows, columns=columns), "b")
    assert (found.verdict, found.effect) == (verdict, lead) and "catalogues" in found.contrast
    table = pd.DataFrame(rows, columns=columns)
    known, not_known = (kinds.c2_data(table, "b", unknown=u).text for u in ((), ("catalogues",)))
    assert not_known.startswith(known) and "loses to the trigram on catalogues" in not_known[len(known) :]


def test_slopes_of_excess_and_lead_leave_out_rungs_that_lose_at_their_own_task():
    rng, sizes, rows = np.random.default_rng(0), {f"r{i}": 1000 * 4**i for i in range(5)}, []
    for d in range(100):
        hard, spread = rng.normal(), rng.random(3)
        for i, rung in enumerate(sizes):  # excess falls by .2 and the lead rises by .1 per factor four, from r1 on
            next_token = -3.0 + 0.3 * i + hard if i else -9.0
            rows.append((rung, "marginal", 1, d, 0.0, next_token))
            rows.append((rung, "marginal", 2, d, float(spread[0] < 0.1 + 0.1 * i), next_token - 2.0 + 0.2 * i))
        rows += [("r4", "skip_trigram", 1, d, 0.0, -5.0 + hard), ("r4", "skip_trigram", 2, d, float(spread[1] < 0.1), -6.0)]
    table = pd.DataFrame(rows, columns=["backbone", "predictor", "offset", "document", "top1", "log_prob"])
    table = table.assign(corpus="prose", position=40, label_source="data")
    marginal, counted = (table[(table.predictor == "marginal") == which] for which in (True, False))
    runs = {rung: (rung, 0) for rung in sizes}
    found = marginal_tables.slopes_beside(marginal, counted, sizes, runs).set_index("measure")
    assert (found["rungs"] == 4).all() and found.loc["excess", "slope"] == pytest.approx(-0.2)
    lead = found.loc["lead"]
    assert 0 < lead.ci_low < 0.1 < lead.ci_high
    few = {rung: sizes[rung] for rung in ("r0", "r1", "r2")}
    assert marginal_tables.slopes_beside(marginal, counted, few, {rung: (rung, 0) for rung in few}).empty


def test_errors_by_package_are_the_jackknifes_and_equal_the_documents_where_each_has_its_own():
    rng = np.random.default_rng(0)
    sizes = [10] * 12
    names = [f"p{package}/f{d}.py" for package, n in enumerate(sizes) for d in range(n)]
    means = pd.Series(np.repeat(rng.normal(size=12), sizes) + rng.normal(0, 0.1, 120), names)
    found, of_packages = error_by_package(means), means.groupby(means.index.str.split("/").str[0]).mean()
    assert found == pytest.approx(of_packages.std() / 12**0.5) and found > 2.5 * means.std() / 120**0.5
    alone = means.rename(lambda name: name.replace("/", "-"))
    assert error_by_package(alone) == pytest.approx(means.std() / 120**0.5)
    assert np.isnan(error_by_package(means[:40]))
    few = [44, 20, *[6] * 6]  # as files lie in packages: the error that is told is not far below the true one
    names = [f"p{package}/{d}" for package, n in enumerate(few) for d in range(n)]
    trials = [pd.Series(np.repeat(rng.normal(size=8), few), names) for _ in range(400)]
    told, true = np.mean([error_by_package(x) ** 2 for x in trials]) ** 0.5, np.std([x.mean() for x in trials])
    assert 0.9 < told / true < 1.6


def test_bits_per_character_are_nats_by_the_length_of_the_tokens_that_are_predicted(backbone, text):
    length = marginal_tables.characters_per_token(backbone.tokenizer, text)
    behind = [text.tokens[row, t + 1 : t + 4] for row, t in text.scored.nonzero().tolist()]
    plain = np.mean([len(backbone.tokenizer.decode(ids)) for ids in behind]) / 3
    assert abs(length - plain) < 0.02 * plain and length > 1
    rows = {"corpus": ["code"] * 2, "metric": ["cross_entropy", "top1"]}
    table = pd.DataFrame(rows | {n: [np.log(2) * 3, 0.5] for n in ("value", "ci_low", "ci_high")})
    (row,) = marginal_tables.in_bits(table, {"code": 1.5}).to_dict("records")
    assert row["metric"] == "bits_per_character" and np.allclose([row["value"], row["ci_low"]], 2.0)


def test_next_token_losses_are_each_documents_own_whatever_stands_beside_it(backbone, text, alone):
    found = stored.next_token_losses(alone, backbone, text)
    assert found["document"].tolist() == list(text.documents)
    for row in (0, 7):
        ids = text.tokens[row, : int(text.mask[row].sum())][None]
        with torch.no_grad():
            loss = backbone.model(ids, labels=ids).loss
        assert abs(found["cross_entropy"][row] - float(loss)) < 1e-4 and found["n_tokens"][row] == ids.shape[1] - 1


def test_counting_is_done_once_for_all_backbones_and_tells_label_sources_apart(backbone, text, labels, monkeypatch):
    given = {"tokenizer": scoring.Tokenizer(backbone.tokenizer), "blocks": text, "labels": labels, "split": "heads", "text": "t"}
    controls._counted.clear()
    first = controls.control_table(**given, name="a")
    monkeypatch.setattr(controls, "Counts", None)  # nothing is counted again
    second = controls.control_table(**given, name="b")
    pd.testing.assert_frame_equal(first.drop(columns="backbone"), second.drop(columns="backbone"))
    keys = ["document", "position", "offset", "label_source"]
    assert first.groupby("predictor")[keys].apply(lambda x: not x.duplicated().any()).all()
    both = first.merge(labels.table, on=["corpus", *keys], validate="many_to_one")
    of_unigram = both[(both.predictor == "unigram") & (both.offset == 2)]
    assert of_unigram.groupby("label")["log_prob"].nunique().max() == 1  # one label, one probability, whatever the source
    assert of_unigram.groupby("label_source")["log_prob"].sum().nunique() == 3


def test_what_is_known_everywhere_is_what_the_model_and_counting_say_at_each_position(backbone, text, labels, alone):
    wide, keys = blocks.everywhere(text, backbone.tokenizer), ["document", "position"]
    found = stored.variates_of(alone, backbone, text)
    found = found[found.predictor == "unigram"].reset_index(drop=True)
    assert len(found) == int(wide.scored.sum()) > len(text.documents) * 2
    for row in (0, len(found) - 1):
        document, t = found["document"][row], int(found["position"][row])
        ids = text.tokens[text.documents.index(document), : t + 3][None]
        with torch.no_grad():
            log_probs = backbone.model(ids[:, :-1]).logits[0].log_softmax(-1)
        for name, at in (("next", t), ("after", t + 1)):
            assert found[f"{name}_log_prob"][row] == pytest.approx(float(log_probs[at, ids[0, at + 1]]), abs=1e-4)
            assert found[f"{name}_top1"][row] == float(log_probs[at].argmax() == ids[0, at + 1])
    given = {"tokenizer": scoring.Tokenizer(backbone.tokenizer), "split": "heads", "text": "t"}
    counted = controls.counting_table(blocks=wide, **given)
    at_scored = controls.control_table(blocks=text, labels=labels, name="b", **given)
    at_scored = at_scored[(at_scored.offset == 2) & (at_scored.label_source == "data")]
    both = counted.merge(at_scored, on=[*keys, "predictor"], validate="one_to_one")
    assert len(both) == len(at_scored) and np.allclose(both["log_prob_x"], both["log_prob_y"])
    assert (both["top1_x"] == both["top1_y"]).all()


def test_the_rival_is_scored_on_every_label_source_at_the_scored_positions(backbone, text, labels):
    found = controls.esp_table(backbone, text, labels)
    assert len(found) == int(text.scored.sum()) * 2 * 3 and set(found["offset"]) == {2, 3}
    row = found[(found.label_source == "data") & (found.offset == 3)].iloc[-1]
    at = text.documents.index(row.document)
    embedded = backbone.model.get_input_embeddings()(text.tokens[at, : row.position + 1])
    given = torch.cat([embedded, embedded.mean(0, keepdim=True), embedded.mean(0, keepdim=True)])[None]
    with torch.no_grad():
        said = backbone.model(inputs_embeds=given).logits[0, -1].log_softmax(-1)
    assert row.log_prob == pytest.approx(float(said[text.tokens[at, row.position + 3]]), abs=1e-4)


def test_a_difference_that_the_variates_know_everywhere_is_the_mean_over_all_positions():
    rng, rows = np.random.default_rng(0), []
    for d in range(80):
        rows += [(f"d{d}", t, rng.normal()) for t in range(30)]
    everywhere = pd.DataFrame(rows, columns=["document", "position", "known"]).assign(corpus="prose")
    scored = everywhere.groupby("document").sample(1, random_state=1)
    first, second = scored.assign(log_prob=2 * scored["known"] + 1), scored.assign(log_prob=0.0)
    found = metrics.paired_with(first, second, "log_prob", everywhere)
    truth = 2 * everywhere.groupby("document")["known"].mean().mean() + 1
    plain = metrics.paired(first, second, "log_prob")
    assert found["effect"] == pytest.approx(truth, abs=0.02) and abs(plain["effect"] - truth) > 0.05
    assert found["variance"] < 0.1 and plain["ci_high"] - plain["ci_low"] > 3 * (found["ci_high"] - found["ci_low"])
    with pytest.raises(ValueError, match="same positions everywhere"):
        metrics.paired_with(first[1:], second, "log_prob", everywhere)


def test_what_stands_behind_a_position_does_not_move_its_marginal_and_a_look_ahead_would_be_seen(backbone, text, monkeypatch):
    found = controls.blind_table(backbone, text)
    assert found["document"].tolist() == list(text.documents) and (found["replaced"] > 0).all()
    assert found["difference"].max() < 1e-5
    real = controls.future_log_probs  # a marginal that looks two tokens too far
    monkeypatch.setattr(controls, "future_log_probs", lambda model, ids, **given: real(model, ids.roll(-2, 1), **given))
    assert controls.blind_table(backbone, text)["difference"].max() > 1e-3

    def leaking(model, ids, positions, **given):  # whose pass lets every position hear the last one that is read
        end = (positions.int() * torch.arange(ids.shape[1])).amax(1, keepdim=True)
        heard = ids.scatter(1, positions.int().argmax(1, keepdim=True), ids.gather(1, end))
        return real(model, heard, positions=positions, **given)

    monkeypatch.setattr(controls, "future_log_probs", leaking)
    assert controls.blind_table(backbone, text)["difference"].max() > 1e-3


def test_more_positions_are_eligible_ones_of_the_same_windows_and_are_scored_as_one_is(backbone, text):
    four = adjusted.more_positions(text, backbone.tokenizer, 4, 1)
    everywhere = blocks.everywhere(text, backbone.tokenizer).scored
    assert not (four.scored & ~everywhere).any() and (four.scored.sum(1) == everywhere.sum(1).clamp(max=4)).all()
    assert torch.equal(four.tokens, text.tokens)
    assert not torch.equal(four.scored, adjusted.more_positions(text, backbone.tokenizer, 4, 2).scored)

    def arrays(stem, function, **given):
        return records.Arrays(function(**given), stem)

    run = SimpleNamespace(profile=get_profile("smoke"), measure=lambda stem, f, **given: f(**given), measure_arrays=arrays)
    more = adjusted.at_more(run, backbone, {"code": text}, 1)
    known = stored.variates_of(run, backbone, text)
    found = marginal_claims.c1_effects(more[more.offset == 2], backbone.name, known).set_index(["metric", "control"])
    marginal = future_log_probs(backbone.model, four.tokens, 2, exact=True, attention_mask=four.mask, positions=four.scored)
    right = marginal.at(four.scored).argmax(-1) == labels_of(four.tokens, four.scored, 2)
    counted = stored.counted_everywhere(run, backbone, text)
    counted = scoring.positions_of(four).merge(counted[counted.predictor == "unigram"], on=["corpus", "document", "position"])
    by_hand = (right.numpy() - counted["top1"]).groupby(counted["document"]).mean().mean()
    assert found.loc[("top1", "unigram"), "plain_effect"] == pytest.approx(by_hand, abs=1e-9)
    assert (found["n_positions"] == int(four.scored.sum())).all()


def test_an_estimator_s_bias_is_held_against_the_error_that_documents_leave():
    rng = np.random.default_rng(0)
    near, frames = rng.normal(-3, 1, 50), []
    for corpus, bias in (("code", 0.1), ("prose", -0.3)):
        for estimator, scored, candidates, off in (("top_k=64", "S", 64, bias), ("samples=9", "S", 7, 0.0)):
            about = {"corpus": corpus, "estimator": estimator, "scored": scored, "candidates": candidates}
            frames.append(pd.DataFrame({"log_prob": near - off, "cross_entropy_bias": off}).assign(**about))
    found = marginal_tables.bias_and_cost(pd.concat(frames), 100)
    assert found["estimator"].tolist() == ["samples=9", "top_k=64"] and found["candidates"].tolist() == [7, 64]
    assert found["bias, prose"].tolist() == pytest.approx([0.0, -0.3])
    assert found["of the error"].tolist() == pytest.approx([0.0, 0.3 / (near.std(ddof=1) / 10)])
