"""Tables with their provenance: written atomically, and reused only when the key and the bytes are the recorded ones.

A measurement's key holds everything its numbers depend on (the source of the modules, the arguments with the hashes of
weights and texts, the versions) and nothing else: not git, or every commit would measure again, and not the machine.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import io
import json
import os
import textwrap
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import pandas as pd
from safetensors.numpy import load, save

from . import paths, ranks

PACKAGES = ("torch", "transformers", "accelerate", "peft", "numpy", "pandas")
# These decide where and how a run happens or how its result looks, not what is measured.
NOT_MEASURING = {"artifacts", "claims", "execute", "paths", "plots", "profiles", "publish", "records", "reproduce"}
NOT_MEASURING |= {"ranks", "run", "runtime", "style", "head_claims", "head_plots"}


def measured(
    stem: str,
    function: Callable[..., pd.DataFrame],
    *,
    profile,
    modules: Iterable[ModuleType],
    provenance: dict | None = None,
    **arguments,
) -> pd.DataFrame:
    """`function(**arguments)`, or the table stored for it by an earlier run with the same key.

    Args:
        stem: name of the table, `tables/<stem>.csv` with `<stem>.json`; begins with the number of a notebook.
        function: returns a tidy frame with a plain index and neither time, rank, device nor path in it.
        profile: a `Profile` or its name; says in which folder the table lies.
        modules: modules whose source the numbers depend on; what they import from this package counts too.
        provenance: device, versions, git: kept beside the table in its JSON, not part of the key.

    Returns:
        The frame as read back from the file, so that a fresh and a resumed run hold exactly the same one.

    Raises:
        TypeError: an argument that cannot be part of a key (give it a `fingerprint`), or a result that is no frame.
    """
    path = paths.tables(getattr(profile, "name", profile)) / f"{stem}.csv"
    return _stored(path, read_table, write_table, function, modules, provenance, arguments)


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Stored numpy arrays by name; the fingerprint is the sha256 of their file, seconds what making them took."""

    values: dict
    fingerprint: str
    seconds: float = float("nan")


def measured_arrays(
    stem: str,
    function: Callable[..., dict],
    *,
    profile,
    modules: Iterable[ModuleType],
    provenance: dict | None = None,
    **arguments,
) -> Arrays:
    """As `measured`, for what no table can hold: `function` returns a dict of numpy arrays, `<stem>.safetensors` keeps it."""
    path = paths.tables(getattr(profile, "name", profile)) / f"{stem}.safetensors"
    return _stored(path, read_arrays, write_arrays, function, modules, provenance, arguments)


def _stored(path: Path, read: Callable, write: Callable, function: Callable, modules, provenance, arguments):
    key = measurement_key(function, modules, arguments)
    stored = read(path, key)
    if ranks.first_says(stored is not None):  # the others may look while the first one writes
        return stored if stored is not None else _whole(read(path, key), path)
    started = time.monotonic()
    result = function(**arguments)
    record = {
        "stem": path.stem,
        "key": key,
        "function": function.__qualname__,
        "arguments": fingerprint(arguments),
        "seconds": round(time.monotonic() - started, 3),
        "provenance": provenance or {},
    }
    if ranks.first():
        write(path, result, record)
    ranks.gather(None)
    return _whole(read(path, key), path)


def _whole(stored, path: Path):
    """What was read back; RuntimeError where it is not what this process would have written."""
    if stored is None:
        raise RuntimeError(f"{path} is not what was just measured: another process wrote it, or measures something else")
    return stored


def measurement_key(function: Callable, modules: Iterable[ModuleType], arguments: dict) -> str:
    """sha256 of all that a measurement depends on: code without its comments, arguments, versions."""
    sources = {name: _code(_source(path)) for name, path in sorted(_with_imports(modules).items())}
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


UNTRUSTED = (FileNotFoundError, ValueError, KeyError, TypeError)  # ValueError: also JSON or UTF-8 cut off or altered


def _checked(path: Path, key: str | None) -> tuple[dict, bytes]:
    """The JSON beside `path` and the bytes there; one of UNTRUSTED unless they belong together and have this key."""
    record = json.loads(path.with_suffix(".json").read_text("utf-8"))
    data = path.read_bytes()
    if record["sha256"] != sha256(data) or (key is not None and record["key"] != key):
        raise ValueError(f"{path.name} is not the file its JSON describes, or has another key")
    return record, data


