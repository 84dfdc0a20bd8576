"""The files that describe the environment agree, and reproduce.sh installs it once, whole."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version

import pytest
from toy_run import ROOT, copy_package

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
CONSTRAINTS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
STUB = """#!/bin/sh
# Stands for python3: makes a stub of an environment, logs what pip is asked, and is python for the rest.
case "$1 $2" in
  "-c import fcntl"*) [ -z "${NO_LOCKS-}" ] || { echo "No locks available" >&2; exit 1; }; exec "$REAL_PYTHON" "$@" ;;
  "-m jupyter") echo "opened $3 $4" ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip") echo "$@" >>"$PIP_LOG"; env | grep ^PIP_ >"$PIP_LOG.env"; [ ! -e "$PIP_LOG.fail" ] ;;
  "-m mtp_utils.reproduce") echo "ran $3" ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
"""


def test_direct_dependencies_are_pinned_and_the_constraints_hold_the_same_versions():
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in DIRECT + CONSTRAINTS)
    assert set(DIRECT) <= set(CONSTRAINTS)


def test_the_constraints_are_sorted_distinct_and_name_no_build_or_host():
    names = [line.split("==")[0].lower().replace("_", "-") for line in CONSTRAINTS]
    assert len(set(names)) == len(names)
    text = (ROOT / "constraints.txt").read_text()
    assert "torch==2.13.0\n" in text
    assert not re.search(r"\+c|://|--hash|@|mtp", text)


def test_the_constraints_cover_everything_the_direct_dependencies_bring():
    """Followed through the metadata of what is installed, with this machine's markers."""
    from packaging.requirements import Requirement

    constrained = {line.split("==")[0].lower().replace("_", "-") for line in CONSTRAINTS}
    waiting, seen = [line.split("==")[0] for line in DIRECT], set()
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        for text in requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    builds = {name for name in seen if name.startswith(("nvidia-", "cuda-")) or name in ("triton", "setuptools")}
    assert seen - constrained - builds == set()


def test_what_is_installed_is_what_is_pinned():
    different = [d for d in DIRECT if version(d.split("==")[0]).split("+")[0] != d.split("==")[1]]
    assert different == []


def test_environment_yml_names_no_version_but_pythons_and_installs_the_same_way():
    text = (ROOT / "environment.yml").read_text()
    items = re.findall(r"^ *- (.*)$", text, re.MULTILINE)
    assert items == ["conda-forge", "python=3.11", "pip", "pip:", "-c constraints.txt", "-e .[test]"]
    assert PROJECT["requires-python"] == ">=3.11"
    assert "-c constraints.txt -e '.[test]'" in (ROOT / "reproduce.sh").read_text()


def test_every_direct_dependency_has_its_reason_in_contributing():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert [d for d in DIRECT if f"`{d.split('==')[0]}`" not in text] == []


def test_the_package_ships_the_ladder_and_the_licence():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert data == {"mtp_utils": ["**/*.json", "**/*.html", "**/*.js", "backbones/ladder/**"]}
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert "arXiv:2502.09419" in (ROOT / "CITATION.cff").read_text()


@pytest.fixture
def fresh(tmp_path):
    """A copy of the repository without an environment, in a folder with a space, and a stub of python3."""
    copy = tmp_path / "a copy"
    copy_package(copy)
    (copy / "notebooks").mkdir()
    for name in ("reproduce.sh", "environment.yml", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, copy / name)
    stub = tmp_path / "bin" / "python3"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    return copy


def environment_of(copy) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MTP_", "CONDA"))}
    kept |= {"PATH": f"{copy.parent / 'bin'}:{os.environ['PATH']}", "REAL_PYTHON": sys._base_executable}
    return kept | {"PIP_LOG": str(copy.parent / "log")}


def reproduce(copy, *words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [copy / "reproduce.sh", *words], env=environment_of(copy) | environment, cwd="/", capture_output=True, text=True
    )


def installations(copy) -> int:
    log = copy.parent / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_the_environment_is_installed_once_and_again_only_when_its_files_change(fresh):
    assert reproduce(fresh, "smoke").stdout == "ran smoke\n"
    assert (fresh.parent / "log").read_text().endswith("-c constraints.txt -e .[test]\n")
    assert reproduce(fresh, "smoke").stdout == "ran smoke\n"
    assert installations(fresh) == 1
    with open(fresh / "constraints.txt", "a") as file:
        file.write("more==1\n")
    assert reproduce(fresh, "setup").returncode == 0
    assert installations(fresh) == 2


def test_a_set_up_broken_off_half_way_is_redone_from_nothing(fresh):
    failing = fresh.parent / "log.fail"
    failing.touch()
    done = reproduce(fresh, "smoke")
    assert done.returncode == 1 and "the installation failed" in done.stderr and "ran" not in done.stdout
    (fresh / ".venv" / "left over").touch()
    failing.unlink()
    assert reproduce(fresh, "smoke").stdout == "ran smoke\n"
    assert installations(fresh) == 2
    assert not (fresh / ".venv" / "left over").exists()


