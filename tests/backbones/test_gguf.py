"""A GGUF file is the model it was written from; it is converted once, and a conversion that is not whole is not trusted."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from tiny_gguf import stored_as, tiny_llama, write_gguf

from mtp_utils.backbones import gguf, load_backbone
from mtp_utils.backbones.load import look_at
from mtp_utils.backbones.look import look
from mtp_utils.base import paths, profiles
from mtp_utils.base.files import file_digest
from mtp_utils.heads import Heads, HeadSpec, load_heads
from mtp_utils.marginal import future_log_probs
from mtp_utils.reproduce import parse, running


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
def test_every_weight_is_what_the_file_holds(kind, tmp_path):
    model = tiny_llama(tie_word_embeddings=kind != "F16")
    b = load_backbone(str(write_gguf(tmp_path / "tiny.gguf", model, kind)), device="cpu")
    found, source = b.model.state_dict(), model.state_dict()
    assert found.keys() == source.keys() and b.model.dtype == torch.float32
    for name, weight in source.items():
        expected = torch.from_numpy(stored_as(kind, weight.numpy())) if weight.ndim > 1 else weight
        assert torch.equal(found[name], expected), name
    model.load_state_dict(found)
    ids = torch.randint(1024, (2, 40), generator=torch.Generator().manual_seed(0))
    assert (b.model(ids).logits - model(ids).logits).abs().max() < 1e-5


def test_it_is_known_by_the_files_hash_and_type_and_its_tokenizer_is_the_one_in_it(tmp_path):
    path = write_gguf(tmp_path / "tiny.Q8_0.gguf", tiny_llama(), "Q8_0")
    b, ladder = load_backbone(str(path), device="cpu"), load_backbone("ladder/w16", device="cpu").tokenizer
    assert b.name == "tiny.Q8_0" and b.fingerprint == f"{file_digest(path)}:gguf:Q8_0"
    text = "def naïve(x):\n    return x + 12  # ☃"
    ours, theirs = (t(text, return_offsets_mapping=True) for t in (b.tokenizer, ladder))
    assert ours["input_ids"] == theirs["input_ids"] and ours["offset_mapping"] == theirs["offset_mapping"]
    assert b.tokenizer.eos_token == ladder.eos_token and b.tokenizer.decode(ours["input_ids"]) == text


def test_the_marginal_on_it_is_the_references(tmp_path):
    b = load_backbone(str(write_gguf(tmp_path / "tiny.gguf", tiny_llama(), "Q8_0")), device="cpu")
    ids = b.tokenizer("for i in range(", return_tensors="pt")["input_ids"]
    fast, slow = (future_log_probs(b.model, ids, 2, top_k=5, reference=r).log_probs.exp() for r in (False, True))
    assert (fast - slow).abs().max() < 1e-5


def test_heads_trained_on_one_file_are_refused_on_another(tmp_path):
    for i in (10, 20):
        (tmp_path / str(i)).mkdir()
        write_gguf(tmp_path / str(i) / "tiny.gguf", tiny_llama(rms_norm_eps=2.0**-i))
    one, other = (load_backbone(str(tmp_path / str(i)), device="cpu") for i in (10, 20))
    assert one.name == other.name and one.fingerprint != other.fingerprint
    Heads(one, HeadSpec(offsets=(2,))).save(tmp_path / "heads")
    assert load_heads(tmp_path / "heads", one).spec.offsets == (2,)
    with pytest.raises(ValueError, match="holds heads of"):
        load_heads(tmp_path / "heads", other)


def test_rotary_frequencies_scaled_linearly_or_as_llama_3_does_are_the_sources_and_other_ways_refused(tmp_path):
    scaled = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = tiny_llama(rope_parameters=scaled | {"original_max_position_embeddings": 8192}, max_position_embeddings=16384)
    plain = tiny_llama(rope_parameters={"rope_type": "default", "rope_theta": 500000.0}).model.rotary_emb.inv_freq
    factors = (plain / model.model.rotary_emb.inv_freq).numpy()
    assert factors.max() > 30 and factors.min() == 1
    path = write_gguf(tmp_path / "three.gguf", model, **{"rope_freqs.weight": factors})
    found = load_backbone(str(path), device="cpu").model
    ids = torch.randint(1024, (1, 300), generator=torch.Generator().manual_seed(0))
    assert (found(ids).logits - model(ids).logits).abs().max() < 1e-4
    linear = tiny_llama(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0})
    found = load_backbone(str(write_gguf(tmp_path / "linear.gguf", linear, scaling=("linear", 4.0))), device="cpu").model
    assert (found(ids).logits - linear(ids).logits).abs().max() < 1e-4
    assert (found(ids).logits - tiny_llama()(ids).logits).abs().max() > 0.1
    with pytest.raises(ValueError, match=r"scales rotary frequencies \(yarn\), which transformers' reader drops"):
        load_backbone(str(write_gguf(tmp_path / "yarn.gguf", linear, scaling=("yarn", 4.0))))
    path = write_gguf(tmp_path / "odd.gguf", model, **{"rope_freqs.weight": np.linspace(1, 3, 4)})
    with pytest.raises(ValueError, match=r"odd.gguf .*rope_freqs.weight\) are in no way that is known here"):
        load_backbone(str(path))


def never(*_):
    raise AssertionError("converted again")


def test_it_is_converted_once_whatever_it_is_called_and_wherever_it_lies(tmp_path, monkeypatch, capsys):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), "Q8_0")
    first = load_backbone(str(path), device="cpu")
    assert capsys.readouterr().out == "converting tiny.gguf (0 MB), once\n"
    monkeypatch.setattr(gguf, "_read", never)
    monkeypatch.setattr(gguf, "header_of", never)
    (tmp_path / "other").mkdir()
    shutil.copy(path, tmp_path / "other" / "again.gguf")
    shutil.copy(path, tmp_path / "blob without an ending")
    for where, name in (("tiny.gguf", "tiny"), ("other", "again"), ("blob without an ending", "blob without an ending")):
        again = load_backbone(str(tmp_path / where), device="cpu")
        assert again.name == name and again.fingerprint == first.fingerprint
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", ["no mark", "weights cut short", "no tokenizer", "another reader", "an empty mark"])
def test_a_conversion_that_is_not_whole_is_made_again(damage, tmp_path, capsys):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    folder = gguf.folder_of(path)
    before, mark = file_digest(folder / "model.safetensors"), folder / gguf.MADE
    content = json.loads(mark.read_text())
    {
        "no mark": mark.unlink,
        "weights cut short": lambda: (folder / "model.safetensors").write_bytes(b"half"),
        "no tokenizer": (folder / "tokenizer.json").unlink,
        "another reader": lambda: mark.write_text(json.dumps(content | {"by": {"transformers": "4.0"}})),
        "an empty mark": lambda: mark.write_text(""),
    }[damage]()
    (folder.parent / ".model.1.tmp").mkdir()  # of a process that was killed
    capsys.readouterr()
    assert gguf.folder_of(path) == folder and capsys.readouterr().out.startswith("converting tiny.gguf")
    assert file_digest(folder / "model.safetensors") == before and json.loads(mark.read_text()) == content
    assert sorted(p.name for p in folder.parent.iterdir()) == [".lock", "model"]
    assert all(file_digest(folder / name) == file["sha256"] for name, file in content["files"].items())


@pytest.mark.parametrize("locks", [True, False])
def test_of_two_at_once_with_locks_one_converts_and_the_other_waits(locks, tmp_path, monkeypatch, capsys):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    if not locks:  # ENOLCK, as some network file systems say
        monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(37, "No locks available")))
    with ThreadPoolExecutor(2 if locks else 1) as pool:
        folders = list(pool.map(gguf.folder_of, [path] * 2))
    assert folders[0] == folders[1] and gguf._whole(folders[0], file_digest(path))
    assert capsys.readouterr().out.count("converting") == 1


def refused(path) -> str:
    with pytest.raises(ValueError) as error:
        load_backbone(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_no_whole_gguf_or_of_an_unknown_architecture_is_refused_in_one_line(tmp_path, cache):
    whole = write_gguf(tmp_path / "whole.gguf", tiny_llama()).read_bytes()
    for length in (0, 3, 20, 100, 5000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        assert "no GGUF file, or not all of one" in (said := refused(tmp_path / "cut.gguf")) or "is cut off" in said
    (tmp_path / "text.gguf").write_text("some words")
    assert "does not start with the GGUF magic" in refused(tmp_path / "text.gguf")
    unknown = write_gguf(tmp_path / "unknown.gguf", tiny_llama(), architecture="nonesuch")
    assert "architecture nonesuch" in refused(unknown) and "give the model as safetensors" in refused(unknown)
    assert not list(cache.glob("*/model*")) and not list(cache.glob("*/.model*"))
    (tmp_path / "two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "two" / name).write_bytes(whole)
    assert "holds 2 GGUF files, give one: a.gguf, b.gguf" in refused(tmp_path / "two")


def test_a_cache_that_takes_nothing_is_named_with_what_to_set(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama())

    class Full:
        def save_pretrained(self, folder):
            raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "_read", lambda *_: (Full(),))
        assert "No space left" in (said := refused(path)) and "set MTP_CACHE" in said
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
        assert "takes 0.00 GB in float32" in (said := refused(path)) and "set MTP_CACHE" in said
    (tmp_path / "file").touch()
    monkeypatch.setenv("MTP_CACHE", str(tmp_path / "file"))
    assert "takes nothing" in (said := refused(path)) and "set MTP_CACHE" in said
    monkeypatch.delenv("MTP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert paths.models() == tmp_path / "xdg" / "mtp_companion"
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert "set MTP_CACHE to a folder" in refused(path)


def test_the_look_before_work_says_what_it_came_from(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), "Q8_0")
    first, second = look(str(path), 260)
    assert "LlamaConfig" in first and "architecture llama, quantised to Q8_0; dequantised to float32" in second
    assert look_at(str(path))[2] == (next((tmp_path / "cache").glob("*/model")) / "model.safetensors").stat().st_size


def test_on_the_command_line_it_is_called_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_FROM", str(tmp_path))
    cached = tmp_path / "models--org--name" / "snapshots" / "abc"
    for place in ("a", "b", cached):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "blob").touch()
    for place in ("a/m.gguf", "b/m.gguf", "other.Q4_1.gguf"):
        (tmp_path / place).touch()
    (cached / "linked.gguf").symlink_to(tmp_path / "blob")
    given = ["other.Q4_1.gguf", "a", "b/m.gguf", str(cached.parents[1])]
    assert parse(["smoke", "--backbone", *given]).backbone == {
        "own/other.Q4_1": str(tmp_path / "other.Q4_1.gguf"),
        "own/a/m": str(tmp_path / "a" / "m.gguf"),
        "own/b/m": str(tmp_path / "b" / "m.gguf"),
        "own/linked": str(cached / "linked.gguf"),
    }


def test_a_file_that_changes_while_a_run_is_on_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"one")
    monkeypatch.setenv(profiles.OWN, json.dumps({"backbones": {"own/m": str(tmp_path / "m.gguf")}}))
    before = running._given()
    (tmp_path / "m.gguf").write_bytes(b"three")
    assert before and running._given() != before
