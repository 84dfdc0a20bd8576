"""The user's own backbones and text in place of the embedded ones."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from mtp_utils.backbones.load import load_backbone
from mtp_utils.base import paths, profiles
from mtp_utils.findings import stored
from mtp_utils.reproduce import parse
from mtp_utils.reproduce.__main__ import main
from mtp_utils.text import blocks, corpora
from mtp_utils.text import own as own_text

SHAPE = {"vocab_size": 1024, "bos_token_id": 0, "eos_token_id": 0}
MODELS = {
    "gpt2 ä": lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=512, **SHAPE)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, **SHAPE)
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Directories of models with the ladder's tokenizer, and a text."""
    folder, tokenizer = tmp_path_factory.mktemp("my models"), load_backbone("ladder/w16", device="cpu").tokenizer
    for name, make in MODELS.items():
        torch.manual_seed(0)
        make().save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    lines = [f"Line {i} of a text, and {i * i} is its square, which is {'even' if i % 2 == 0 else 'odd'}.\n" for i in range(6000)]
    (folder / "my text.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def own(monkeypatch, backbones=None, text=None):
    monkeypatch.setenv(profiles.OWN, json.dumps({"backbones": backbones or {}, "text": text and str(text)}))


@pytest.fixture(autouse=True)
def clean():
    yield
    os.environ.pop(profiles.OWN, None)  # main leaves it for its kernels


def test_names_on_the_command_line_become_a_profile_of_their_own(folder, monkeypatch):
    args = parse(["smoke", "--backbone", str(folder / "llama"), "some/hub-name", "--text", str(folder / "my text.txt")])
    assert args.backbone == {"own/llama": str(folder / "llama"), "some/hub-name": "some/hub-name"}
    profile = profiles.with_own(profiles.PROFILES["default"], args.backbone, args.text)
    assert profile.backbones == ("own/llama", "some/hub-name") and profile.corpora == ("text",) and profile.judges
    assert not profile.twins and not profile.extra_seeds and profile.name.startswith("default+hub-name-")
    assert paths.build(profile.name) != paths.build("default")
    assert profile.timeout_s > 24 * 3600 and profiles.with_own(profiles.PROFILES["smoke"], {}, args.text).timeout_s == 300
    more = profiles.with_own(profiles.PROFILES["overnight"], args.backbone, args.text)
    assert more.name != profile.name and more.folder == profile.folder == profile.name
    with pytest.raises(ValueError, match="--backbone or --text, and they are not given"):
        profiles.get_profile(profile.name)
    own(monkeypatch, args.backbone, args.text)
    assert profiles.get_profile(profile.name) == profile


def test_folders_are_told_apart_by_their_parents_and_those_of_the_hubs_cache_by_their_repository(tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--org--name"
    for folder in ("a/checkpoint-1000", "b/checkpoint-1000", cached / "snapshots/abc", cached / "snapshots/def"):
        (tmp_path / folder).mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    (tmp_path / "text").write_text("A text.")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MTP_FROM", str(tmp_path))
    args = parse(["smoke", "--backbone", "a/checkpoint-1000", "~/b/checkpoint-1000", str(cached), "--text=~/text"])
    assert args.backbone == {
        "own/a/checkpoint-1000": str(tmp_path / "a/checkpoint-1000"),
        "own/b/checkpoint-1000": str(tmp_path / "b/checkpoint-1000"),
        "own/org/name": str(cached / "snapshots" / "abc"),
    }
    assert args.text == str(tmp_path / "text")
    assert list(parse(["smoke", "--backbone", f"{cached}/snapshots/def"]).backbone) == ["own/org/name"]
    assert list(parse(["smoke", "--backbone=~/b/checkpoint-1000"]).backbone.values()) == [str(tmp_path / "b/checkpoint-1000")]


@pytest.mark.parametrize(
    "words, message",
    [
        (["check", "--backbone", "x"], "check takes no flags"),
        (["smoke", "--text", "no such file"], "--text no such file is no file"),
        (["smoke", "--backbone"], "expected at least one argument"),
        (["smoke", "--backbone", ""], "--backbone: one of the names is empty"),
        (["smoke", "--backbone", "a", "a"], "two are called a"),
    ],
)
def test_wrong_words_are_one_line_and_exit_2(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(words)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_backbones_that_cannot_be_measured_together_are_refused_before_any_work(folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MTP_BUILD", str(tmp_path / "build"))
    short = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=128, **SHAPE))
    short.save_pretrained(tmp_path / "short")
    load_backbone("ladder/w16").tokenizer.save_pretrained(tmp_path / "short")
    (tmp_path / "little.txt").write_text("A few words.")
    for words, message in (
        (["--backbone", str(tmp_path / "short")], "own/short reads 128 tokens; 260 are needed"),
        (["--backbone", str(tmp_path)], "the directory must hold config.json"),
        (["--backbone", "no/such-model"], "hub name needs the network"),
        (["--text", str(tmp_path / "little.txt")], "at least 10 are needed"),
    ):
        os.environ.pop(profiles.OWN, None)
        assert main(["smoke", *words]) == 2
        assert message in capsys.readouterr().err


def test_a_backbone_of_ones_own_loads_by_its_short_name(folder, monkeypatch):
    own(monkeypatch, {"own/gpt2 ä": str(folder / "gpt2 ä")})
    b = load_backbone("own/gpt2 ä", device="cpu")
    assert b.name == "own/gpt2 ä" and b.model.config.model_type == "gpt2"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"one",
        "ä € 🎉 ".encode() * 3000,
        b"a few words, and then some broken \x80 bytes in a rather long line of text that goes on and on, to its end\n" * 500,
        b"x" * 1_000_000,
        b"word " * 200_000,
        b"a line\r\nanother\r\n\r\n" * 300,
        b"a line\ranother\r\r" * 300,
    ],
    ids=["empty", "one token", "emoji", "hardly broken", "1 MB without a space", "1 MB without a newline", "CRLF", "CR"],
)
def test_any_bytes_are_documents_or_an_error_that_says_why(data, tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_BUILD", str(tmp_path))
    path = tmp_path / "text"
    path.write_bytes(data)
    own(monkeypatch, text=path)
    pieces, _ = own_text.pieces()
    whole = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    assert all(len(p) <= 2 * own_text.PIECE and p in whole for p in pieces) and len(set(pieces)) == len(pieces)
    parts = [[d.text for d in corpora.documents("text", s)] for s in own_text.SPLITS]
    assert sorted(t for part in parts for t in part) == sorted(pieces)  # every piece in one split
    tokenizer = load_backbone("ladder/w16", device="cpu").tokenizer
    try:
        found = blocks.evaluation_blocks("text", "test", tokenizer, n_documents=200, positions_per_document=1, horizon=4)
    except ValueError as error:
        assert "documents long enough; at least 10 are needed" in str(error)
    else:
        assert len(found.documents) >= 10 and found.scored.sum() == len(found.documents)


GERMAN = "Größere Häuser stehen über dem Fluß, und süße Äpfel hängen an dürren Ästen.\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le with a mark"])
def test_a_text_is_read_in_the_encoding_that_it_is_marked_with(encoding, tmp_path, monkeypatch):
    name, _, marked = encoding.partition(" with")
    (tmp_path / "text").write_bytes((b"\xff\xfe" if marked else b"") + (GERMAN * 40).encode(name))
    own(monkeypatch, text=tmp_path / "text")
    assert "".join(own_text.pieces()[0]) in GERMAN * 40 and "Größere" in own_text.pieces()[0][0]


