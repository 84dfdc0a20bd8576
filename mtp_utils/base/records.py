"""Tables with their provenance: written atomically, and reused only when the key and the bytes are the recorded ones.

What a key holds: keys.py.
"""

import dataclasses
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load, save

from . import paths, ranks
from .files import sha256, write_atomic, write_json
from .keys import fingerprint, measurement_key


def measured(
    stem: str,
    function: Callable[..., pd.DataFrame],
    *,
    profile,
    provenance: dict | None = None,
    **arguments,
) -> pd.DataFrame:
    """`function(**arguments)`, or the table stored for it by an earlier run with the same key.

    Args:
        stem: name of the table, `tables/<stem>.csv` with `<stem>.json`; begins with the number of a notebook.
        function: returns a tidy frame with a plain index and neither time, rank, device nor path in it.
        profile: a `Profile` or the name of its folder; says in which folder the table lies.
        provenance: device, versions, git: kept beside the table in its JSON, not part of the key.

    Returns:
        The frame as read back from the file, so that a fresh and a resumed run hold exactly the same one.

    Raises:
        TypeError: an argument that cannot be part of a key (give it a `fingerprint`), or a result that is no frame.
    """
    path = paths.tables(getattr(profile, "folder", profile)) / f"{stem}.csv"
    return _stored(path, read_table, write_table, function, provenance, arguments)


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Stored numpy arrays by name; the fingerprint is the sha256 of their file, seconds what making them took, the parts that
    were stopped among them (`resumed`)."""

    values: dict
    fingerprint: str
    seconds: float = float("nan")


def measured_arrays(
    stem: str,
    function: Callable[..., dict],
    *,
    profile,
    provenance: dict | None = None,
    **arguments,
) -> Arrays:
    """As `measured`, for what no table can hold: `function` returns a dict of numpy arrays, `<stem>.safetensors` keeps it."""
    path = paths.tables(getattr(profile, "folder", profile)) / f"{stem}.safetensors"
    return _stored(path, read_arrays, write_arrays, function, provenance, arguments)


_EARLIER: list[float] = []  # seconds that stopped parts of what is being measured had taken


def resumed(seconds: float) -> None:
    """Told by a function under measurement that goes on where an earlier part stopped, after so many seconds."""
    _EARLIER.append(seconds)


def _stored(path: Path, read: Callable, write: Callable, function: Callable, provenance, arguments):
    key = measurement_key(function, arguments)
    stored = read(path, key)
    if ranks.first_says(stored is not None):  # the others may look while the first one writes
        return stored if stored is not None else _whole(read(path, key), path)
    _EARLIER.clear()
    started = time.monotonic()
    result = function(**arguments)
    record = {
        "stem": path.stem,
        "key": key,
        "function": function.__qualname__,
        "arguments": fingerprint(arguments),
        "seconds": round(time.monotonic() - started + sum(_EARLIER), 3),
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
    data = save({name: np.asarray(x, order="C") for name, x in arrays.items()})  # it writes a view's memory, whatever its strides
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
