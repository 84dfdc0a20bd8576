"""The runner resumes, refuses and reports: what happens when a run is killed, starved, doubled or cut short."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pandas as pd
import pytest
from toy_run import ROOT, Runner, copy_package, measure, wait_for, write_notebook

from mtp_utils.base import runtime


@pytest.fixture
def runner(tmp_path):
    return Runner(tmp_path)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_run_resumes_with_the_same_tables_and_measures_nothing_twice(runner, tmp_path):
    write_notebook(tmp_path, "01_toy", measure("01_quick", "quick"))
    write_notebook(tmp_path, "02_toy", measure("02_quick", "quick2"), measure("02_slow", "slow"))
    process = runner.start()
    wait_for((tmp_path / "slow.pid").exists)
    process.kill()
    process.communicate()
    kernel = int((tmp_path / "slow.pid").read_text())
    half_written = runner.smoke / "tables" / ".02_slow.csv.1.tmp"
    half_written.write_text("name,val")
    (tmp_path / "go").touch()
    code, out, err = runner.run()
    assert code == 0, err
    assert "01_toy (finished before the interruption)" in out
    assert runner.log() == ["quick", "quick2", "slow", "slow"]  # the slow one was not there yet, the others were
    expected = pd.DataFrame({"name": "slow", "value": [i / 7 for i in range(20)]})
    assert runner.table("02_slow") == expected.to_csv(index=False).encode()
    assert not half_written.exists()
    wait_for(lambda: not alive(kernel), 15)


def test_an_interrupted_run_ends_at_once_and_says_how_to_go_on(runner, tmp_path):
    write_notebook(tmp_path, "01_toy", measure("01_slow", "slow"))
    process = runner.start("--only", "01")
    wait_for((tmp_path / "slow.pid").exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "`./reproduce.sh smoke --only 01` goes on where it stopped" in err
    assert not list(runner.smoke.glob("tables/*"))


def test_of_two_runs_at_once_the_second_says_so_and_stops(runner, tmp_path):
    write_notebook(tmp_path, "01_toy", measure("01_slow", "slow"))
    first = runner.start()
    wait_for((tmp_path / "slow.pid").exists)
    code, _, err = runner.run()
    (tmp_path / "go").touch()
    first.communicate(timeout=60)
    assert (code, first.returncode) == (3, 0)
    assert f"process {first.pid} is already writing to {runner.smoke}" in err
    assert runner.log() == ["slow"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit(0)", "before its last cell"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("os.kill(os.getpid(), 9)", "kernel died"),
    ],
    ids=["exit 0 in the middle", "an error", "a killed kernel"],
)
def test_a_notebook_that_did_not_come_to_its_end_fails_the_run(runner, tmp_path, body, message):
    path = write_notebook(tmp_path, "01_toy", measure("01_quick", "quick"), body)
    runner.plant_entry(path)
    code, _, err = runner.run()
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1
    left = sorted(p.name for p in (runner.smoke / "notebooks").iterdir())
    assert left == ["01_toy.failed.ipynb"]


def test_a_full_disk_is_one_line_and_leaves_no_table_behind(runner, tmp_path):
    write_notebook(tmp_path, "01_toy", measure("01_big", "big", rows=20_000))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))"
    code, _, err = runner.run(before=limit)
    assert code == 1
    assert "File too large" in err and len(err.strip().splitlines()) == 1
    assert list(runner.smoke.glob("tables/*")) == list(runner.smoke.glob("tables/.*")) == []


def test_a_disk_too_full_for_the_notebook_itself_is_one_line(runner, tmp_path):
    write_notebook(tmp_path, "01_toy", measure("01_quick", "quick"), "pass  # " + "x" * 6000)
    code, _, err = runner.run(before="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))")
    assert code == 1
    assert "File too large" in err and len(err.strip().splitlines()) == 1


def test_a_build_folder_that_cannot_be_written_is_one_line(runner, tmp_path):
    write_notebook(tmp_path, "01_toy", measure("01_quick", "quick"))
    build = tmp_path / "build"
    build.mkdir()
    build.chmod(0o555)
    for folder in (tmp_path, *tmp_path.parents[:3]):  # pytest's folders are closed to other users
        folder.chmod(folder.stat().st_mode | 0o055) if os.getuid() == 0 and folder.owner() == "root" else None
    # Root may write anywhere, so it becomes nobody, who may not read every installation: what is needed is imported.
    code, _, err = runner.run(before="import gettext, locale, os\nif os.getuid() == 0: os.setuid(65534)")
    build.chmod(0o755)
    assert code == 1
    assert err == f"reproduce.sh: Permission denied: {runner.smoke}\n"


def test_a_notebook_edited_while_it_ran_is_not_believed(runner, tmp_path):
    path = write_notebook(tmp_path, "01_toy", measure("01_slow", "slow"))
    process = runner.start()
    wait_for((tmp_path / "slow.pid").exists)
    path.write_text(path.read_text().replace("# 01_toy", "# 01_toy, edited"))
    (tmp_path / "go").touch()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "it was edited while it ran: start again" in err
    code, out, err = runner.run()
    assert code == 0 and "finished before" not in out, err
    assert runner.log() == ["slow"]  # its table was whole


CLOCK = "import time\nreal = time.time\ntime.time = lambda: real() - 400 * 86400"


@pytest.mark.parametrize(
    ("given", "before"),
    [
        ({"HOME": None}, ""),
        ({"LC_ALL": "C", "LANG": "C"}, ""),
        ({"LC_ALL": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati"}, ""),
        ({}, CLOCK),
    ],
    ids=["no HOME", "C locale", "other locale and time zone", "clock a year back"],
)
def test_home_locale_and_clock_change_no_table(tmp_path, given, before):
    folder = tmp_path / "ein Ordner mit ü und 木"
    folder.mkdir()
    runner = Runner(folder)
    write_notebook(folder, "01_toy", measure("01_quick", "quick"), measure("01_other", "ä 木"))
    assert runner.run()[0] == 0
    tables = [runner.table(stem) for stem in ("01_quick", "01_other")]
    for name, value in given.items():
        runner.environment.pop(name, None)
        if value is not None:
            runner.environment[name] = value
    code, out, err = runner.run(before=before)
    assert code == 0, err
    assert [runner.table(stem) for stem in ("01_quick", "01_other")] == tables and len(runner.log()) == 3  # "ä 木" is two words


def test_force_measures_the_chosen_notebooks_again_and_a_table_says_what_was_made(runner, tmp_path):
    write_notebook(tmp_path, "01_toy", measure("01_a", "a"))
    write_notebook(tmp_path, "02_toy", measure("02_b", "b"))
    other = runner.smoke / "tables" / "01_a.csv"
    assert runner.run("--only", "02")[0] == 0
    other.write_text("another notebook's")
    code, out, _ = runner.run("--only", "2", "--force")
    assert code == 0
    assert runner.log() == ["b", "b"] and other.read_text() == "another notebook's"
    assert out.startswith("[1/1] 02_toy\n\nnotebook") and "\n02_toy " in out
    executed = json.loads((runner.smoke / "notebooks" / "02_toy.ipynb").read_text())
    assert all("papermill" not in part["metadata"] for part in (executed, *executed["cells"]))
    assert any(c.get("outputs") for c in executed["cells"])


def test_force_measures_again_what_a_notebook_reads_under_anothers_number(runner, tmp_path):
    write_notebook(tmp_path, "01_toy", measure("01_a", "a"), measure("01_rate-0.1[x]", "shared"))
    write_notebook(tmp_path, "02_toy", measure("01_rate-0.1[x]", "shared"), measure("02_b", "b"))
    assert runner.run()[0] == 0 and runner.log() == ["a", "shared", "b"]
    assert runner.run("--only", "2", "--force")[0] == 0
    assert runner.log()[3:] == ["shared", "b"]


def test_a_notebook_without_the_profile_parameter_is_refused(runner, tmp_path):
    path = write_notebook(tmp_path, "01_toy")
    path.write_text(path.read_text().replace("profile = None", "profil = None"))
    code, _, err = runner.run()
    assert code == 1 and "01_toy.ipynb has no `profile`" in err


def test_a_long_measurement_shows_a_bar_with_the_time_left_on_the_terminal(runner, tmp_path):
    loop = "from mtp_utils.base.runtime import progress\nfor _ in progress(range(3), 'measuring'):\n    time.sleep(0.6)"
    write_notebook(tmp_path, "01_toy", loop)
    terminal, side = os.openpty()
    process = runner.start(stdout=side, stderr=side)
    os.close(side)
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # the other side was closed: Linux says EIO
        pass
    assert process.wait(20) == 0
    assert re.search(r"cell 6/7  measuring: .*2/3 \[00:0\d<00:0\d", shown.decode())  # done, elapsed, left


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (
            ["smok"],
            "smoke, default, overnight, pretrained, pretrained-overnight, hub, hub-large, hub-qwen3, book, check, publish, test, "
            "setup",
        ),
        (["smoke", "--only", "77"], "there are"),
        (["smoke", "--fast"], "--only NN ..., --backbone NAME ..., --text FILE, --dry-run, --force and --list"),
        (["check", "--force"], "smoke, default"),
        (["default", "--text", "nowhere.txt"], "--text nowhere.txt is no file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_unknown_word_is_one_line_and_installs_nothing(words, names, tmp_path):
    """In a copy without an environment, in a folder with a space, from elsewhere."""
    copy = tmp_path / "a copy"
    copy_package(copy)
    for name in ("reproduce.sh", "environment.yml"):
        shutil.copy(ROOT / name, copy / name)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MTP_", "CONDA"))}
    done = subprocess.run([copy / "reproduce.sh", *words], cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and names in done.stderr
    assert not (copy / ".venv").exists()


def test_the_runner_asks_for_nothing_but_the_standard_library_to_check_its_words():
    code = "import sys; from mtp_utils.reproduce import parse; parse(['smoke']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "pandas", "numpy", "papermill"}.isdisjoint(done.stdout.split())


def test_the_kernel_is_the_runners_own_interpreter_and_reads_no_start_up_files(tmp_path):
    runner = Runner(tmp_path)
    write_notebook(tmp_path, "01_toy", measure("01_table", "table"))
    theirs = tmp_path / "theirs" / "kernels" / "python3"
    theirs.mkdir(parents=True)
    (theirs / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"}))
    for place in (tmp_path / "ipython" / "profile_default" / "startup" / "00.py", tmp_path / "startup.py"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"open({str(tmp_path / 'read')!r}, 'w')")
    runner.environment |= {"JUPYTER_PATH": str(tmp_path / "theirs"), "PYTHONSTARTUP": str(tmp_path / "startup.py")}
    code, _, err = runner.run()
    assert code == 0 and runner.log() == ["table"], err
    assert not (tmp_path / "read").exists()


def test_a_folder_that_cannot_be_locked_says_what_to_set(tmp_path):
    runner = Runner(tmp_path)
    write_notebook(tmp_path, "01_toy", measure("01_table", "table"))
    none = "import fcntl\ndef flock(*_): raise OSError(37, 'No locks available')\nfcntl.flock = flock"
    code, _, err = runner.run(before=none)
    assert code == 1 and "set MTP_BUILD to a folder on a local disk" in err and "already writing" not in err


@pytest.mark.parametrize(("asked", "expected"), [("3", (3, "OMP_NUM_THREADS")), ("0", None), ("", None), ("4,2", None)])
def test_no_threads_is_no_number_of_threads(monkeypatch, asked, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    found = runtime.choose_threads.__wrapped__()
    assert found == expected if expected else found[0] >= 1 and found[1] != "OMP_NUM_THREADS"