def test_a_repository_that_was_moved_is_installed_again(fresh):
    reproduce(fresh, "setup")
    moved = fresh.rename(fresh.parent / "moved")
    reproduce(moved, "setup")
    assert installations(moved) == 2


def test_of_two_set_ups_at_once_the_second_says_so_and_stops(fresh):
    import fcntl

    with open(fresh / ".venv.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = reproduce(fresh, "setup")
    assert done.returncode == 3 and "another reproduce.sh is setting up" in done.stderr
    assert installations(fresh) == 0


def test_the_active_conda_environment_serves_if_it_is_the_one_of_environment_yml(fresh):
    conda = fresh.parent / "conda env"
    (conda / "bin").mkdir(parents=True)
    shutil.copy(fresh.parent / "bin" / "python3", conda / "bin" / "python")
    done = reproduce(fresh, "setup", CONDA_PREFIX=str(conda), CONDA_DEFAULT_ENV="mtp-companion")
    assert done.stdout == f"{conda} is ready\n" and not (fresh / ".venv").exists()
    done = reproduce(fresh, "setup", CONDA_PREFIX=str(conda), CONDA_DEFAULT_ENV="base")
    assert done.stdout == f"{fresh / '.venv'} is ready\n"


def test_a_python_too_old_or_missing_is_named_and_nothing_is_made(fresh):
    (fresh.parent / "bin" / "python3").write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1; exit 1\n')
    done = reproduce(fresh, "smoke")
    assert done.returncode == 1
    assert done.stderr == "reproduce.sh: Python 3.11 or newer is needed, and 'python3' is Python 3.9.1\n"
    assert not (fresh / ".venv").exists()


def test_a_python_newer_than_the_pins_have_wheels_for_is_told_which_ones_work(fresh):
    (fresh.parent / "bin" / "python3").write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.15.1\ncase "$2" in *"(3, 15)"*) exit 1 ;; esac\nexit 0\n'
    )
    done = reproduce(fresh, "smoke")
    assert done.returncode == 1 and not (fresh / ".venv").exists()
    assert done.stderr.endswith("have wheels for Python 3.11 to 3.14, and 'python3' is Python 3.15.1\n")


@pytest.mark.parametrize("how", ["sh", "link", "link to a link", "safe path"])
def test_it_starts_however_it_is_called(fresh, how):
    first, second = fresh.parent / "links" / "first", fresh.parent / "second"
    first.parent.mkdir()
    first.symlink_to(fresh / "reproduce.sh")
    second.symlink_to("links/first")
    script = fresh / "reproduce.sh"
    command = {"sh": ["sh", script], "link": [first], "link to a link": [second], "safe path": [script]}[how]
    environment = environment_of(fresh) | ({"PYTHONSAFEPATH": "1"} if how == "safe path" else {})
    done = subprocess.run([*command, "smoke"], env=environment, cwd="/", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "ran smoke\n"), done.stderr


def test_pip_installs_into_the_environment_whatever_the_user_has_set(fresh):
    elsewhere = {"PIP_USER": "1", "PIP_TARGET": "/nowhere", "PIP_PREFIX": "/nowhere", "PIP_REQUIRE_VIRTUALENV": "1"}
    assert reproduce(fresh, "setup", **elsewhere, PIP_RETRIES="7").returncode == 0
    found = {line.split("=")[0] for line in (fresh.parent / "log.env").read_text().splitlines()}
    assert "PIP_RETRIES" in found and not found & set(elsewhere)


def test_a_file_system_without_locks_is_not_taken_for_another_run(fresh):
    done = reproduce(fresh, "setup", NO_LOCKS="1")
    assert done.returncode == 1 and "has no file locks" in done.stderr and "another" not in done.stderr
    assert installations(fresh) == 0


def test_lab_opens_the_notebooks_in_the_environment(fresh):
    assert reproduce(fresh, "lab").stdout == "opened lab notebooks\n"
    assert reproduce(fresh, "lab", "--only", "01").returncode == 2


def test_a_clone_made_with_windows_line_ends_has_the_repositorys_bytes(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "-c", "core.autocrlf=true", ROOT, clone], check=True)
    known = subprocess.run(["git", "ls-files"], cwd=clone, capture_output=True, text=True, check=True)
    texts = [name for name in known.stdout.splitlines() if not name.endswith((".safetensors", ".png"))]
    assert len(texts) > 200 and not [name for name in texts if b"\r\n" in (clone / name).read_bytes()]
    done = subprocess.run([clone / "reproduce.sh", "--list"], capture_output=True, text=True)
    assert done.returncode == 0 and "00_start_here" in done.stdout
