"""Counting as a drafter: the control of notebook 01, asked along the base model's own text."""

import numpy as np

from mtp_utils.backbones.load import load_backbone
from mtp_utils.findings import acceptance, controls, counted_drafts
from mtp_utils.findings.counting import CACHED, Counts
from mtp_utils.findings.scoring import Tokenizer
from mtp_utils.findings.speed import Drafting, prompts_of
from mtp_utils.text import blocks


def test_it_is_heard_where_other_drafters_are_and_says_what_the_control_says():
    backbone = load_backbone("ladder/w32", device="cpu")
    tokenizer, given = Tokenizer(backbone.tokenizer), {"n_prompts": 3, "new_tokens": 12}
    text = blocks.evaluation_blocks("translation", "test", backbone.tokenizer, n_documents=3, positions_per_document=1, horizon=4)
    found = counted_drafts.counted_heard_table(backbone, tokenizer, text, **given, split="validation", text="")
    heard, keys = acceptance.heard_table(backbone, text, Drafting("lookup"), **given), ["corpus", "document", "token"]
    assert found[keys].equals(heard[keys]) and found.columns.isin(heard.columns).all()
    ranks = found[acceptance.RANKS].to_numpy()
    assert 0 < (ranks == 0).mean() < 1 and ranks.max() <= 8
    documents, prompts = prompts_of(text, 3)
    done = acceptance.draft_and_verify(backbone.model, None, prompts, 12, eos_token_id=None)
    read = [f("translation", "validation", backbone.tokenizer) for f in (blocks.stream, blocks.begins)]
    for k in (2, 4):
        model = controls.counted(tokenizer, text, "validation", "", k)[1][CACHED]
        for document, prompt, new in zip(documents, prompts, done.tokens, strict=True):
            prefixes = [np.concatenate([prompt.numpy(), new.numpy()[:i]]) for i in range(len(new) - 4)]
            labels = np.array([[new[i + k - 1]] for i in range(len(prefixes))])
            scores = Counts(*read, prefixes, k, len(backbone.tokenizer)).scores(labels, {CACHED: model})[CACHED]
            mine = found[found.document == document][f"rank{k}"].to_numpy()
            assert ((mine == 0) == scores["top1"][:, 0]).all() and ((mine < 5) == scores["top5"][:, 0]).all()


def test_ranks_below_the_width_are_those_of_the_probabilities_written_out():
    rng = np.random.default_rng(0)
    stream, begins, size = rng.zipf(1.3, 4000).clip(max=40).astype(np.int64) - 1, np.array([0, 900, 2000]), 40
    prefixes = [rng.integers(0, size, 9) for _ in range(40)]
    labels = stream[:40]
    for order, weight in ((1, 0.0), (2, 4.0), (3, 64.0)):
        found = counted_drafts.RankedCounts(stream, begins, prefixes, 2, size).ranks(labels, order, weight)
        every = np.tile(np.arange(size), (40, 1))
        p = Counts(stream, begins, prefixes, 2, size).scores(every, {"m": (order, weight)})["m"]["log_prob"]
        own = p[range(40), labels]
        true = ((p > own[:, None]) | ((p == own[:, None]) & (every < labels[:, None]))).sum(1)
        assert (found.clip(max=8) == true.clip(max=8)).all() and len(set(true[true < 8])) > 4


def test_where_no_pass_is_whole_nothing_is_heard():
    backbone = load_backbone("ladder/w16", device="cpu")
    text = blocks.evaluation_blocks("prose", "test", backbone.tokenizer, n_documents=1, positions_per_document=1, horizon=4)
    found = counted_drafts.counted_heard_table(backbone, Tokenizer(backbone.tokenizer), text, 1, 2, "validation", "")
    assert found.empty and {"corpus", "document", "token", *acceptance.RANKS} == set(found.columns)
