"""Translations by people: which pairs of a catalogue are taken, what of a document may be scored, and in which split it is."""

import struct

import pytest

from mtp_utils.base import paths
from mtp_utils.text import catalogues
from mtp_utils.text.documents import SPLITS

GOOD = {f"The {i}th message says this.": f"Die {i}. Nachricht sagt das so." for i in range(400)}
BAD = {
    "Hello %(name)s, you are here": "Hallo %(name)s, Sie sind hier",
    "Please read the <b>whole</b> text": "Bitte lesen Sie den <b>ganzen</b> Text",
    "Too short": "Viel zu kurz",
    "See https://example.org for all of it": "Siehe https://example.org für alles",
}


def catalogue(messages: dict[str, str]) -> bytes:
    """A gettext catalogue (.mo) of those messages, written by hand: a header, two tables of lengths and places, the strings."""
    items = sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **messages}.items())
    sides = [[side[i].encode() for side in items] for i in (0, 1)]
    place, tables, strings = 28 + 16 * len(items), b"", b""
    for side in sides:
        for text in side:
            tables += struct.pack("<II", len(text), place + len(strings))
            strings += text + b"\0"
    return struct.pack("<7I", 0x950412DE, 0, len(items), 28, 28 + 8 * len(items), 0, 0) + tables + strings


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """One catalogue that is here already, so that nothing is fetched."""
    content = catalogue(GOOD | BAD | {"menu\x04The last one of all is here.": "Die letzte von allen ist hier."})
    monkeypatch.setenv("MTP_CACHE", str(tmp_path))
    folder = paths.models() / "catalogues"
    folder.mkdir(parents=True)
    (folder / "made-up-de.mo").write_bytes(content)
    row = {"licence": "none", "bytes": len(content), "sha256": "", "wheels": []}
    monkeypatch.setattr(catalogues, "rows", lambda: {"made-up": row})
    catalogues.pairs.cache_clear()
    yield
    catalogues.pairs.cache_clear()


def test_pairs_without_placeholders_markup_or_addresses_are_taken_once_each(made_up):
    found = dict(catalogues.pairs())
    assert found == GOOD | {"The last one of all is here.": "Die letzte von allen ist hier."}


def test_the_german_of_the_last_pairs_may_be_scored_and_the_first_ones_are_examples(made_up):
    german = {de for _, de in catalogues.pairs()}
    for split in SPLITS:
        for d in catalogues.documents(split):
            scored = [d.text[a:b] for a, b in d.spans]
            assert len(scored) == catalogues.PAIRS - catalogues.EXAMPLES and d.text.count("\n\n") == catalogues.PAIRS
            assert all(part.endswith("\n") and part[:-1] in german for part in scored)
            assert d.spans[0][0] > d.text.index("\n\n") and d.text.endswith(scored[-1] + "\n")


def test_every_document_is_in_one_split_and_no_pair_in_two_documents(made_up):
    found = [d for split in SPLITS for d in catalogues.documents(split)]
    assert len(found) == len(catalogues.pairs()) // catalogues.PAIRS == len({d.id for d in found})
    lines = [line for d in found for line in d.text.split("\n") if line]
    assert len(lines) == len(set(lines))
    assert len(catalogues.documents("test")) > len(catalogues.documents("validation")) > 0


def test_every_catalogue_says_its_licence_and_where_it_comes_from():
    for row in catalogues.rows().values():
        assert row["licence"] and row["terms"].startswith("https://") and row["bytes"] > 10**5 and len(row["sha256"]) == 64
