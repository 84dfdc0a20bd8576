"""Named text sources, each as documents in four splits.

`translation` is generated (generated.py); `code` and `prose` are read from the installed packages (packages.py), so nothing is
downloaded or redistributed; `catalogues` are translations by people (catalogues.py), `text` is the user's own (own.py); profiles
of the hub read theirs (hub.py). Splits are by whole file (by sentence pair for translation) through a hash of its path, so a
held-out file is never trained on, whatever the versions.
Evaluation files are listed with their sha256 in corpora.json; where an installation differs, `freezing.differences` says so.
"""

import json
from functools import lru_cache

from ..base import paths, profiles
from . import catalogues, generated, hub, own, packages
from .documents import SPLITS, Document

CORPORA, TEXT = profiles.CORPORA, profiles.TEXT
KNOWN = tuple(dict.fromkeys((*CORPORA, TEXT, *profiles.HUB_CORPORA, *profiles.PEOPLE_CORPORA)))


def documents(corpus: str, split: str) -> list[Document]:
    """All documents of one corpus and split, in a fixed order, without those left out for what they share with training.
    Raises ValueError for unknown names."""
    for value, known, what in ((corpus, KNOWN, "corpus"), (split, SPLITS, "split")):
        if value not in known:
            raise ValueError(f"unknown {what} {value!r}; there are: {', '.join(known)}")
    dropped = set(frozen().get("dropped", {}).get(corpus, ())) if split in ("validation", "test") and embedded(corpus) else ()
    return [d for d in all_documents(corpus, split) if d.id not in dropped]


def all_documents(corpus: str, split: str) -> list[Document]:
    """As `documents`, with those left out."""
    if corpus == TEXT:
        return own.documents(split)
    if corpus == "catalogues":
        return catalogues.documents(split)
    if profiles.own_of()["hub"]:
        return hub.documents(corpus, split)
    return generated.documents(split) if corpus == "translation" else packages.documents(split)[corpus]


def embedded(corpus: str) -> bool:
    """Whether a corpus is one of those that come with the package, with frozen digests and a list of what was left out."""
    return corpus in CORPORA and not profiles.own_of()["hub"]


def names() -> tuple[str, ...]:
    """The corpora of this run: the embedded ones, translations by people among them or not, the hub's, or the user's text."""
    given = profiles.own_of()
    if given["text"]:
        return (TEXT,)
    return profiles.HUB_CORPORA if given["hub"] else profiles.PEOPLE_CORPORA if given["people"] else CORPORA


@lru_cache(maxsize=1)
def frozen() -> dict:
    """What `freezing.freeze` wrote: packages, dropped, remaining_overlap, evaluation, training; {} before the first freeze."""
    return json.loads(paths.FROZEN.read_text(encoding="utf-8")) if paths.FROZEN.exists() else {}