def read_table(path: Path, key: str | None = None) -> pd.DataFrame | None:
    """The table at `path`, or None unless its JSON is whole, has this key (if one is given) and matches the bytes."""
    try:
        record, data = _checked(path, key)
        text_columns = {name: str for name in record["text_columns"]}
    except UNTRUSTED:
        return None
    # Tokens such as "NA" and "007" are text, not missing values and numbers.
    return pd.read_csv(io.BytesIO(data), keep_default_na=False, na_values=[""], dtype=text_columns)


def read_arrays(path: Path, key: str | None = None) -> Arrays | None:
    """The arrays at `path`, or None as in `read_table`."""
    try:
        record, data = _checked(path, key)
    except UNTRUSTED:
        return None
    values = dict(sorted(load(data).items()))  # load gives them in an order of its own, another one each time
    return Arrays(values, record["sha256"], record.get("seconds", float("nan")))


def write_arrays(path: Path, arrays: dict, record: dict | None = None) -> None:
    """Write a dict of numpy arrays to `path`, then its JSON with the sha256, as in `write_table`."""
    data = save(arrays)
    write_atomic(path, data)
    write_json(path.with_suffix(".json"), (record or {}) | {"sha256": sha256(data)})


def write_table(path: Path, frame: pd.DataFrame, record: dict | None = None) -> None:
    """Write `frame` to `path`, then its JSON with the sha256 of the CSV: without both the table is not trusted.

    Raises:
        TypeError: `frame` is no DataFrame, or its index holds data (which a CSV would lose).
    """
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"a measurement returns a pandas.DataFrame, not {type(frame).__name__}")
    if frame.index.nlevels > 1 or frame.index.name or not pd.api.types.is_integer_dtype(frame.index.dtype):
        raise TypeError(f"{path.stem}: the index would be lost in the CSV, use reset_index()")
    data = frame.to_csv(index=False, lineterminator="\n").encode()
    text_columns = [str(c) for c in frame if not pd.api.types.is_numeric_dtype(frame[c].dtype)]
    write_atomic(path, data)
    write_json(path.with_suffix(".json"), (record or {}) | {"sha256": sha256(data), "text_columns": text_columns})


def read_json(path: Path) -> dict:
    """The content of a JSON file, or an empty dict where there is none."""
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def write_json(path: Path, content) -> None:
    """Write `content` to `path`, whole or not at all."""
    write_atomic(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` beside `path` and rename it, so that whatever happens `path` is the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(data: bytes) -> str:
    """Hexadecimal sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def _with_imports(modules: Iterable[ModuleType]) -> dict[str, Path]:
    """Name and file of the modules and of all they import from this package, themselves or through others."""
    found, waiting = {}, [(m.__name__, Path(m.__file__)) for m in modules]
    while waiting:
        name, path = waiting.pop()
        if name in found:
            continue
        found[name] = path
        for imported in _package_imports(_source(path)):
            waiting.append((f"mtp_utils.{imported}", paths.PACKAGE / f"{imported}.py"))
    return found


def _source(path: Path) -> str:
    """A module's source, read again only when its file was written: keys are made by the thousand."""
    stat = path.stat()
    return _read(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=256)
def _read(path: Path, *_) -> str:
    return path.read_text("utf-8")


@functools.cache
def _package_imports(source: str) -> frozenset[str]:
    """Names of the package's modules that a source imports, by `from . import a`, `from .a import b` or in full."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")
            if node.level == 0 and module.pop(0) != "mtp_utils":
                continue
            names |= {module[0]} if module and module[0] else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("mtp_utils.")}
    return frozenset(n for n in names - NOT_MEASURING if (paths.PACKAGE / f"{n}.py").is_file())


@functools.cache
def _version(name: str) -> str:
    return importlib.metadata.version(name).split("+")[0]  # the build is no version


@functools.cache
def _code(source: str) -> str:
    """sha256 of the source without comments and layout, so that rewording a comment measures nothing again."""
    return sha256(ast.dump(ast.parse(source)).encode())
