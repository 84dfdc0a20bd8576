"""A stored table is the table measured, and is reused only while everything it depends on is the same."""

import dataclasses
import math
import sys

import numpy as np
import pandas as pd
import pytest

from mtp_utils import paths, records
from mtp_utils.profiles import PROFILES, get_profile
from mtp_utils.runtime import seed_for


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_BUILD", str(tmp_path))
    return tmp_path / "smoke" / "tables"


@dataclasses.dataclass(frozen=True)
class Weights:
    fingerprint: str
    device: str = "cpu"


calls = []


def awkward(n: int, weights: Weights | None = None) -> pd.DataFrame:
    """Values that a careless CSV loses: digits, infinities, tokens that look like numbers, gaps or line ends."""
    calls.append(n)
    tokens = ["007", "NA", "nan", 'a\r\nb,"c"', " x", "ä\u2028", "None", "1e5"][:n]
    values = [1 / 3, math.pi * 1e-300, -0.0, math.inf, math.nan, 5e-324, 0.1 + 0.2, 1e22][:n]
    certified = [i % 2 == 0 for i in range(n)]
    return pd.DataFrame({"token": tokens, "value": values, "count": range(n), "certified": certified})


def measure(n: int = 8, modules=(), **arguments) -> pd.DataFrame:
    calls.clear()
    return records.measured("01_awkward", awkward, profile="smoke", modules=modules, n=n, **arguments)


def test_a_table_is_read_back_exactly_as_it_was_measured():
    fresh, resumed = measure(), measure()
    assert calls == []
    pd.testing.assert_frame_equal(fresh, resumed, check_exact=True)
    pd.testing.assert_frame_equal(fresh, awkward(8), check_exact=True)
    assert math.copysign(1, fresh["value"][2]) == -1


def test_every_float_survives_the_csv(tmp_path):
    bits = np.random.default_rng(seed_for("test/floats")).integers(0, 2**64, 20_000, dtype=np.uint64)
    values = bits.view(np.float64)
    records.write_table(tmp_path / "a.csv", pd.DataFrame({"value": values[np.isfinite(values)]}))
    assert np.array_equal(records.read_table(tmp_path / "a.csv")["value"], values[np.isfinite(values)])


def test_another_argument_measures_again_and_the_same_one_does_not():
    measure(8)
    measure(7)
    assert calls == [7]
    measure(7)
    assert calls == []


def test_weights_count_by_their_fingerprint_alone():
    measure(weights=Weights("a"))
    measure(weights=Weights("a", device="cuda"))
    assert calls == []
    measure(weights=Weights("b"))
    assert calls == [8]


def module_from(folder, name: str, source: str):
    (folder / f"{name}.py").write_text(source)
    sys.modules.pop(name, None)
    return __import__(name)


