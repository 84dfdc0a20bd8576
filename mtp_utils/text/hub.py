"""Texts of the hub: which, under which licence, and how their rows become documents. base/fetch.py gets them."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..base.fetch import fetch, lock_path
from ..base.files import read_json
from .documents import MIN_CHARS, PIECE, Document, side_by_side, split_of, unit

ROWS = 60_000  # of a dataset's files, at most
HEADS_SHARE = 0.3  # of its training part; the rest is counted by the controls


@dataclass(frozen=True)
class Source:
    """A dataset: its files by part (`train`, `validation`, `test`; or `all`, which is split by hash), the columns that are
    read, its licence, about how large the files are, and how rows become (text, spans that may be scored)."""

    repo: str
    files: dict[str, str]
    columns: tuple[str, ...]
    licence: str
    megabytes: int
    read: Callable[[list[dict]], Iterator[tuple[str, tuple]]]


def pairs(rows, at_once: int = 3) -> Iterator[tuple[str, tuple]]:
    """English and its German, some pairs a document; the German may be scored."""
    for start in range(0, len(rows) - at_once + 1, at_once):
        both = (row["translation"] for row in rows[start : start + at_once])
        yield side_by_side((row["en"], row["de"]) for row in both)


def lines(rows) -> Iterator[tuple[str, tuple]]:
    """Lines in order, joined to documents of about a window."""
    text = ""
    for row in rows:
        text += row["text"]
        if len(text) >= PIECE:
            yield text, ((0, len(text)),)
            text = ""


def answers(rows) -> Iterator[tuple[str, tuple]]:
    """An instruction, the passage it is about where there is one, and the answer, which may be scored."""
    for row in rows:
        asked = "\n\n".join(part for part in (row["instruction"], row["context"]) if part) + "\n\n"
        yield asked + row["response"] + "\n", ((len(asked), len(asked) + len(row["response"]) + 1),)


def files(rows) -> Iterator[tuple[str, tuple]]:
    """A source file each."""
    for row in rows:
        yield row["content"], ((0, len(row["content"])),)


WMT = {part: f"de-en/{part}-00000-of-*.parquet" for part in ("train", "validation", "test")}
WIKI = {part: f"wikitext-103-raw-v1/{part}-00000-of-*.parquet" for part in ("train", "validation", "test")}
SOURCES = {
    "translation": Source("wmt/wmt14", WMT, ("translation",), "as its parts, see statmt.org/wmt14", 300, pairs),
    "code": Source(
        "codeparrot/codeparrot-clean-valid", {"all": "*.json.gz"}, ("content",), "each repository's, in a column", 90, files
    ),
    "prose": Source("Salesforce/wikitext", WIKI, ("text",), "CC BY-SA 3.0 and GFDL", 160, lines),
    "instructions": Source(
        "databricks/databricks-dolly-15k",
        {"all": "databricks-dolly-15k.jsonl"},
        ("instruction", "context", "response"),
        "CC BY-SA 3.0",
        13,
        answers,
    ),
}


@functools.lru_cache(maxsize=4)
def rows_of(corpus: str, part: str) -> tuple[tuple[str, tuple], ...]:
    """(text, spans) of one part of a source."""
    import datasets

    source = SOURCES[corpus]
    folder = fetch(source.repo, "dataset", [source.files[part]])
    found = sorted(str(path) for path in folder.glob(source.files[part]))
    if not found:
        raise ValueError(f"the dataset {source.repo} at {folder.name} has no files {source.files[part]}: mend SOURCES in hub.py")
    kind = "parquet" if found[0].endswith(".parquet") else "json"
    rows = datasets.load_dataset(kind, data_files=found, split=f"train[:{ROWS}]")
    if missing := set(source.columns) - set(rows.column_names):
        raise ValueError(
            f"the dataset {source.repo} at {folder.name} has the columns {', '.join(rows.column_names)}; "
            f"{', '.join(sorted(missing))} would be read: mend SOURCES in hub.py"
        )
    return tuple(source.read(rows.select_columns(list(source.columns)).to_list()))


def fingerprint() -> list[str]:
    """The commits of all sources; one that is not written down yet is fetched for it."""
    lock = read_json(lock_path())
    known = {s.repo: lock.get(f"dataset {s.repo}") for s in SOURCES.values()}
    return [f"{s.repo} {known[s.repo] or fetch(s.repo, 'dataset', list(s.files.values())).name}" for s in SOURCES.values()]


def documents(corpus: str, split: str) -> list:
    """As corpora.documents, from the hub."""
    source = SOURCES[corpus]
    part = "all" if "all" in source.files else "train" if split in ("pretrain", "heads") else split
    found = []
    for i, (text, spans) in enumerate(rows_of(corpus, part)):
        name = f"{corpus}/{part}/{i}"
        by_hash = split_of(name) if part == "all" else "heads" if unit(name) < HEADS_SHARE else "pretrain"
        mine = split if part == split else by_hash
        if mine == split and len(text) >= MIN_CHARS:
            found.append(Document(name, text, name, spans))
    return found
