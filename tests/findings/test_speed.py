"""What is measured of decoding: the same passes however rows are batched, whole texts for the clock, ratios by arithmetic."""

import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import ranks_job
import torch
from scipy import stats
from tiny_models import tiny_backbone

from mtp_utils.base.records import Arrays
from mtp_utils.base.refusals import CannotDo
from mtp_utils.decoding.decode import greedy_decode
from mtp_utils.decoding.rates import acceptance, mean_acceptance_length
from mtp_utils.findings import speed, speed_tables
from mtp_utils.findings.speed import Drafting
from mtp_utils.heads.heads import Heads
from mtp_utils.heads.spec import HeadSpec


class Words:
    unk_token_id, eos_token_id, bos_token_id = None, 0, None

    def convert_tokens_to_ids(self, token):
        return None


def backbone(name="gpt_neox"):
    b = tiny_backbone(name, dtype=torch.float64)
    b.model.config.max_position_embeddings = 64
    return SimpleNamespace(**vars(b) | {"tokenizer": Words()})


def heads_arm(b, **spec):
    spec = HeadSpec(**spec)
    return SimpleNamespace(arrays=Arrays(Heads(b, spec).arrays(), "a"), spec=spec)


def test_passes_do_not_depend_on_how_many_rows_are_decoded_together(monkeypatch):
    b, blocks = backbone(), ranks_job.test_blocks()
    drafting = Drafting("heads", (heads_arm(b, kind="linear"),), (2, 1))
    found = []
    for rows in (9, 4, 1):
        monkeypatch.setattr(speed, "ROWS", rows)
        table = speed.acceptance_table(b, blocks, drafting, 9, 7)
        table = table[
            ~table["cut"]
        ]  # at the limit rows are drafted as far as the longest of them goes, and left out of every rate
        found.append(table.sort_values(["row", "number", "offset"], ignore_index=True)[["document", "offset", "accepted"]])
    assert found[0].equals(found[1]) and found[0].equals(found[2]) and found[0]["accepted"].any()
    assert set(found[0]["document"]) == set(blocks.documents)


@pytest.mark.parametrize("name", ("gpt_neox", "llama", "mistral"))
def test_every_way_decodes_the_same_text_to_its_full_length_and_leaves_the_models_as_they_were(name):
    b, blocks, small = backbone(name), ranks_job.test_blocks(), backbone("gpt_neox")
    before = b.model.generation_config
    draftings = {"heads": Drafting("heads", (heads_arm(b),)), "lookup": Drafting("lookup")}
    found = speed.decoding_seconds(b, blocks, draftings, small, 2, 12, "a machine")
    ways = ["greedy", "heads", "lookup", "generate greedy", "generate lookup", "generate assistant"]
    assert [n.removesuffix(".seconds") for n in found if n.endswith(".seconds")] == ways
    assert all((found[f"{way}.same"] == 1).all() and (found[f"{way}.seconds"] > 0).all() for way in ways)
    assert (found["generate greedy.passes"] == 12).all() and (found["greedy.passes"] == 12).all()
    assert (found["heads.passes"] <= 12).all() and (found["generate assistant.passes"] <= 12).all()
    assert b.model.generation_config is before
    table = speed_tables.speed_table(Arrays(found, ""), b.name, "prose", 12)
    plain = table[table.way == "greedy"]
    assert np.allclose(plain["greedy_ratio"], 1) and np.allclose(plain["passes_a_token"], 1)
    steps, (v, d, p) = (
        found["heads.passes"].sum() - 2,
        (found[f"{x}"].sum() for x in ("heads.verify", "heads.draft", "greedy.verify")),
    )
    costs = speed_tables.costs(Arrays(found, ""), "heads", 1.7)
    assert np.isclose(costs["predicted"], 1.7 / ((v / steps + d / steps) / (p / 22)))
    assert np.isclose(costs["predicted"], costs["length"] / (costs["verify"] + costs["draft"]))


def test_an_assistant_that_is_the_model_itself_has_all_its_drafts_accepted():
    b, blocks = backbone("llama"), ranks_job.test_blocks()
    b.model.generation_config.no_repeat_ngram_size = 2  # settings of a model's own change neither side
    found = speed.decoding_seconds(b, blocks, {}, copy.deepcopy(b), 2, 13, "a machine")
    assert (found["generate assistant.same"] == 1).all() and (found["greedy.same"] == 1).all()
    assert (found["generate assistant.passes"] <= 13 / (speed.DEPTH + 1) + 1).all()


def test_ways_of_transformers_that_it_refuses_are_left_out_with_its_reason_and_the_others_are_timed():
    b, blocks, recurrent = backbone("llama"), ranks_job.test_blocks(), backbone("mamba")
    assert speed.refused(b, None) == {} and speed.refused(b, b) == {}
    found = speed.refused(recurrent, recurrent)
    assert set(found) == {"generate lookup", "generate assistant"} and "not supported with stateful models" in min(found.values())
    why = speed.refused(b, recurrent)
    assert set(why) == {"generate assistant"} and "\n" not in why["generate assistant"]
    seconds = speed.decoding_seconds(b, blocks, {}, recurrent, 1, 6, "a machine")
    ways = [name.removesuffix(".seconds") for name in seconds if name.endswith(".seconds")]
    assert ways == ["greedy", "generate greedy", "generate lookup"]
    assert b.model.generation_config.num_assistant_tokens != speed.DEPTH  # as before


