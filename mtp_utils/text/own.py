"""The user's own text (--text): cut into documents of about a window."""

import re
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from ..base import profiles
from ..base.files import sha256
from .documents import PIECE, SPLITS, Document, unit

MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
UNREADABLE = 0.01  # of the bytes, above which a file is in another encoding
SHARES = {"pretrain": 0.25, "heads": 0.45, "validation": 0.05, "test": 0.25}  # of the documents, by split


@lru_cache(maxsize=2)
def text_of(path: str, stamp: tuple) -> tuple[tuple[str, ...], str]:
    """The pieces of a text file, about PIECE characters each and every one once, cut between paragraphs, else lines, else words,
    and the sha256 of the file. Raises ValueError as `decoded`."""
    data = Path(path).read_bytes()
    pieces, waiting = [], ""
    for part in _cut(decoded(data, path).replace("\r\n", "\n").replace("\r", "\n")):
        waiting += part
        if len(waiting) >= PIECE:
            pieces.append(waiting)
            waiting = ""
    return tuple(dict.fromkeys(p for p in (*pieces, waiting) if p.strip())), sha256(data)


def decoded(data: bytes, path: str) -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 with its mark; a few bytes that are none become U+FFFD.

    Raises ValueError where it holds NULs, or more than UNREADABLE of its bytes are no UTF-8: with the likely encoding.
    """
    marked = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    try:
        text = data.decode(marked or "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0" if marked else data.decode("utf-8-sig", errors="replace")
    bad = text.count("\ufffd") - data.count("\ufffd".encode())
    if "\0" not in text and bad <= UNREADABLE * max(1, len(data)):
        return text
    likely = f"broken {marked}" if marked else "Latin-1 or Windows-1252"
    if not marked and 0 in data:
        odd, even = data[1::2].count(0), data[::2].count(0)
        many = max(odd, even) > len(data) / 8
        likely = f"UTF-16{'LE' if odd > even else 'BE'} without its mark" if many else "no text"
    raise ValueError(f"--text {path} is no UTF-8; it looks like {likely}: convert it (iconv -f FROM -t UTF-8)")


def _cut(text: str, separators: tuple[str, ...] = ("\n\n", "\n", " ", "")):
    """Stretches of at most PIECE characters that make up the text, cut at the first separator that serves."""
    first, *others = separators
    if not first:
        yield from (text[i : i + PIECE] for i in range(0, len(text), PIECE))
        return
    for part in re.split(f"(?<={first})", text):
        if len(part) > PIECE:
            yield from _cut(part, tuple(others))
        elif part:
            yield part


def pieces() -> tuple[tuple[str, ...], str]:
    """`text_of` of the file that --text named. Raises ValueError where it is none."""
    path = profiles.own_of()["text"]
    if not path or not Path(path).is_file():
        raise ValueError(f"the corpus {profiles.TEXT!r} is the file given by --text; {path or 'none was given'} is no file")
    stat = Path(path).stat()
    return text_of(path, (stat.st_mtime_ns, stat.st_size))


def documents(split: str) -> list[Document]:
    edges, found = dict(zip(SPLITS, accumulate(SHARES.values()), strict=True)), []
    for i, piece in enumerate(pieces()[0]):
        u = unit("own/" + piece)
        if split == next(name for name in SPLITS if u < edges[name] or name == SPLITS[-1]):
            found.append(Document(f"text#{i}", piece, f"text#{i}", ((0, len(piece)),)))
    return found