def test_the_source_of_a_module_counts_but_not_its_comments(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    measure(modules=[module_from(tmp_path, "toy_module", "a = 1\n")])
    measure(modules=[module_from(tmp_path, "toy_module", "# why\na  =  1\n")])
    assert calls == []
    measure(modules=[module_from(tmp_path, "toy_module", "a = 12\n")])
    assert calls == [8]


def test_a_module_counts_with_all_it_imports_from_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PACKAGE", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    imports = {"first": "from . import records, second", "second": "from mtp_utils.third import x"}
    imports |= {"third": "from .fourth import y", "fourth": "import mtp_utils.fifth", "fifth": "y = 1"}
    for name, source in imports.items():
        (tmp_path / f"{name}.py").write_text(source)
    top = module_from(tmp_path, "top_module", "def f():\n    from mtp_utils import first\n    return first\n")
    before = records.measurement_key(awkward, [top], {})
    for name, source in imports.items():
        (tmp_path / f"{name}.py").write_text(source + "\nchanged = True")
        assert records.measurement_key(awkward, [top], {}) != before, name
        (tmp_path / f"{name}.py").write_text(source)
    assert records.measurement_key(awkward, [top], {}) == before


def test_versions_of_the_stack_count(monkeypatch):
    before = records.measurement_key(awkward, [], {})
    monkeypatch.setattr(records, "_version", lambda name: "0.0")
    assert records.measurement_key(awkward, [], {}) != before


@pytest.mark.parametrize("kind", ["csv", "json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "remove"])
def test_a_damaged_file_is_measured_again_not_trusted(build, kind, damage):
    expected = measure()
    path = build / f"01_awkward.{kind}"
    data = path.read_bytes()
    middle = len(data) // 2
    damaged = {"truncate": data[:middle], "flip": data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]}
    path.unlink() if damage == "remove" else path.write_bytes(damaged.get(damage, b""))
    if (kind, damage) != ("json", "flip"):  # a flipped bit of the JSON may lie in what only describes
        assert records.read_table(build / "01_awkward.csv") is None
    pd.testing.assert_frame_equal(measure(), expected, check_exact=True)


def test_arrays_are_stored_like_tables(build):
    calls = []

    def noisy(n):
        calls.append(n)
        return {name: np.arange(n, dtype=np.float32) for name in "qwertyuiopa"}

    def once():
        return records.measured_arrays("01_arrays", noisy, profile="smoke", modules=[], n=3)

    first, second = once(), once()
    assert calls == [3] and first.fingerprint == second.fingerprint and (second.values["a"] == [0, 1, 2]).all()
    assert "".join(first.values) == "".join(second.values) == "aeiopqrtuwy"
    file = build / "01_arrays.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert records.read_arrays(file) is None and (once().values["a"] == [0, 1, 2]).all() and calls == [3, 3]


def test_no_flipped_bit_in_the_json_changes_the_table_that_is_returned(build):
    expected, path = measure(), build / "01_awkward.json"
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        pd.testing.assert_frame_equal(measure(), expected, check_exact=True)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    records.write_atomic(tmp_path / "a", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        records.write_atomic(tmp_path / "a", b"new and longer")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]


def test_a_table_holds_no_provenance_and_its_json_does(build):
    records.measured("01_a", awkward, profile=PROFILES["smoke"], modules=[], provenance={"device": "toy-device"}, n=1)
    assert b"toy-device" not in (build / "01_a.csv").read_bytes()
    assert b"toy-device" in (build / "01_a.json").read_bytes()


def test_what_cannot_be_keyed_or_stored_is_refused():
    with pytest.raises(TypeError, match="fingerprint"):
        measure(weights=object())
    with pytest.raises(TypeError, match="DataFrame"):
        records.write_table(paths.tables("smoke") / "01_x.csv", [1])
    with pytest.raises(TypeError, match="reset_index"):
        records.write_table(paths.tables("smoke") / "01_x.csv", awkward(3).set_index("token"))


def test_fingerprints_tell_apart_what_differs():
    values = [None, "None", 1, "1", 1.5, True, [1], [[1]], {"a": 1}, Weights("a"), Weights("b"), PROFILES["smoke"]]
    seen = [records.json.dumps(records.fingerprint(v)) for v in values]
    assert len(set(seen)) == len(values)


def test_a_profile_is_chosen_by_name_then_environment_then_smoke(monkeypatch):
    monkeypatch.delenv("MTP_PROFILE", raising=False)
    assert get_profile().name == "smoke"
    monkeypatch.setenv("MTP_PROFILE", "default")
    assert (get_profile().name, get_profile("smoke").name) == ("default", "smoke")
    with pytest.raises(ValueError, match="unknown profile 'x'; there are smoke, default, hub, hub-large, hub-qwen3"):
        get_profile("x")


def test_seeds_are_the_same_everywhere_and_differ_by_stream_and_base():
    assert seed_for("train/head3") == 3114138018  # tables depend on it: never let it change
    seeds = {seed_for(f"document/{i}", base) for i in range(1000) for base in (0, 1)}
    assert len(seeds) == 2000
    np.random.default_rng(max(seeds))
    assert max(seeds) < 2**32
