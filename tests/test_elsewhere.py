"""Files by which others' machines open or test this repository: valid, of one environment, and of commands that there are."""

import json
import os
import re
import shlex
import subprocess

import pytest
import yaml
from toy_run import ROOT

from mtp_utils.reproduce import parse

CONTAINER = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
ENVIRONMENT, BINDER = (yaml.safe_load((ROOT / name).read_text()) for name in ("environment.yml", "binder/environment.yml"))
SCRIPTS = {name: (ROOT / name).read_text() for name in ("binder/postBuild", "binder/start")}


def commands() -> list[str]:
    """Every command that these files start, one of several in a line by itself."""
    lines = [CONTAINER["postCreateCommand"]]
    lines += [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]
    lines += [line for text in SCRIPTS.values() for line in text.splitlines() if line and not line.startswith("#")]
    return [command.strip() for line in lines for command in line.split("&&")]


@pytest.mark.parametrize("command", commands())
def test_a_command_names_files_words_and_notebooks_that_there_are(command):
    words = shlex.split(command)
    scripts = [word for word in words if re.match(r"(\./|\.ci/)", word)]
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts), f"not there, or not executable: {scripts}"
    assert all((ROOT / words[i + 1]).is_file() for i, word in enumerate(words) if word in ("-c", "-f"))
    if "./reproduce.sh" in words:
        given = parse(words[words.index("./reproduce.sh") + 1 :])  # ends the test where it knows no such word
        assert all(list((ROOT / "notebooks").glob(f"{number}_*.ipynb")) for number in given.only or ())


def test_the_container_ends_in_notebook_00_under_smoke_in_the_environment_of_environment_yml():
    assert f"-n {ENVIRONMENT['name']} ./reproduce.sh smoke --only 00" in CONTAINER["postCreateCommand"]
    assert f"/envs/{ENVIRONMENT['name']}/" in CONTAINER["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert [p for p in CONTAINER["customizations"]["codespaces"]["openFiles"] if not (ROOT / p).is_file()] == []
    assert CONTAINER["containerEnv"]["MTP_PROFILE"] == "smoke" and CONTAINER["image"].count(":") == 1


def test_binder_builds_the_same_environment():
    *conda, pip = ENVIRONMENT["dependencies"]
    assert BINDER == ENVIRONMENT | {"dependencies": conda}
    (install,) = [line for line in SCRIPTS["binder/postBuild"].splitlines() if "pip install" in line]
    assert shlex.split(install)[-4:] == shlex.split(" ".join(pip["pip"]))


@pytest.mark.parametrize("name", SCRIPTS)
def test_binders_scripts_are_executable_and_parse(name):
    assert os.access(ROOT / name, os.X_OK)
    assert subprocess.run(["bash", "-n", ROOT / name]).returncode == 0


def test_what_binder_starts_is_in_the_smoke_profile():
    started = [ROOT / "binder/start", "sh", "-c", 'echo "$MTP_PROFILE $0"', "lab"]
    assert subprocess.run(started, capture_output=True, text=True, check=True).stdout == "smoke lab\n"


def test_the_workflow_runs_ci_on_linux_and_smoke_on_macos_and_says_that_we_do_not():
    jobs = WORKFLOW["jobs"].values()
    runs = {job["runs-on"].split("-")[0]: job["steps"][-1]["run"] for job in jobs}
    assert runs == {"ubuntu": ".ci/run", "macos": "./reproduce.sh smoke"}
    assert all(job["timeout-minutes"] <= 60 and job["steps"][0]["uses"].startswith("actions/checkout@") for job in jobs)
    assert re.search(r"\.github/workflows[^.]*\.yml`[^.]*not run by us", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
