"""Named text sources: documents in four splits, and blocks of tokens with the positions that count.

`translation` is generated (see translation.py); `code` and `prose` are read from the installed packages, so nothing is
downloaded or redistributed. Splits are by whole file (by sentence pair for translation) through a hash of its path, so a
held-out file is never trained on, whatever the versions. Evaluation files are listed with their sha256 in
`ladder/corpora.json`; where an installation differs, `differences` says so.
"""

import ast
import hashlib
import importlib.util
import inspect
import json
import random
import re
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path

from . import hub, paths, profiles, translation

CORPORA, TEXT = profiles.CORPORA, profiles.TEXT
KNOWN = tuple(dict.fromkeys((*CORPORA, TEXT, *profiles.HUB_CORPORA)))
SPLITS = ("pretrain", "heads", "validation", "test")
MAX_OVERLAP = 0.10  # of a document's word 13-grams seen in training
RATES = (0.0, 0.25, 0.5)  # free choice in the translation documents; the first line of each states it
PACKAGES = (
    "accelerate",
    "datasets",
    "matplotlib",
    "mpmath",
    "networkx",
    "numpy",
    "pandas",
    "peft",
    "scipy",
    "seaborn",
    "sympy",
    "torch",
    "transformers",
)
NOT_EVERYWHERE = {"version.py", "_version.py", "__config__.py"}  # differ between platforms or builds
# Share of the files, by hash: more training source than this is not needed at this budget.
CODE_SHARE = {"pretrain": 0.25, "heads": 0.6, "validation": 0.6, "test": 0.6}
PAIRS_PER_DOCUMENT = 3  # about 210 tokens: a document fits one window
MIN_CHARS = 200
N_TRANSLATION = {"pretrain": 20_400, "heads": 2_100, "validation": 450, "test": 900}  # documents
PIECE = 1500  # characters of a document of the user's text, about a window of tokens
OWN_SHARES = {"pretrain": 0.25, "heads": 0.45, "validation": 0.05, "test": 0.25}  # of those documents
STRING_OR_COMMENT = re.compile(
    r'("""(?:\\.|[^\\])*?"""|\'\'\'(?:\\.|[^\\])*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')'
    r"|[ \t]*#[^\n]*",
    re.DOTALL,
)


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


def documents(corpus: str, split: str) -> list[Document]:
    """All documents of one corpus and split, in a fixed order. Raises ValueError for unknown names."""
    for value, known, what in ((corpus, KNOWN, "corpus"), (split, SPLITS, "split")):
        if value not in known:
            raise ValueError(f"unknown {what} {value!r}; there are: {', '.join(known)}")
    dropped = set(frozen().get("dropped", {}).get(corpus, ())) if split in ("validation", "test") and embedded(corpus) else ()
    return [d for d in _all_documents(corpus, split) if d.id not in dropped]


def embedded(corpus: str) -> bool:
    """Whether a corpus is one of those that come with the package, with frozen digests and a list of what was left out."""
    return corpus in CORPORA and not profiles.own_of()["hub"]


def names() -> tuple[str, ...]:
    """The corpora of this run: the embedded ones, those of the hub, or the user's text alone."""
    given = profiles.own_of()
    return (TEXT,) if given["text"] else profiles.HUB_CORPORA if given["hub"] else CORPORA


@lru_cache(maxsize=2)
def own_text(path: str, stamp: tuple) -> tuple[tuple[str, ...], str]:
    """The pieces of a text file, about PIECE characters each and every one once, cut between paragraphs, else lines, else words,
    and the sha256 of the file. Bytes that are no UTF-8 become U+FFFD."""
    data = Path(path).read_bytes()
    pieces, waiting = [], ""
    for part in _cut(data.decode("utf-8-sig", errors="replace").replace("\r\n", "\n")):
        waiting += part
        if len(waiting) >= PIECE:
            pieces.append(waiting)
            waiting = ""
    return tuple(dict.fromkeys(p for p in (*pieces, waiting) if p.strip())), hashlib.sha256(data).hexdigest()


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


