"""Counting as a drafter: the control of notebook 01, asked along the base model's own text."""

import numpy as np
import pytest

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


def test_a_rank_is_that_of_the_probabilities_written_out():
    stream, begins = np.array([1, 2, 3, 1, 2, 4, 1, 2, 3, 5], np.int64), np.array([0])
    prefix = np.array([5, 1, 2])
    counts = counted_drafts.RankedCounts(stream, begins, [prefix] * 3, 1, 6)
    assert counts.ranks(np.array([3, 4, 0]), 2, 0.0).tolist()[:2] == [0, 1]
    p = [np.exp(counts.scores(np.array([[w]] * 3), {"m": (2, 0.0)})["m"]["log_prob"][0, 0]) for w in range(6)]
    assert sum(p) == pytest.approx(1) and sorted(range(6), key=lambda w: -p[w])[:2] == [3, 4]
