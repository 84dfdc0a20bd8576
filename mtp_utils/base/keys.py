"""The key of a measurement: everything its numbers depend on, and nothing else.

That is the code (of the module in which the measuring function stands, of all it imports from this package, through the rooms,
and of the modules in which its arguments' classes stand), the arguments with the hashes of weights and texts, and the versions:
not git, or every commit would measure again, and not the machine.
"""

import ast
import dataclasses
import functools
import importlib.metadata
import inspect
import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from . import paths
from .files import sha256

PACKAGES = ("torch", "transformers", "accelerate", "peft", "numpy", "pandas")
# Rooms that decide where a run happens and how its result looks, not what is measured.
NOT_MEASURING = ("base", "drawing", "reproduce")
SPOKEN = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)  # what may have a docstring


def measurement_key(function: Callable, arguments: dict) -> str:
    """sha256 of all that a measurement depends on: code without what it says of itself, arguments, versions."""
    found = _modules_of(function) | _made_by(arguments)
    sources = {name: _code(_source(path)) for name, path in sorted(found.items())}
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
    that a notebook defines has no file: what counts are its own source and what it names of this package."""
    module, found, waiting = sys.modules[function.__module__], {}, []
    if module.__name__ != "__main__":
        waiting.append((module.__name__, Path(module.__file__)))
    for name in function.__code__.co_names if module.__name__ == "__main__" else ():
        named = function.__globals__.get(name)
        waiting += _files(getattr(named, "__module__", None) or getattr(named, "__name__", ""), ())
    while waiting:
        name, path = waiting.pop()
        if name not in found:
            found[name] = path
            for imported, names in _imports(_source(path), name.rpartition(".")[0]):
                waiting += _files(imported, names)
    return found


def _made_by(arguments: dict) -> dict[str, Path]:
    """Name and file of the modules of the arguments' classes: how a backbone is loaded is in no fingerprint of it."""
    names = {type(value).__module__ for value in arguments.values()}
    return {name: path for module in names for name, path in _files(module, ())}


def _files(imported: str, names: tuple[str, ...]) -> list[tuple[str, Path]]:
    """(name, file) of the modules that `from imported import names` brings; of a room as a whole, all of its modules."""
    package, *inner = imported.split(".")
    places = [(*inner, name) for name in names] or [tuple(inner)]
    return [found for place in places if package == "mtp_utils" for found in _at(paths.PACKAGE, place)]


@functools.cache
def _at(package: Path, place: tuple[str, ...]) -> tuple[tuple[str, Path], ...]:
    """(name, file) of the module at a place, of those of the room there, or of the module in which the last part is a name."""
    folder = package.joinpath(*place)
    if place and not folder.is_dir() and not folder.with_suffix(".py").is_file():
        place, folder = place[:-1], folder.parent
    if not place or place[0] in NOT_MEASURING:
        return ()
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    return tuple((".".join(("mtp_utils", *path.relative_to(package).with_suffix("").parts)), path) for path in files)


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
    """sha256 of the source without comments, docstrings and layout, so that rewording what is said measures nothing again."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, SPOKEN) and ast.get_docstring(node) is not None:
            del node.body[0]
    return sha256(ast.dump(tree).encode())