def test_a_model_that_cannot_verify_drafts_is_refused_before_anything_is_measured(monkeypatch):
    b, blocks = backbone("mamba"), ranks_job.test_blocks()
    monkeypatch.setattr(speed, "draft_and_verify", lambda *_: pytest.fail("too late"))
    monkeypatch.setattr(speed.ranks, "first", lambda: False)  # in every process, or the others wait for ever
    for call in (
        lambda: speed.acceptance_table(b, blocks, Drafting("lookup"), 2, 4),
        lambda: speed.decoding_seconds(b, blocks, {}, None, 1, 4, "a machine"),
    ):
        with pytest.raises(CannotDo, match="cannot be rolled back"):
            call()


def test_prompts_are_shortened_where_the_model_has_no_positions_left_for_new_tokens_and_that_is_said():
    b, blocks = backbone(), ranks_job.test_blocks()
    b.model.config.max_position_embeddings = 7  # prompts are of five tokens
    with pytest.warns(UserWarning, match="reads 7 tokens: prompts have at most 3"):
        table = speed.acceptance_table(b, blocks, Drafting("marginal"), 2, 4)
    assert set(table["document"]) == {"d0", "d1"}
    assert [x.tolist() for x in speed.prompts_of(blocks, 2, 3)[1]] == [x[2:].tolist() for x in speed.prompts_of(blocks, 2)[1]]


def test_rates_are_ratios_of_sums_and_their_intervals_those_of_drawn_documents():
    b, blocks = backbone(), ranks_job.test_blocks()
    passes = speed.acceptance_table(b, blocks, Drafting("heads", (heads_arm(b, kind="linear"),)), 9, 9)
    found = speed_tables.acceptance_summary(passes, ["corpus"]).set_index(["metric", "offset"])
    pooled = acceptance(passes).set_index("offset")
    for k in (2, 3, 4):
        assert np.isclose(found.loc[("a", k), "value"], pooled.loc[k, "a"])
        assert np.isclose(found.loc[("stand_alone", k), "value"], pooled.loc[k, "stand_alone"])
    length = found.loc[("length", 0)]
    assert np.isclose(length["value"], mean_acceptance_length(passes)) and length["ci_low"] < length["value"] < length["ci_high"]
    assert speed_tables.ratio_interval(np.array([1.0, 1, 1]), np.array([2.0, 2, 2])) == (0.5, 0.5, 0.5)
    assert np.isnan(speed_tables.ratio_interval(np.zeros(3), np.zeros(3))).all()


def test_how_many_times_as_fast_is_a_geometric_mean_over_prompts():
    ratio = pd.DataFrame({"a": [4.0, 1.0, 2.0], "theirs": [1.0, 1.0, 1.0]})
    value, low, high = speed_tables.against(ratio, "a", "theirs")
    assert np.isclose(value, 2.0) and low < value < high
    assert speed_tables.against(ratio, "theirs", "theirs") == (1.0, 1.0, 1.0)


def test_the_link_is_the_rank_correlation_within_each_cell():
    rng = np.random.default_rng(0)
    quality = np.arange(5)[:, None] / 5
    cells = {}
    for corpus in ("a", "b"):
        passes = np.full((5, 40), 10.0)
        accepted = rng.binomial(10, np.broadcast_to(0.2 + 0.6 * quality, passes.shape)).astype(float)
        good = 5 - 5 * quality + rng.normal(0, 0.1, passes.shape)
        cells["x", corpus] = {"accepted": accepted, "passes": passes, "good": good, "noise": rng.normal(size=passes.shape)}
    table, draws = speed_tables.link(cells, ("good", "noise"))
    by_hand = stats.spearmanr(cells["x", "a"]["good"].mean(1), cells["x", "a"]["accepted"].sum(1)).statistic
    assert np.isclose(table["good"].iloc[0], by_hand) and (table["good"] < -0.9).all()
    assert np.quantile(draws[:, 0], 0.975) < -0.8 and np.ptp(draws[:, 1]) > 0.3


def test_prompts_end_at_the_position_that_is_scored():
    blocks = ranks_job.test_blocks()
    documents, prompts = speed.prompts_of(blocks, 3)
    assert documents == ["d0", "d1", "d2"] and [len(p) for p in prompts] == [5, 5, 5]
    assert torch.equal(prompts[1], blocks.tokens[1, :5])


def test_another_drafter_is_another_measurement():
    b = backbone()
    one, other = heads_arm(b), heads_arm(b, kind="linear")
    prints = {
        Drafting(*given).fingerprint for given in (("lookup",), ("heads", (one,)), ("heads", (other,)), ("heads", (one,), (2,)))
    }
    assert len(prints) == 4
    done = speed.acceptance_table(b, ranks_job.test_blocks(), Drafting("lookup"), 2, 4)
    assert len(done) and greedy_decode(b.model, torch.tensor([1, 2]), 2).shape == (2,)
