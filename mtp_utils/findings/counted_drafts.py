"""Counting as a drafter: what notebook 01's cache n-gram model would offer along the base model's own text."""

import numpy as np
import pandas as pd

from ..backbones.load import Backbone
from ..base import ranks
from ..decoding import expected
from ..decoding.decode import draft_and_verify
from ..text import blocks as blocks_module
from ..text.tokens import vocabulary_of
from . import controls, speed
from .acceptance import RANKS, WIDTH
from .counting import CACHED, Counts
from .scoring import Tokenizer
from .speed import DEPTH

NAME = "cache n-gram"


class RankedCounts(Counts):
    """Counts that say which number a token has: ranks below WIDTH are exact."""

    def __init__(self, *given):
        super().__init__(*given)
        self._often = np.argsort(-self.unigram, kind="stable")[:WIDTH]

    def ranks(self, labels: np.ndarray, order: int, weight: float) -> np.ndarray:
        """Of each query's label (Q,) how many tokens are likelier by that model, or as likely with a lower id."""
        found = np.empty(len(labels), np.int64)
        for q, label in enumerate(labels):
            tokens, counts, own = self._at(q, labels[q : q + 1])
            p, at = self._chains(counts, own, [(order, weight)])[weight][order], np.searchsorted(tokens, label)
            found[q] = ((p > p[at]) | ((p == p[at]) & (tokens < label))).sum()
        return found


def counted_heard_table(
    backbone: Backbone, tokenizer: Tokenizer, blocks, n_prompts: int, new_tokens: int, split: str, text: str
) -> pd.DataFrame:
    """As acceptance.heard_table, greedy, of the cache n-gram model: of the tokens two and more ahead of each prefix, the token
    between not known, as notebook 01 asks it. text: the digest of the split that is counted."""
    asked = []
    for rows, prompts, options in speed.batches(backbone, blocks, n_prompts, new_tokens, "counting drafts of"):
        done = draft_and_verify(backbone.model, None, prompts, new_tokens, **options)
        for (_, document), prompt, new in zip(rows, prompts, done.tokens, strict=True):
            whole = np.concatenate([prompt.cpu().numpy(), new.cpu().numpy()])
            passes = expected.whole_passes(new, DEPTH, options["eos_token_id"])
            asked += [(document, n, whole[: len(prompt) + i], later.numpy()) for n, (i, later) in enumerate(passes)]
    asked = [one for share in ranks.gather(asked) for one in share]
    if not asked:
        return pd.DataFrame(columns=["document", "token", *RANKS, "corpus"])
    documents, tokens, prefixes, later = zip(*asked, strict=True)
    found = {"document": documents, "token": tokens}
    read = [f(blocks.corpus, split, tokenizer.tokenizer) for f in (blocks_module.stream, blocks_module.begins)]
    for k in range(2, DEPTH + 2):
        order, weight = controls.counted(tokenizer, blocks, split, text, k)[1][CACHED]
        counts = RankedCounts(*read, list(prefixes), k, vocabulary_of(tokenizer.tokenizer))
        found[RANKS[k - 2]] = counts.ranks(np.array(later)[:, k - 2], order, weight).clip(max=WIDTH)
    return pd.DataFrame(found).assign(corpus=blocks.corpus)


def heard(run, backbone: Backbone, test: dict) -> pd.DataFrame:
    """counted_heard_table of all corpora, as acceptance.heard; counted is the split that the controls count."""
    frames, split, tokenizer = [], run.profile.control_split, Tokenizer(backbone.tokenizer)
    for corpus, blocks in test.items():
        given = {"n_prompts": run.profile.decoded(), "new_tokens": run.profile.new_tokens, "split": split}
        given["text"] = blocks_module.stream_digest(corpus, split, backbone.tokenizer)
        stem = f"06_counted_{backbone.name.replace('/', '-')}_{corpus}"
        given |= {"backbone": backbone, "tokenizer": tokenizer, "blocks": blocks}
        frames.append(run.measure(stem, counted_heard_table, **given))
    return pd.concat(frames, ignore_index=True).assign(drafter=NAME, temperature=0.0)
