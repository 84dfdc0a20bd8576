"""What is measured of decoding: the same passes however rows are batched, whole texts for the clock, ratios by arithmetic."""

from types import SimpleNamespace

import numpy as np
import pytest
import ranks_job
import torch
from tiny_models import tiny_backbone

from mtp_utils import speed
from mtp_utils.decoding import greedy_decode, speed_up
from mtp_utils.heads import Heads, HeadSpec
from mtp_utils.records import Arrays
from mtp_utils.speed import Drafting


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


@pytest.mark.parametrize("name", ("gpt_neox", "llama"))
def test_every_way_decodes_the_same_text_to_its_full_length_and_leaves_the_models_as_they_were(name):
    b, blocks, small = backbone(name), ranks_job.test_blocks(), backbone("gpt_neox")
    before = b.model.generation_config
    draftings = {"heads": Drafting("heads", (heads_arm(b),)), "lookup": Drafting("lookup")}
    found = speed.decoding_seconds(b, blocks, draftings, small, 2, 12)
    ways = ["greedy", "heads", "lookup", "generate greedy", "generate lookup", "generate assistant"]
    assert [n.removesuffix(".seconds") for n in found if n.endswith(".seconds")] == ways
    assert all((found[f"{way}.same"] == 1).all() and (found[f"{way}.seconds"] > 0).all() for way in ways)
    assert (found["generate greedy.passes"] == 12).all() and (found["greedy.passes"] == 12).all()
    assert (found["heads.passes"] <= 12).all() and (found["generate assistant.passes"] <= 12).all()
    assert b.model.generation_config is before
    table = speed.speed_table(Arrays(found, ""), b.name, "prose", 12)
    plain = table[table.way == "greedy"]
    assert np.allclose(plain["greedy_ratio"], 1) and np.allclose(plain["tokens_a_pass"], 1)
    drafted = table[table.way == "heads"]["expected"].to_numpy()
    steps = found["heads.passes"] - 1
    by_hand = [
        speed_up(11 / n, v / n, d / n, p / 11)
        for n, v, d, p in zip(steps, found["heads.verify"], found["heads.draft"], found["greedy.verify"], strict=True)
    ]
    assert np.allclose(drafted, by_hand)


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
