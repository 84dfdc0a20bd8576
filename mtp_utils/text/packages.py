"""`code` and `prose`: source and docstrings of the installed packages, so that nothing is downloaded or redistributed."""

import ast
import hashlib
import importlib.util
import inspect
import re
from collections import deque
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from .documents import MIN_CHARS, SPLITS, Document, split_of, unit

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
STRING_OR_COMMENT = re.compile(
    r'("""(?:\\.|[^\\])*?"""|\'\'\'(?:\\.|[^\\])*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')'
    r"|[ \t]*#[^\n]*",
    re.DOTALL,
)


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Of the packages that texts are read from, without what names their build."""
    return {p: version(p).split("+")[0] for p in PACKAGES}


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
def documents(split: str) -> dict[str, list[Document]]:
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
