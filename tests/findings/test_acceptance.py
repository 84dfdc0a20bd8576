"""What drafts could reach: heard along the base model's own text, against what decoding takes and against sums written out."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from mtp_utils.backbones.load import load_backbone
from mtp_utils.base.profiles import Profile
from mtp_utils.base.records import Arrays
from mtp_utils.decoding import rates
from mtp_utils.findings import acceptance, measures, scoring, speed
from mtp_utils.findings.speed import Drafting
from mtp_utils.heads.features import FrozenFeatures
from mtp_utils.heads.heads import Heads
from mtp_utils.heads.spec import HeadSpec
from mtp_utils.marginal import future_log_probs, future_tokens
from mtp_utils.text import blocks


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("ladder/w32", device="cpu")


@pytest.fixture(scope="module")
def text(backbone):
    return blocks.evaluation_blocks("translation", "test", backbone.tokenizer, n_documents=4, positions_per_document=1, horizon=4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_heard_says_what_decoding_takes(backbone, text, temperature):
    given = {"n_prompts": 4, "new_tokens": 24, "temperature": temperature}
    table = acceptance.heard_table(backbone, text, Drafting("lookup"), **given)
    passes = speed.acceptance_table(backbone, text, Drafting("lookup"), **given)
    assert list(table[acceptance.RANKS].max()) == [8, 8, 8] and (table[acceptance.RANKS] == 0).any().any()
    tree = acceptance.expected.tree((1, 1, 1))
    ours = {d: torch.tensor(of[acceptance.RANKS].to_numpy()) for d, of in table.groupby("document")}
    ours = {d: acceptance.expected.simulated([of], tree)[0].tolist() for d, of in ours.items()}
    whole = passes[~passes["cut"]]
    theirs = {d: of.groupby("number")["accepted"].sum().tolist() for d, of in whole.groupby("document")}
    assert {d: x for d, x in ours.items() if x} == theirs and sum(map(sum, theirs.values())) > 0
    tokens = 1 + np.concatenate(list(ours.values())).mean()
    assert tokens == pytest.approx(rates.mean_acceptance_length(passes))


def test_walked_from_pass_to_pass_it_is_what_was_decoded(backbone, text):
    heard = acceptance.heard_table(backbone, text, Drafting("lookup"), n_prompts=4, new_tokens=24)
    passes = speed.acceptance_table(backbone, text, Drafting("lookup"), n_prompts=4, new_tokens=24)
    given = {"drafter": "prompt lookup", "temperature": 0.0}
    trees = {"prompt lookup": ("prompt lookup", (1, 1, 1))}
    (row,) = acceptance.walked_against_decoding(heard.assign(**given), passes.assign(**given), trees).to_dict("records")
    assert row["walked"] == pytest.approx(rates.mean_acceptance_length(passes)) == row["decoded"] > 1
    assert row["difference"] == row["ci_low"] == row["ci_high"] == 0


def test_the_base_model_itself_is_always_right_about_its_greedy_text_and_ranks_what_it_draws(backbone, text):
    greedy = acceptance.heard_table(backbone, text, None, n_prompts=4, new_tokens=12)
    assert (greedy[acceptance.RANKS] == 0).all().all() and len(greedy) > 8
    drawn = acceptance.heard_table(backbone, text, None, n_prompts=4, new_tokens=12, temperature=1.0)
    ranks = drawn[acceptance.RANKS].to_numpy()
    assert 0 < (ranks == 0).mean() < 1 and ranks.max() <= 8
    one = drawn[drawn["document"] == drawn["document"].iloc[0]][acceptance.RANKS].to_numpy()
    assert (one[1:, 0] == one[:-1, 1]).all()  # the token after next here is the next one there


def test_full_and_conditional_acceptance_stand_beside_what_decoding_took():
    ranks = {"rank2": [0, 0, 1, 0], "rank3": [0, 2, 0, 8], "rank4": [0, 0, 0, 0]}
    keys = {"corpus": "code", "drafter": "d", "temperature": 0.0}
    heard = pd.DataFrame({**ranks, "document": ["a", "a", "b", "b"], "token": [0, 1, 0, 1], **keys})
    rows = [(d, n, k, k <= 1 + n) for d in "ab" for n in (1, 2) for k in (2, 3, 4)]
    passes = pd.DataFrame(rows, columns=["document", "number", "offset", "accepted"]).assign(cut=False, drafted=True, **keys)
    table = acceptance.against_decoding(heard, passes)
    assert table["full"].tolist() == [0.75, 0.25, 0.25]
    assert table["conditional"].tolist() == pytest.approx([0.75, 1 / 3, 1.0])
    assert table["decoded"].tolist() == [1.0, 0.5, 0.0] and table["difference"].tolist() == [-0.25, -0.25, 0.25]
    assert (table["ci_low"] <= table["difference"]).all() and (table["difference"] <= table["ci_high"]).all()


def test_a_tree_is_scored_on_documents_that_did_not_choose_it():
    rows = [(d, i, 0 if d in "ac" else 1, 8, 8) for d in "abcd" for i in range(4)]  # each half has its own
    heard = pd.DataFrame(rows, columns=["document", "token", *acceptance.RANKS])
    table = acceptance.tokens_by_nodes(heard.assign(corpus="code", drafter="d", temperature=0.0)).set_index("nodes")["value"]
    assert table[1] == 1.0 == table[24]  # neither half had seen what the other needs
    rows = [(d, i, min(i, 1), 8, 8) for d in "abcd" for i in range(4)]
    heard = pd.DataFrame(rows, columns=["document", "token", *acceptance.RANKS])
    table = acceptance.tokens_by_nodes(heard.assign(corpus="code", drafter="d", temperature=0.0)).set_index("nodes")["value"]
    assert table[2] == 2.0 and table[1] == pytest.approx(5 / 3)


def test_what_pays_with_one_row_costs_with_many():
    table = pd.DataFrame({"nodes": [1, 24], "value": [1.5, 2.0], "corpus": "code", "drafter": "d", "temperature": 0.0})
    found = acceptance.break_even(table, (1, 1000), 300)
    assert found["nodes"].tolist() == [24, 1] and found["times"].tolist() == pytest.approx([2.0, 1.5 / 2])


def test_drafts_that_are_drawn_are_expected_to_be_kept_as_often_as_p_and_q_overlap(backbone, text):
    where = {"attention_mask": text.mask, "positions": text.scored}
    tokens = future_tokens(backbone.model, text.tokens, 4, sample=True, seed=0, **where)[text.scored]
    labels = scoring.Labels(measures.label_table(text, {"sampled": tokens.numpy()}))
    marginals = {}
    for k in (2, 3, 4):
        f = future_log_probs(backbone.model, text.tokens, k, top_k=4, samples=16, seed=0, **where)
        marginals[k] = Arrays({"log_probs": f.at(text.scored).numpy()}, f"{k}")
    spec = HeadSpec("residual", offsets=(2, 3, 4))
    heads = Arrays({f"heads.{name}": x for name, x in _arrays(backbone, spec).items()}, "heads")
    states = FrozenFeatures(backbone, text.tokens, (6,))
    table = acceptance.drawn_table(backbone, text, labels, marginals, states, (heads,), (spec,))
    assert len(table) == 4 * 2 * 3 and table["value"].between(0, 1 + 1e-6).all()
    t = int(text.scored[0].int().argmax())
    ids = torch.cat([text.tokens[0, : t + 1], tokens[0, :1]])[None]
    p = backbone.model(ids).logits[0, -1].softmax(-1)
    q = torch.from_numpy(marginals[2].values["log_probs"][0]).softmax(-1)
    by_hand = float(torch.minimum(p, q).sum())
    ours = table[(table.drafter == "marginal") & (table.offset == 2)]["value"].iloc[0]
    assert ours == pytest.approx(by_hand, abs=1e-4)


def _arrays(backbone, spec) -> dict[str, np.ndarray]:
    return {name.removeprefix("heads."): x for name, x in Heads(backbone, spec).arrays().items()}


def test_drafters_are_heard_under_their_names_on_as_many_prompts_as_there_are(backbone, text, tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_BUILD", str(tmp_path))
    profile = Profile("few", backbones=(), n_documents=3, new_tokens=8)
    run = SimpleNamespace(profile=profile, measure=lambda stem, function, **given: function(**given))
    found = acceptance.heard(run, backbone, {"translation": text}, "prompt lookup", Drafting("lookup"), most=2)
    assert set(found["document"]) <= set(text.documents[:2]) and set(found["drafter"]) == {"prompt lookup"}
    sizes = (Profile("few", (), n_documents=9, decoded_documents=n).decoded(most) for n, most in ((5, None), (5, 2), (20, None)))
    assert list(sizes) == [5, 2, 9]