def own_pieces() -> tuple[tuple[str, ...], str]:
    """`own_text` of the file that --text named. Raises ValueError where it is none."""
    path = profiles.own_of()["text"]
    if not path or not Path(path).is_file():
        raise ValueError(f"the corpus {TEXT!r} is the file given by --text; {path or 'none was given'} is no file")
    stat = Path(path).stat()
    return own_text(path, (stat.st_mtime_ns, stat.st_size))


def _own_documents(split: str) -> list[Document]:
    edges, found = dict(zip(SPLITS, accumulate(OWN_SHARES.values()), strict=True)), []
    for i, piece in enumerate(own_pieces()[0]):
        u = unit("own/" + piece)
        if split == next(name for name in SPLITS if u < edges[name] or name == SPLITS[-1]):
            found.append(Document(f"text#{i}", piece, f"text#{i}", ((0, len(piece)),)))
    return found


def _all_documents(corpus: str, split: str) -> list[Document]:
    if corpus == TEXT:
        return _own_documents(split)
    if profiles.own_of()["hub"]:
        return hub.documents(corpus, split)
    return _translation(split) if corpus == "translation" else _from_packages(split)[corpus]


@lru_cache(maxsize=len(SPLITS))
def _translation(split: str) -> list[Document]:
    """Blocks of sentence pairs of one split, each at one rate of free choice, named in its first line."""
    found = []
    for seed, rate in enumerate(RATES):
        rng, waiting, wanted = random.Random(seed), [], N_TRANSLATION[split] // len(RATES)
        while wanted:
            pair = translation.sample_pair(rng, rate)
            if translation.split_of(pair) == split:
                waiting.append(pair)
            if len(waiting) == PAIRS_PER_DOCUMENT:
                found.append(_pair_block(f"{split}/{rate:g}/{wanted:05d}", rate, tuple(waiting)))
                waiting, wanted = [], wanted - 1
    return found


def _pair_block(name: str, rate: float, pairs: tuple) -> Document:
    text, spans = f"{rate:.0%} free\n\n", []
    for pair in pairs:
        text += pair.english + "\n"
        spans.append((len(text), len(text) + len(pair.german) + 1))  # with the line's end
        text += pair.german + "\n\n"
    return Document(name, text, name, tuple(spans), rate, pairs)


def source_files() -> list[tuple[str, Path]]:
    """(name, path) of the packages' Python files that are the same on every platform; tests, copies and data left out."""
    found = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise RuntimeError(f"the package {package}, part of the corpora, is not installed; run ./reproduce.sh setup")
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root.parent).as_posix()
            if (
                path.name in NOT_EVERYWHERE
                or re.search(r"(^|/)(tests?|testing|_?vendored?|serialized_patterns)/|(^|/)test_|conftest", name)
                or name.startswith("transformers/models/")
                or path.stat().st_size > 150_000
            ):
                continue
            found.append((name, path))
    return found


@lru_cache(maxsize=len(SPLITS))
def _from_packages(split: str) -> dict[str, list[Document]]:
    """corpus -> documents of at least MIN_CHARS in one split, each text once (the first path in order keeps it; what a
    held-out text shares with training is `freeze`'s business)."""
    found, seen = {"code": [], "prose": []}, set()
    for name, path in source_files():
        if split_of(name) != split:
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError, ValueError):  # templates and samples in other encodings
            continue
        texts = {"prose": docstrings(tree)}
        if unit("code/" + name) < CODE_SHARE[split]:
            texts["code"] = [strip_source(source, tree)]
        for corpus, members in texts.items():
            for i, text in enumerate(members):
                digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
                if len(text) >= MIN_CHARS and digest not in seen:
                    seen.add(digest)
                    found[corpus].append(Document(f"{name}#{i}", text, name, ((0, len(text)),)))
    return found


