"""The dose-response: where the grammar's text is free, how free it is, and what is made of it."""

import numpy as np
import pandas as pd
import pytest

from mtp_utils.backbones.load import load_backbone
from mtp_utils.findings import doses, measures, scoring
from mtp_utils.text import blocks
from mtp_utils.text.grammar import translation


@pytest.fixture(scope="module")
def tokenizer():
    return load_backbone("ladder/w16", device="cpu").tokenizer


@pytest.fixture(scope="module")
def free(tokenizer):
    size = {"n_documents": 9, "positions_per_document": 1, "horizon": 4}
    return doses.free_blocks(blocks.evaluation_blocks("translation", "test", tokenizer, **size), tokenizer)


def test_what_is_free_is_the_beginning_of_the_last_english_sentence(free, tokenizer):
    known = {d.id: d for d in blocks.corpora.documents("translation", "test")}
    assert free.scored.sum(1).tolist() == [3] * 9 and free.corpus == "english"
    for row, name in enumerate(free.documents):
        sentence = known[name].pairs[-1].english
        for n, t in enumerate(free.scored[row].nonzero()[:, 0].tolist()):
            read = tokenizer.decode(free.tokens[row, t + 1 - n : t + 1])
            assert tokenizer.decode(free.tokens[row, : t + 1]).endswith("\n\n" + read)
            assert (sentence + "\n").startswith(read + tokenizer.decode(free.tokens[row, t + 1 : t + 3]))


def test_where_the_window_ends_before_the_last_sentence_it_is_the_one_before(tokenizer):
    size = {"n_documents": 200, "positions_per_document": 1, "horizon": 4}
    many = blocks.evaluation_blocks("translation", "test", tokenizer, **size)
    free = doses.free_blocks(many, tokenizer)
    first = free.scored.int().argmax(1)
    assert free.scored.sum(1).eq(3).all() and (first + 2 + 4 < free.mask.sum(1)).all() and (first > 31).all()
    assert (free.mask.sum(1) == 256).any()  # longer than the window


def test_the_truth_is_what_follows_in_sentences_that_begin_so(free, tokenizer, monkeypatch):
    labels = scoring.Labels(measures.label_table(free, {}))
    sentences = iter(["The old man sees a dog.", "The old man sees a cat.", "The new man sees a cat.", "We see a dog."] * 500)

    class Drawn:
        def __init__(self, english):
            self.english = english

    monkeypatch.setattr(translation, "sample_pair", lambda rng, rate: Drawn(next(sentences)))
    table = doses.free_truth(scoring.Tokenizer(tokenizer), free, labels, 2000)
    none_known = table.groupby("document", sort=False).first()
    assert len(none_known) == 9 and len(table) <= 27
    second = [tokenizer("\n" + s, add_special_tokens=False)["input_ids"][2] for s in ("The old man", "The new man", "We see a")]
    assert len(set(second)) == 3
    p = np.array([1, 1 / 2, 1 / 2]) / 2
    assert none_known["entropy"].to_numpy() == pytest.approx(-(p * np.log(p)).sum() + 2 / 4000)
    t = int(free.scored[0].int().argmax())
    ids = second.index(int(free.tokens[0, t + 2])) if int(free.tokens[0, t + 2]) in second else None
    wanted = (2000 * (p[ids] if ids is not None else 0) + 1 / blocks.vocabulary_of(tokenizer)) / 2001
    assert none_known["log_prob"].iloc[0] == pytest.approx(np.log(wanted))


def test_by_the_grammar_itself_positions_differ_by_nats_and_its_answer_costs_its_entropy(free, tokenizer):
    labels = scoring.Labels(measures.label_table(free, {}))
    table = doses.free_truth(scoring.Tokenizer(tokenizer), free, labels, 3000)
    assert table["entropy"].max() > 3.5 and table["entropy"].max() - table["entropy"].min() > 1
    assert (table["log_prob"] <= 0).all() and len(table) >= 12


def test_positions_fall_into_bins_of_their_true_entropy_and_unknown_ones_into_none():
    keys = {"corpus": "english", "document": ["a", "b", "c"], "position": 5}
    truth = pd.DataFrame({**keys, "backbone": "grammar", "log_prob": -1.0, "top1": 1.0, "entropy": [0.1, 3.0, 3.2]})
    ours = pd.DataFrame({**keys, "backbone": "w", "log_prob": [-1.0, -4.0, -6.0], "top1": 0.0})
    other = ours.assign(document="d").head(1)
    table = doses.by_dose(pd.concat([ours, other]), truth)
    rows = table[(table.backbone == "w") & (table.metric == "cross_entropy")]
    assert rows["dose"].tolist() == pytest.approx([0.1, 3.1]) and rows["value"].tolist() == [1.0, 5.0]
    assert rows["n_documents"].tolist() == [1, 2] and set(table["backbone"]) == {"w", "grammar"}
