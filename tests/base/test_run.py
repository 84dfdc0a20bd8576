"""What a model cannot do is left out with its reason, and the rest of a notebook's run comes."""

import json

import pytest
from toy_run import Runner, measure, write_notebook

from mtp_utils.base import CannotDo, Run, artifacts, paths
from mtp_utils.base.profiles import PROFILES


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_BUILD", str(tmp_path))


def no_odd_ones(backbone: int, divisor: int) -> None:
    if backbone % divisor:
        raise CannotDo(f"{backbone} is odd")


def entry_of(run: Run) -> dict:
    return json.loads(run.sentinel.read_text())


def test_backbones_that_are_unable_are_listed_and_the_others_are_left_in_their_order():
    run = Run("04_toy", PROFILES["smoke"])
    assert list(run.able("halves", {"d": 4, "a": 1, "b": 2, "c": 3}, no_odd_ones, 2).items()) == [("d", 4), ("b", 2)]
    run.finish()
    assert entry_of(run)["skipped"] == ["halves of a: 1 is odd", "halves of c: 3 is odd"]


def test_an_error_that_is_no_refusal_of_capability_is_not_swallowed():
    run, done = Run("04_toy", PROFILES["smoke"]), []
    with pytest.raises(ValueError, match="a typing error"), run.left_out("a part"):
        raise ValueError("a typing error")
    with run.left_out("a part"):
        done.append("before")
        raise CannotDo("no such layer")
    assert done == ["before"] and run._skipped == ["a part: no such layer"]


def test_a_claim_that_cannot_be_judged_stands_in_the_scorecard_with_its_reason():
    run = Run("04_toy", PROFILES["default"])
    with pytest.raises(SystemExit) as ended:
        run.end("no backbone here can have heads", ("C3a", "C3b"))
    assert ended.value.code == 0 and entry_of(run)["verdicts"] == ["not tested"] * 2
    assert entry_of(run)["skipped"][-1] == "the rest of the notebook: no backbone here can have heads"
    text = (paths.figures("default") / "scorecard.md").read_text()
    assert text.count("| | | | | not tested: no backbone here can have heads |") == 2 and "nan" not in text
    assert list(artifacts.verdicts_of("default")["claim"]) == ["C3a", "C3b"]


def test_a_notebook_that_ends_early_is_finished_and_the_next_one_comes(tmp_path):
    early = measure("01_table", "toy"), 'run.end("nothing here can")', 'raise RuntimeError("further down")'
    write_notebook(tmp_path, "01_early", *early)
    write_notebook(tmp_path, "02_next", measure("02_table", "toy"))
    code, out, err = Runner(tmp_path).run()
    assert code == 0, err
    assert "01 left out the rest of the notebook: nothing here can" in out and "02_next" in out
    folder = tmp_path / "build" / "smoke" / "notebooks"
    assert (folder / "01_early.ipynb").is_file() and not list(folder.glob("*.failed.ipynb"))
    assert "further down" not in "".join(map(str, json.loads((folder / "01_early.ipynb").read_text())["cells"][-2]["outputs"]))