def _statements(tree: ast.AST):
    """The nodes of a module that may hold statements, in the order of `ast.walk`, which would visit every name as well."""
    waiting = deque([tree])
    while waiting:
        node = waiting.popleft()
        yield node
        for field in ("body", "handlers", "orelse", "finalbody", "cases"):
            waiting.extend(getattr(node, field, ()))


def docstrings(tree: ast.AST) -> list[str]:
    """The docstrings of a module in order, without the paragraphs that hold a doctest."""
    texts = []
    for node in _statements(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            doc = ast.get_docstring(node, clean=False)
            if doc:
                paragraphs = inspect.cleandoc(doc).split("\n\n")
                texts.append("\n\n".join(p for p in paragraphs if ">>>" not in p).strip() + "\n")
    return texts


def strip_source(source: str, tree: ast.AST) -> str:
    """Python source without docstrings (`...` where nothing else is left) and comments, blank runs squeezed."""
    lines = source.split("\n")
    for node in _statements(tree):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and body and _is_doc(body[0]):
            first, last, column = body[0].lineno - 1, body[0].end_lineno - 1, body[0].col_offset
            if lines[first][:column].strip() or lines[last].encode()[body[0].end_col_offset :].strip(b" \t;"):
                continue  # shares its line with other code: leave it
            filler = " " * column + "..." if len(body) == 1 and not isinstance(node, ast.Module) else ""
            lines[first : last + 1] = [filler] + [""] * (last - first)
    text = STRING_OR_COMMENT.sub(lambda m: m.group(1) or "", "\n".join(lines))
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _is_doc(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _grams(text: str, n: int = 13) -> set[int]:
    words = re.findall(r"\w+|[^\w\s]", text)
    return {hash(tuple(words[i : i + n])) for i in range(len(words) - n + 1)}


def freeze() -> dict:
    """Writes ladder/corpora.json: the evaluation documents that share over 10 % of their 13-grams with training (left
    out from then on), the sha256 of every evaluation file's text, and digests of the training text. Returns it."""
    found = {
        "packages": {p: version(p).split("+")[0] for p in PACKAGES},
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
            for d in _all_documents(corpus, split)
            for g in [_grams(d.text)]
        }
        found["dropped"][corpus] = sorted(name for name, share in shares.items() if share > MAX_OVERLAP)
        kept = [share for share in shares.values() if share <= MAX_OVERLAP]
        found["remaining_overlap"][corpus] = round(sum(kept) / len(kept), 4)
        found["training"][corpus] = {s: text_digest(_all_documents(corpus, s)) for s in ("pretrain", "heads")}
        found["evaluation"][corpus] = {}
        for split in ("validation", "test"):
            found["evaluation"][corpus].update(_cluster_digests(corpus, split))
    (paths.LADDER / "corpora.json").write_text(json.dumps(found, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    frozen.cache_clear()
    return found


def _cluster_digests(corpus: str, split: str) -> dict[str, str]:
    if corpus == "translation":  # generated: one digest for the whole split
        return {split: text_digest(_all_documents(corpus, split))}
    members = {}
    for d in _all_documents(corpus, split):
        members.setdefault(d.cluster, []).append(d)
    return {name: text_digest(docs) for name, docs in members.items()}


def differences(corpus: str, split: str) -> list[str]:
    """Names of evaluation files whose text here differs from the frozen one (a package of another version): say so."""
    known, here = frozen()["evaluation"][corpus], _cluster_digests(corpus, split)
    return sorted(name for name, digest in here.items() if known.get(name) != digest)


@lru_cache(maxsize=1)
def frozen() -> dict:
    """What `freeze` wrote: packages, dropped, remaining_overlap, evaluation, training; {} before the first freeze."""
    path = paths.LADDER / "corpora.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def text_digest(docs: list[Document]) -> str:
    """sha256 over ids and texts, in order."""
    digest = hashlib.sha256()
    for d in docs:
        digest.update(f"{d.id}\0{d.text}\0".encode())
    return digest.hexdigest()
