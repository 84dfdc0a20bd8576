"""What a text is: a document with its cluster and the characters that count, and the split it belongs to."""

import hashlib
from dataclasses import dataclass

SPLITS = ("pretrain", "heads", "validation", "test")
MIN_CHARS = 200
PIECE = 1500  # characters of a document that is cut or joined to that size, about a window of tokens


@dataclass(frozen=True)
class Document:
    """One text. `cluster` is the unit of resampling (the file, or the block of pairs); `spans` are the character ranges
    whose tokens may be scored (all of it for code and prose, the German sides for translation)."""

    id: str
    text: str
    cluster: str
    spans: tuple[tuple[int, int], ...]
    rate: float | None = None
    pairs: tuple = ()


def unit(text: str) -> float:
    return int(hashlib.sha256(text.encode()).hexdigest()[:13], 16) / 16**13


def split_of(path: str) -> str:
    u = unit("split/" + path)
    return "pretrain" if u < 0.76 else "heads" if u < 0.84 else "validation" if u < 0.88 else "test"


def side_by_side(pairs) -> tuple[str, tuple]:
    """Sentences, each with its translation on the line behind it, as one text, and the spans of the translations."""
    text, spans = "", []
    for sentence, translation in pairs:
        text += sentence + "\n"
        spans.append((len(text), len(text) + len(translation) + 1))
        text += translation + "\n\n"
    return text, tuple(spans)


def text_digest(docs: list[Document]) -> str:
    """sha256 over ids and texts, in order."""
    digest = hashlib.sha256()
    for d in docs:
        digest.update(f"{d.id}\0{d.text}\0".encode())
    return digest.hexdigest()
