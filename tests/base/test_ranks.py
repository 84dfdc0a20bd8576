"""Several processes give what one gives; the runner's notebooks run in all of them, and one that dies ends the others."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import ranks_job
from safetensors.numpy import load_file
from toy_run import ROOT, Runner, measure, write_notebook

from mtp_utils.base import ranks

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}  # as fsdp2.yaml has it
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}  # two processes have no business on one device
WITHIN = 90  # seconds in which the death of one process ends the run


def test_two_processes_measure_and_train_what_one_does(tmp_path, monkeypatch):
    two = of_two(tmp_path)
    monkeypatch.setenv("MTP_BUILD", str(tmp_path / "one"))
    same(ranks_job.results(), two)


def test_two_processes_that_share_the_backbone_out_train_what_one_does_stopped_and_resumed(tmp_path, monkeypatch):
    two = of_two(tmp_path, **FSDP)
    monkeypatch.setenv("MTP_BUILD", str(tmp_path / "one"))
    same(ranks_job.sharded_results(stop=False), two)


def of_two(tmp_path, **more) -> dict[str, np.ndarray]:
    """What two processes with this environment give."""
    given = {"MTP_BUILD": str(tmp_path / "two"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment = os.environ | given | NO_GPU | more
    command = [*TORCHRUN, str(ROOT / "tests" / "ranks_job.py"), str(tmp_path / "two.safetensors")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return load_file(tmp_path / "two.safetensors")


def same(one: dict, two: dict) -> None:
    """To 1e-6; joint training, in float32, to 1e-3."""
    assert one.keys() == two.keys() and len(one) > 60
    for name, x in one.items():
        if name.startswith("joint.") and (".model." in name or ".heads." in name):  # Adam's first steps make much of a rounding
            continue
        limit = 1e-3 if name.startswith("joint.") else 1e-6
        assert np.allclose(np.asarray(x, float), two[name], rtol=limit, atol=limit, equal_nan=True), name


@pytest.mark.parametrize("n, count", [(7, 2), (1, 4), (0, 3), (12, 3)])
def test_the_shares_are_all_of_it(n, count, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(count))
    found = []
    for i in range(count):
        monkeypatch.setenv("RANK", str(i))
        found += list(range(n))[ranks.share(n)]
    assert found == list(range(n))


def test_more_processes_than_meet_are_an_error(monkeypatch):
    class Alone:
        num_processes = 1

    monkeypatch.setattr("accelerate.PartialState", lambda **options: Alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    ranks.meet.cache_clear()
    with pytest.raises(RuntimeError, match="2 processes were asked for and 1 met"):
        ranks.gather(1)
    ranks.meet.cache_clear()


def launch(runner: Runner, *words: str) -> subprocess.CompletedProcess:
    command = [*TORCHRUN, "-m", "mtp_utils.reproduce", "smoke", *words]
    return subprocess.run(
        command, env=runner.environment | NO_GPU, cwd=runner.folder / "code", capture_output=True, text=True, timeout=240
    )


SAY = "from mtp_utils.base import ranks\nassert ranks.gather(ranks.number()) == [0, 1]"


def test_the_runner_runs_every_notebook_in_both_and_one_of_them_writes_and_speaks(tmp_path):
    runner = Runner(tmp_path)
    for i, body in ((1, "pass"), (2, SAY)):
        write_notebook(tmp_path, f"0{i}_toy", body, measure(f"0{i}_table", f"table{i}"))
    done = launch(runner)
    assert done.returncode == 0, done.stderr
    assert runner.log() == ["table1", "table1", "table2", "table2"]
    assert done.stdout.count("[1/2] 01_toy") == 1 and done.stdout.count("notebook  ") == 1
    assert sorted(p.name for p in (runner.smoke / "notebooks").glob("*.ipynb")) == ["01_toy.ipynb", "02_toy.ipynb"]
    table = runner.table("01_table")
    code, out, err = runner.run("--only", "01")  # one process takes the table of two
    assert (code, runner.table("01_table"), len(runner.log())) == (0, table, 4), err


def test_one_that_dies_ends_the_others_with_its_reason_and_the_next_run_resumes(tmp_path):
    runner = Runner(tmp_path)
    write_notebook(tmp_path, "01_toy", measure("01_table", "table1"))
    die = "if ranks.number() == 1 and not Path(os.environ['TOY_FOLDER'], 'go').exists():\n    os.kill(os.getpid(), 9)"
    write_notebook(tmp_path, "02_toy", SAY, die, measure("02_table", "table2"))
    started = time.monotonic()
    done = launch(runner)
    assert done.returncode and time.monotonic() - started < WITHIN
    assert "02_toy failed, its kernel died" in done.stderr
    (tmp_path / "go").touch()
    done = launch(runner)
    assert done.returncode == 0, done.stderr
    assert "01_toy (finished before the interruption)" in done.stdout
    assert runner.log().count("table1") == 2
