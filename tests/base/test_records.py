"""A stored table is the table measured, and is reused only while everything it depends on is the same."""

import dataclasses
import json
import linecache
import math
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mtp_utils.base import files, keys, paths, records
from mtp_utils.base.profiles import PROFILES, get_profile
from mtp_utils.base.runtime import seed_for
from mtp_utils.findings import measures
from mtp_utils.heads.spec import HeadSpec


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


def measure(n: int = 8, function=awkward, **arguments) -> pd.DataFrame:
    calls.clear()
    return records.measured("01_awkward", function, profile="smoke", n=n, **arguments)


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


def function_from(folder, source: str):
    """The `measure` of a module of that source."""
    (folder / "toy_module.py").write_text(source + MEASURE)
    sys.modules.pop("toy_module", None)
    return __import__("toy_module").measure


MEASURE = "\n\ndef measure(n):\n    from test_records import awkward\n    return awkward(n)\n"


def test_the_source_of_a_measuring_module_counts_but_not_its_comments(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    measure(function=function_from(tmp_path, "a = 1\n"))
    measure(function=function_from(tmp_path, "# why\na  =  1\n"))
    assert calls == []
    measure(function=function_from(tmp_path, "a = 12\n"))
    assert calls == [8]


HOUSE = {  # a small one: what a measuring function in findings/ stands on, and what it does not
    "findings/measures.py": "from ..heads import first, training\nfrom ..text.blocks import windows\nfrom ..base import run\n",
    "heads/first.py": "import mtp_utils.marginal.future\n",
    "heads/training.py": "from . import parts\nfrom .spec import HeadSpec\n",
    "heads/parts.py": "def forward():\n    from mtp_utils.backbones import load\n",
    "heads/spec.py": "class HeadSpec: ...\n",
    "marginal/future.py": "from ..backbones.anatomy import unembed\n",
    "backbones/load.py": "",
    "backbones/anatomy.py": "",
    "text/blocks.py": "from .grammar import pairs\n",  # a name of the grammar, so all of it
    "text/grammar/english.py": "",
}
NOT_OF_IT = {
    "base/run.py": "from ..marginal import other\n",
    "drawing/plots.py": "",
    "reproduce/running.py": "",
    "marginal/other.py": "",
    "findings/claims.py": "",
}


def test_a_key_follows_imports_through_the_rooms_and_changes_with_no_plot_and_no_runner(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PACKAGE", tmp_path)
    for name, source in (HOUSE | NOT_OF_IT).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    (tmp_path / "text/grammar/__init__.py").write_text("")
    monkeypatch.setattr(keys.sys, "modules", sys.modules | {__name__: SimpleNamespace(
        __name__="mtp_utils.findings.measures", __file__=tmp_path / "findings/measures.py")})  # fmt: skip
    before = keys.measurement_key(awkward, {})
    for name, source in (HOUSE | NOT_OF_IT).items():
        (tmp_path / name).write_text("# a comment\n" + source)
        assert keys.measurement_key(awkward, {}) == before, name
        (tmp_path / name).write_text(source + "\nchanged = True")
        assert (keys.measurement_key(awkward, {}) != before) == (name in HOUSE), name
        (tmp_path / name).write_text(source)
    assert keys.measurement_key(awkward, {}) == before
    (tmp_path / "heads/spec.py").write_text("from ..backbones.shapes import HeadSpec\n")  # moved into a helper module elsewhere
    (tmp_path / "backbones/shapes.py").write_text(HOUSE["heads/spec.py"])
    moved = keys.measurement_key(awkward, {})
    (tmp_path / "backbones/shapes.py").write_text(HOUSE["heads/spec.py"] + "changed = True")
    assert len({before, moved, keys.measurement_key(awkward, {})}) == 3


def test_a_function_of_a_notebook_depends_on_what_it_names_of_the_package_and_on_how_its_arguments_are_made():
    source = "def mine(n):\n    return measures.next_token_arrays(n)\n"
    linecache.cache["<cell>"] = len(source), None, source.splitlines(True), "<cell>"
    cell = {"__name__": "__main__", "measures": measures}
    exec(compile(source, "<cell>", "exec"), cell)
    assert {"mtp_utils.findings.measures", "mtp_utils.marginal.packed"} <= set(keys._modules_of(cell["mine"]))
    assert keys.measurement_key(cell["mine"], {}) != keys.measurement_key(awkward, {})
    spec = HeadSpec()
    assert set(keys._made_by({"spec": spec, "n": 3})) == {"mtp_utils.heads.spec"}


def test_a_docstring_is_no_code():
    text = '"""{0}"""\n\ndef f():\n    """{0}"""\n    return {1}\n'
    first, second, other = (text.format(*given) for given in (("A", 1), ("B", 1), ("B", 2)))
    assert keys._code(first) == keys._code(second) != keys._code(other)


def test_the_keys_of_the_package_itself_follow_its_imports():
    names = keys._modules_of(measures.marginal_arrays)
    stands_on = ("findings.measures", "findings.scoring", "marginal.packed", "backbones.anatomy", "text.offsets")
    assert {f"mtp_utils.{name}" for name in stands_on} <= set(names)
    assert not [n for n in names if n.split(".")[1] in keys.NOT_MEASURING or n == "mtp_utils.findings.claims"]
    assert all(path.is_file() for path in names.values())


def test_versions_of_the_stack_count(monkeypatch):
    before = keys.measurement_key(awkward, {})
    monkeypatch.setattr(keys, "_version", lambda name: "0.0")
    assert keys.measurement_key(awkward, {}) != before


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


def test_views_of_arrays_come_back_as_they_were(build):
    x = np.arange(12.0).reshape(4, 3)
    views = {"columns": x[:, 1:], "column": x[:, 0], "transposed": x.T, "steps": x[::2], "number": np.array(5.0)}
    found = records.measured_arrays("03_views", lambda: views, profile="smoke").values
    assert all(np.array_equal(found[name], view) and found[name].shape == view.shape for name, view in views.items())


def test_arrays_are_stored_like_tables(build):
    calls = []

    def noisy(n):
        calls.append(n)
        return {name: np.arange(n, dtype=np.float32) for name in "qwertyuiopa"}

    def once():
        return records.measured_arrays("01_arrays", noisy, profile="smoke", n=3)

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
    files.write_atomic(tmp_path / "a", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomic(tmp_path / "a", b"new and longer")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]


def test_a_table_holds_no_provenance_and_its_json_does(build):
    records.measured("01_a", awkward, profile=PROFILES["smoke"], provenance={"device": "toy-device"}, n=1)
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
    seen = [json.dumps(keys.fingerprint(v)) for v in values]
    assert len(set(seen)) == len(values)


def test_a_profile_is_chosen_by_name_then_environment_then_smoke(monkeypatch):
    monkeypatch.delenv("MTP_PROFILE", raising=False)
    assert get_profile().name == "smoke"
    monkeypatch.setenv("MTP_PROFILE", "default")
    assert (get_profile().name, get_profile("smoke").name) == ("default", "smoke")
    there = "smoke, default, overnight, pretrained, pretrained-overnight, hub, hub-large, hub-qwen3"
    with pytest.raises(ValueError, match=f"unknown profile 'x'; there are {there}"):
        get_profile("x")


def test_seeds_are_the_same_everywhere_and_differ_by_stream_and_base():
    assert seed_for("train/head3") == 3114138018  # tables depend on it: never let it change
    seeds = {seed_for(f"document/{i}", base) for i in range(1000) for base in (0, 1)}
    assert len(seeds) == 2000
    np.random.default_rng(max(seeds))
    assert max(seeds) < 2**32
