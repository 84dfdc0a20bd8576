"""The key of a measurement: everything its numbers depend on, and nothing else.

That is the code (of the module in which the measuring function stands and of all it imports from this package, through the
rooms), the arguments with the hashes of weights and texts, and the versions: not git, or every commit would measure again, and
not the machine.
"""

import ast
import dataclasses
import functools
import importlib.metadata
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from . import paths
from .files import sha256

PACKAGES = ("torch", "transformers", "accelerate", "peft", "numpy", "pandas")
# Rooms that decide where a run happens and how its result looks, not what is measured.
NOT_MEASURING = ("base", "drawing", "reproduce")


def measurement_key(function: Callable, arguments: dict) -> str:
    """sha256 of all that a measurement depends on: code without its comments, arguments, versions."""
    sources = {name: _code(_source(path)) for name, path in sorted(_modules_of(function).items())}
    sources["function"] = _code(textwrap.dedent(inspect.getsource(function)))
    versions = {name: _version(name) for name in PACKAGES}
    return sha256(json.dumps([sources, fingerprint(arguments), versions], sort_keys=True).encode())


def fingerprint(value):
    """`value` as JSON can hold it, unambiguously; objects with a `fingerprint` (weights, texts) are that.

    Raises:
        TypeError: for anything else, whose `repr` could change from run to run or hide a difference.
    """
    if hasattr(value, "fingerprint"):
        return {"type": type(value).__name__, "fingerprint": str(value.fingerprint)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: fingerprint(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, "fields": fields}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [fingerprint(v) for v in value]
    if isinstance(value, dict):
        return {str(k): fingerprint(v) for k, v in value.items()}
    raise TypeError(f"an argument of type {type(value).__name__} cannot be part of a key: give it a .fingerprint")


def _modules_of(function: Callable) -> dict[str, Path]:
    """Name and file of the function's module and of all it imports from the measuring rooms, itself or through others. A function
    that a notebook defines has no module: its own source is part of the key all the same."""
    module, found = sys.modules[function.__module__], {}
    waiting = [] if module.__name__ == "__main__" else [(module.__name__, Path(module.__file__))]
    while waiting:
        name, path = waiting.pop()
        if name not in found:
            found[name] = path
            for imported, names in _imports(_source(path), name.rpartition(".")[0]):
                waiting += _files(imported, names)
    return found


def _files(imported: str, names: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """(name, file) of the modules that `from imported import names` brings; of a room as a whole, all of its modules."""
    package, *inner = imported.split(".")
    for place in [(*inner, name) for name in names] or [tuple(inner)]:
        folder = paths.PACKAGE.joinpath(*place)
        if not folder.is_dir() and not folder.with_suffix(".py").is_file():  # a name in the module, not a module
            place, folder = tuple(inner), paths.PACKAGE.joinpath(*inner)
        if package == "mtp_utils" and place and place[0] not in NOT_MEASURING:
            for path in (folder.with_suffix(".py"),) if not folder.is_dir() else folder.rglob("*.py"):
                yield ".".join(("mtp_utils", *path.relative_to(paths.PACKAGE).with_suffix("").parts)), path


@functools.cache
def _imports(source: str, package: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(module or package, names) of every import of a source that stands in `package`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            found.append((".".join([*above, *([node.module] if node.module else [])]), tuple(a.name for a in node.names)))
        elif isinstance(node, ast.Import):
            found += [(alias.name, ()) for alias in node.names]
    return tuple(found)


def _source(path: Path) -> str:
    """A module's source, read again only when its file was written: keys are made by the thousand."""
    stat = path.stat()
    return _read(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=256)
def _read(path: Path, *_) -> str:
    return path.read_text("utf-8")


@functools.cache
def _version(name: str) -> str:
    return importlib.metadata.version(name).split("+")[0]  # the build is no version


@functools.cache
def _code(source: str) -> str:
    """sha256 of the source without comments and layout, so that rewording a comment measures nothing again."""
    return sha256(ast.dump(ast.parse(source)).encode())
