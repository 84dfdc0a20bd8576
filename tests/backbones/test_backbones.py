"""Loading: the embedded ladder, local directories, and errors that say what to do; pre-training resumes to the bit."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_backbone
from transformers import AutoModelForCausalLM

from mtp_utils.backbones import checkpoints, loop, pretrain, specs
from mtp_utils.backbones import load as backbones
from mtp_utils.backbones.load import available_backbones, load_backbone
from mtp_utils.base import locks, paths
from mtp_utils.decoding.decode import draft_and_verify
from mtp_utils.decoding.drafters import HeadDrafter
from mtp_utils.heads.features import FrozenFeatures
from mtp_utils.heads.heads import Heads
from mtp_utils.heads.spec import HeadSpec
from mtp_utils.heads.together import Joint, Together
from mtp_utils.marginal.future import future_log_probs


def test_rungs_come_first_and_all_load():
    names = list(available_backbones())
    rungs = [n for n in names if "-" not in n]
    assert names[: len(rungs)] == rungs == sorted(rungs, key=lambda n: int(n.removeprefix("ladder/w")))
    sizes = [load_backbone(n).n_params for n in rungs]
    assert all(3.5 < b / a < 4.5 for a, b in zip(sizes, sizes[1:], strict=False))


def test_a_backbone_is_frozen_float32_and_counts_its_parameters():
    b = load_backbone("ladder/w16", device="cpu")
    assert b.model.dtype == torch.float32 and not b.model.training
    assert not any(p.requires_grad for p in b.model.parameters())
    inside = sum(p.numel() for n, p in b.model.named_parameters() if not re.search("embed_in|embed_out|lm_head", n))
    assert b.n_params == inside and b.n_params_total == sum(p.numel() for p in b.model.parameters())
    assert b.tokenizer.decode(b.tokenizer("Straße, naïve ☃")["input_ids"]) == "Straße, naïve ☃"


def test_a_saved_model_loads_from_its_directory(tmp_path):
    b = load_backbone("ladder/w16", device="cpu")
    b.model.save_pretrained(tmp_path / "my model é")
    b.tokenizer.save_pretrained(tmp_path / "my model é")
    again = load_backbone(str(tmp_path / "my model é"), device="cpu")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(again.model(ids).logits, b.model(ids).logits) and again.n_params == b.n_params


@pytest.mark.parametrize("part", ["model.safetensors", "config.json"])
def test_a_changed_byte_is_refused(tmp_path, monkeypatch, part):
    shutil.copytree(paths.LADDER / "w16", tmp_path / "w16")
    monkeypatch.setattr(paths, "LADDER", tmp_path)
    data = bytearray((tmp_path / "w16" / part).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "w16" / part).write_bytes(data)
    with pytest.raises(ValueError, match=f"ladder/w16: {part} .*git checkout"):
        load_backbone("ladder/w16")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ladder/w17", "there are: ladder/w16"),
        ("EleutherAI/pythia-70x", "needs the network"),
        ("/nowhere/model", "is no folder or file here"),
        ("nowhere/model.gguf/x", "is no folder or file here"),
        ("gemma3-270M", "from the package index: smollm2-135m, gemma3-270m"),
    ],
)
def test_an_unknown_name_says_what_was_asked_what_exists_and_what_to_do(name, says, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError) as error:
        load_backbone(name)
    assert name in str(error.value) and says in str(error.value) and "ladder/w16" in str(error.value)


def test_where_no_home_is_known_the_ladder_loads_all_the_same(monkeypatch):
    monkeypatch.delenv("MTP_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert load_backbone("ladder/w16").name in available_backbones()


def test_a_directory_without_a_model_says_what_it_must_hold(tmp_path):
    with pytest.raises(ValueError, match="config.json"):
        load_backbone(str(tmp_path))


def test_pickled_weights_are_not_loaded(tmp_path):
    b = load_backbone("ladder/w16", device="cpu")
    b.model.config.save_pretrained(tmp_path)
    b.tokenizer.save_pretrained(tmp_path)
    torch.save(b.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        load_backbone(str(tmp_path))


def test_the_card_tells_how_the_model_came_about():
    for name in (name for name in available_backbones() if name.startswith("ladder/")):
        card = load_backbone(name).card
        for key in (
            "data",
            "tokens",
            "tokens_per_parameter",
            "steps",
            "seed",
            "rate",
            "sweep",
            "loss_curve",
            "validation",
            "command",
            "final_slope_nats_per_1M_tokens",
            "sha256",
        ):
            assert key in card, (name, key)
        assert card["loss_curve"][-1] < card["loss_curve"][0]


def test_the_ladder_is_at_most_34_MB():
    assert sum(p.stat().st_size for p in paths.LADDER.rglob("*") if p.is_file()) <= 34e6


@pytest.mark.parametrize("objective", ["ntp", "mtp", "offset2"])
def test_pretraining_resumes_to_the_bit(tmp_path, monkeypatch, objective):
    monkeypatch.setattr(
        loop.blocks,
        "training_blocks",
        lambda split, tokenizer, n, seed: np.random.default_rng(seed).integers(1, 1024, (n, loop.CONTEXT)).astype(np.uint16),
    )
    monkeypatch.setattr(loop, "validation", lambda parts, spec: {"code": 0.0})
    spec = specs.Spec("w16", 16, objective=objective)
    tokens = 6 * 2 * loop.CONTEXT
    torch.set_num_threads(1)
    loop.train(spec, 1e-3, tokens, tmp_path / "whole", every=3, batch=2)

    class Stop(Exception):
        pass

    real = loop.checkpoint

    def stop_after(*arguments):
        real(*arguments)
        raise Stop

    monkeypatch.setattr(loop, "checkpoint", stop_after)
    with pytest.raises(Stop):
        loop.train(spec, 1e-3, tokens, tmp_path / "halves", every=3, batch=2)
    monkeypatch.setattr(loop, "checkpoint", real)
    loop.train(spec, 1e-3, tokens, tmp_path / "halves", every=3, batch=2)
    whole, halves = (load_file(tmp_path / n / "checkpoint.safetensors") for n in ("whole", "halves"))
    assert whole.keys() == halves.keys() and all(torch.equal(whole[k], halves[k]) for k in whole)
    curves = [json.loads((tmp_path / n / "summary.json").read_text())["loss_curve"] for n in ("whole", "halves")]
    assert curves[0] == curves[1]
    with pytest.raises(ValueError, match="holds a run with {'rate': 0.001}"):
        loop.train(spec, 2e-3, tokens, tmp_path / "whole", batch=2)
    with locks.exclusive(tmp_path / "halves"), pytest.raises(locks.Stop, match="already writing"):
        loop.train(spec, 1e-3, tokens, tmp_path / "halves")


@pytest.mark.parametrize("damage", ["a bit", "cut short", "empty"])
def test_a_damaged_checkpoint_is_not_trusted(tmp_path, damage):
    parts = torch.nn.ModuleDict({"model": torch.nn.Linear(4, 4)})
    optimizer = torch.optim.AdamW(parts.parameters())
    path = tmp_path / "checkpoint.safetensors"
    checkpoints.checkpoint(parts, optimizer, path, 7, [1.0], {"rate": 1e-3})
    assert checkpoints.restore(parts, optimizer, path, {"rate": 1e-3}) == (7, [1.0])
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes({"a bit": bytes(data), "cut short": bytes(data[: len(data) // 2]), "empty": b""}[damage])
    before = parts["model"].weight.clone()
    with pytest.warns(UserWarning, match="cut short or altered"):
        assert checkpoints.restore(parts, optimizer, path, {"rate": 1e-3}) == (0, [])
    assert torch.equal(parts["model"].weight, before)


def test_a_sweep_keeps_its_trials_and_widens_while_the_best_is_at_an_edge(tmp_path, monkeypatch):
    asked = []

    def fake(spec, rate, tokens, work):
        asked.append(rate)
        return {"validation": {"code": abs(np.log2(rate / 1e-3))}}

    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "corpora.json").write_text("{}")
    (tmp_path / "w16").mkdir()
    monkeypatch.setattr(paths, "LADDER", tmp_path)
    monkeypatch.setattr(paths, "FROZEN", tmp_path / "corpora.json")
    monkeypatch.setattr(pretrain, "train", fake)
    assert pretrain.sweep(16, tmp_path) == 1e-3
    assert asked == [2e-3, 4e-3, 8e-3, 1e-3, 5e-4]
    assert pretrain.sweep(16, tmp_path) == 1e-3 and len(asked) == 5
    (tmp_path / "corpora.json").write_text("[]")  # other texts: the trials do not count any more
    assert pretrain.trials(16) == {}


def test_a_model_that_the_ladder_holds_is_not_trained_again_unless_its_inputs_changed(monkeypatch):
    card = json.loads((paths.LADDER / "w16" / "card.json").read_text())
    monkeypatch.setattr(pretrain, "inputs", lambda: card.get("inputs"))
    asked = pretrain.SPECS["w16"], card["rate"], card["tokens"]
    assert pretrain.finished(*asked)
    assert not pretrain.finished(*asked[:2], card["tokens"] + 4096)
    assert not pretrain.finished(pretrain.SPECS["w16"], card["rate"] * 2, card["tokens"])
    monkeypatch.setattr(pretrain, "inputs", lambda: {"tokenizer": "another"})
    assert not pretrain.finished(*asked)


def test_the_twins_objectives_ask_for_other_offsets():
    torch.manual_seed(0)
    ids = torch.randint(1, 1024, (2, 32))
    parts = specs.build(specs.Spec("x", 16, objective="mtp"))
    hidden = parts["model"].base_model(ids).last_hidden_state
    logits = parts["model"].get_output_embeddings()(hidden)  # the heads start as the LM head
    by_hand = [torch.nn.functional.cross_entropy(logits[:, :-k].flatten(0, 1), ids[:, k:].flatten()) for k in (1, 2, 3, 4)]
    assert torch.allclose(specs.loss_of(parts, ids, "ntp"), by_hand[0])
    assert torch.allclose(specs.loss_of(parts, ids, "offset2"), by_hand[1])
    biases = [b.bias for b in parts["heads"].blocks]
    for bias in biases:
        torch.nn.init.zeros_(bias)
    assert torch.allclose(specs.loss_of(parts, ids, "mtp"), torch.stack(by_hand).mean())


def test_the_hub_is_asked_for_safetensors_only_and_no_remote_code(monkeypatch, tmp_path):
    seen, asked = {}, []

    def fetch(*given):
        asked.append(given)
        return tmp_path

    def fake(folder, **options):
        seen.update(options, folder=folder)
        raise OSError("no network here")

    monkeypatch.setattr(backbones.fetch, "fetch", fetch)
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neox"}')
    monkeypatch.setattr(backbones.AutoModelForCausalLM, "from_pretrained", fake)
    with pytest.raises(ValueError, match="only models with safetensors are loaded"):
        load_backbone("some/model", revision="abc")
    assert asked == [("some/model", "model", backbones.fetch.MODEL_FILES, "abc")] and not any("bin" in p for p in asked[0][2])
    assert seen["use_safetensors"] and seen["trust_remote_code"] is False and seen["local_files_only"]
    assert seen["dtype"] == torch.float32 and seen["folder"] == tmp_path


def test_blocked_attention_is_plain_causal_attention():
    torch.manual_seed(0)
    model = specs.build(specs.Spec("x", 16))["model"].double()
    ids = torch.randint(1, 1024, (2, 200))
    model.set_attn_implementation("sdpa")
    plain = model(ids).logits
    model.set_attn_implementation(specs.BLOCKED)
    assert torch.allclose(model(ids).logits, plain, atol=1e-10)


@pytest.mark.parametrize("name", ("gpt_neox", "llama", "gpt2"))
def test_a_model_whose_layers_lie_in_different_places_is_measured_like_one_in_one(name, tmp_path):
    whole = tiny_backbone(name)
    whole.model.save_pretrained(tmp_path)
    inner = whole.model.base_model_prefix
    parts = [n for n, _ in whole.model.named_children() if n != inner]
    parts += [f"{inner}.{n}" for n, m in getattr(whole.model, inner).named_children() if not isinstance(m, torch.nn.ModuleList)]
    lists = [f"{inner}.{n}" for n, m in getattr(whole.model, inner).named_children() if isinstance(m, torch.nn.ModuleList)]
    places = dict.fromkeys(parts, "cpu") | {f"{lists[0]}.0": "cpu", f"{lists[0]}.1": "disk"}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, device_map=places, offload_folder=tmp_path / "off"
    )
    assert {p.device.type for p in model.parameters()} == {"cpu", "meta"}
    apart = dataclasses.replace(whole, model=model.eval().requires_grad_(False))
    ids = torch.randint(7, (3, 12), generator=torch.Generator().manual_seed(0))
    one, two = (future_log_probs(b.model, ids, 2, top_k=3).log_probs.exp() for b in (whole, apart))
    assert (one - two).abs().max() < 1e-6
    one, two = (FrozenFeatures(b, ids, (0, 1, 2)).states for b in (whole, apart))
    assert np.array_equal(one, two)
    one, two = (draft_and_verify(b.model, HeadDrafter(Heads(b, HeadSpec(offsets=(2,)))), ids, 6).tokens for b in (whole, apart))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    with pytest.raises(ValueError, match="lies on several devices"):
        Together(apart, HeadSpec(), Joint(1e-3, 10))


def test_a_model_is_spread_where_its_weights_would_fill_one_device_and_only_in_one_process(tmp_path, monkeypatch):
    tiny_backbone().model.half().save_pretrained(tmp_path)
    size = sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))
    cuda = torch.device("cuda")
    for free, dtype, expected in ((2 * size, torch.float16, False), (2 * size, torch.float32, True), (size, torch.float16, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * free))
        assert backbones.too_large(tmp_path, cuda, dtype) is expected
    assert not backbones.too_large(tmp_path, torch.device("cpu"), torch.float32)
    spread, plain = (load_backbone("ladder/w16", device=device) for device in ("auto", "cpu"))
    assert spread.fingerprint == plain.fingerprint and torch.equal(spread.model.lm_head.weight, plain.model.lm_head.weight)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start one process"):
        load_backbone("ladder/w16", device="auto")
