"""Which evaluation texts are left out for sharing text with training, and the digests of those that stay."""

import json
import re

from ..base import paths
from .corpora import CORPORA, all_documents, documents, frozen
from .documents import text_digest
from .packages import versions

MAX_OVERLAP = 0.10  # of a document's word 13-grams seen in training


def _grams(text: str, n: int = 13) -> set[int]:
    words = re.findall(r"\w+|[^\w\s]", text)
    return {hash(tuple(words[i : i + n])) for i in range(len(words) - n + 1)}


def freeze() -> dict:
    """Writes corpora.json: the evaluation documents that share over 10 % of their 13-grams with training (left
    out from then on), the sha256 of every evaluation file's text, and digests of the training text. Returns it."""
    found = {
        "packages": versions(),
        "dropped": {},
        "remaining_overlap": {},
        "evaluation": {},
        "training": {},
    }
    for corpus in CORPORA:
        training = documents(corpus, "pretrain") + documents(corpus, "heads")
        known = set().union(*(_grams(d.text) for d in training))
        shares = {
            d.id: len(g & known) / max(len(g), 1)
            for split in ("validation", "test")
            for d in all_documents(corpus, split)
            for g in [_grams(d.text)]
        }
        found["dropped"][corpus] = sorted(name for name, share in shares.items() if share > MAX_OVERLAP)
        kept = [share for share in shares.values() if share <= MAX_OVERLAP]
        found["remaining_overlap"][corpus] = round(sum(kept) / len(kept), 4)
        found["training"][corpus] = {s: text_digest(all_documents(corpus, s)) for s in ("pretrain", "heads")}
        found["evaluation"][corpus] = {}
        for split in ("validation", "test"):
            found["evaluation"][corpus].update(_cluster_digests(corpus, split))
    paths.FROZEN.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    frozen.cache_clear()
    return found


def _cluster_digests(corpus: str, split: str) -> dict[str, str]:
    if corpus == "translation":  # generated: one digest for the whole split
        return {split: text_digest(all_documents(corpus, split))}
    members = {}
    for d in all_documents(corpus, split):
        members.setdefault(d.cluster, []).append(d)
    return {name: text_digest(docs) for name, docs in members.items()}


def differences(corpus: str, split: str) -> list[str]:
    """Names of evaluation files whose text here differs from the frozen one (a package of another version): say so."""
    known, here = frozen()["evaluation"][corpus], _cluster_digests(corpus, split)
    return sorted(name for name, digest in here.items() if known.get(name) != digest)