@pytest.mark.parametrize(
    ("data", "likely"),
    [
        (GERMAN.encode("latin-1") * 40, "Latin-1 or Windows-1252"),
        (GERMAN.encode("utf-16-le") * 40, "UTF-16LE without its mark"),
        (GERMAN.encode("utf-16-be") * 40, "UTF-16BE without its mark"),
        (b"nul \x00 inside\n\n" * 500, "no text"),
        (b"\xff\xfe" + b"\x00\xd8" * 500, "broken utf-16"),
        (bytes(range(256)) * 40, "no text"),
    ],
)
def test_a_text_in_another_encoding_is_refused_with_the_likely_one(data, likely, tmp_path, monkeypatch, capsys):
    (tmp_path / "text").write_bytes(data)
    monkeypatch.setenv("MTP_BUILD", str(tmp_path / "build"))
    assert main(["smoke", "--text", str(tmp_path / "text")]) == 2
    err = capsys.readouterr().err
    assert f"it looks like {likely}: convert it" in err and len(err.splitlines()) == 1


def test_a_large_vocabulary_is_not_summed_over_whole(monkeypatch):
    b = load_backbone("ladder/w16", device="cpu")
    assert stored.estimators_of(b)[2] == {"exact": True}
    monkeypatch.setattr(stored, "LARGEST_EXACT", 1000)
    assert stored.estimators_of(b)[2] == stored.BEYOND[2]


def run_on(folder, build, notebook: str, *names: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mtp_utils.reproduce", "smoke", "--only", notebook]
    command += ["--backbone", *(str(folder / name) for name in names), "--text", str(folder / "my text.txt")]
    environment = os.environ | {"MTP_BUILD": str(build), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=paths.ROOT, env=environment)
    assert done.returncode == 0, done.stderr + done.stdout
    return done


def test_a_notebook_runs_on_them_and_says_what_it_left_out(folder, tmp_path):
    done = run_on(folder, tmp_path, "02", "gpt2 ä", "llama")
    assert "02 left out dose-response" in done.stdout and "02 left out verdict C2 (size)" in done.stdout
    (made,) = tmp_path.glob("smoke+llama-*/figures")
    table = (made / "02_size.csv").read_text(encoding="utf-8")
    assert "own/gpt2 ä" in table and "text" in table and str(folder) not in table


def test_a_notebook_about_heads_ends_in_order_on_a_backbone_that_can_have_none(folder, tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "word_embed_proj_dim": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24}
    OPTForCausalLM(OPTConfig(**shape, do_layer_norm_before=False, **SHAPE)).save_pretrained(folder / "narrow")
    load_backbone("ladder/w16", device="cpu").tokenizer.save_pretrained(folder / "narrow")
    done = run_on(folder, tmp_path, "04", "narrow")
    for line in ("frozen heads of own/narrow: OPTForCausalLM ", "verdict C3a: no backbone", "the rest of the notebook: no"):
        assert f"04 left out {line}" in done.stdout
    (made,) = tmp_path.glob("smoke+*")
    assert (made / "notebooks" / "04_frozen_heads.ipynb").is_file() and not list((made / "figures").glob("04_*"))
