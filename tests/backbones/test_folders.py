"""Of a folder, what is loaded counts; what cannot be loaded is one line; how many tokens a model reads."""

import hashlib
import json
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    CamembertConfig,
    Data2VecTextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaPreLayerNormConfig,
    XLMRobertaConfig,
    XLMRobertaXLConfig,
    XLNetConfig,
    XmodConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from mtp_utils.backbones import load_backbone
from mtp_utils.backbones.anatomy import position_limit
from mtp_utils.backbones.load import look_at
from mtp_utils.base import fetch, profiles
from mtp_utils.base.files import file_digest
from mtp_utils.base.refusals import first_line
from mtp_utils.reproduce import plan

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def saved(folder, **options):
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=1024, **SHAPE)).save_pretrained(folder, **options)
    load_backbone("ladder/w16", device="cpu").tokenizer.save_pretrained(folder)
    return folder


def as_it_was(folder, names):
    """The fingerprint of a folder with plain names, which stored tables are known by."""
    return hashlib.sha256("".join(file_digest(folder / name) for name in ("config.json", *names)).encode()).hexdigest()


@pytest.mark.parametrize("sharded", [False, True])
def test_weights_that_lie_in_a_folder_twice_count_once(sharded, tmp_path, monkeypatch):
    folder = saved(tmp_path / "it", **({"max_shard_size": "40KB"} if sharded else {}))
    plain = sorted(p.name for p in folder.glob("*.safetensors"))
    size = sum((folder / name).stat().st_size for name in plain)
    assert (len(plain) > 1) == sharded and look_at(str(folder))[2] == size
    before = load_backbone(str(folder), device="cpu").fingerprint
    assert before == as_it_was(folder, plain)
    monkeypatch.setenv(profiles.OWN, json.dumps({"backbones": {"own/it": str(folder)}}))
    profile = profiles.get_profile("smoke")
    about = plan.estimates(profile)
    copy = {k: v for name in plain for k, v in load_file(folder / name).items()}
    others = ("consolidated.safetensors", "model-00001-of-00001.safetensors")
    for name in others:
        save_file(copy, folder / name)
    assert look_at(str(folder))[2] == size and plan.estimates(profile) == about
    assert load_backbone(str(folder), device="cpu").fingerprint == before
    for name in others:
        (folder / name).write_bytes(b"not read")
    assert load_backbone(str(folder), device="cpu").fingerprint == before


def test_one_file_is_loaded_before_an_index(tmp_path):
    folder = saved(tmp_path / "it", max_shard_size="40KB")
    shards = sorted(p.name for p in folder.glob("model-*.safetensors"))
    one = {k: v + 1 for name in shards for k, v in load_file(folder / name).items()}
    save_file(one, folder / "model.safetensors", metadata={"format": "pt"})
    b = load_backbone(str(folder), device="cpu")
    assert torch.equal(b.model.lm_head.weight, one["lm_head.weight"])
    assert b.fingerprint == as_it_was(folder, ["model.safetensors"])
    assert look_at(str(folder))[2] == (folder / "model.safetensors").stat().st_size


def test_of_the_hub_too_only_what_is_loaded_is_fetched():
    fetched = [p for p in fetch.MODEL_FILES if "safetensors" in p]
    for name, wanted in (
        ("model.safetensors", True), ("model-00001-of-00002.safetensors", True), ("consolidated.safetensors", False),
        ("original/consolidated.00.safetensors", False), ("adapter_model.safetensors", False),
    ):  # fmt: skip
        assert any(fnmatch(name, pattern) for pattern in fetched) is wanted, name
    assert any(fnmatch("model.safetensors.index.json", pattern) for pattern in fetch.MODEL_FILES)


def broken(folder, how):
    weights, config = folder / "model.safetensors", folder / "config.json"
    entries = json.loads(config.read_text())
    if how == "cut short":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "a shard is gone":
        weights.rename(folder / "model-00001-of-00002.safetensors")
        shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    elif how == "another shape":
        save_file(load_file(weights) | {"model.norm.weight": torch.ones(3)}, weights, metadata={"format": "pt"})
    elif how == "a weight is missing":
        save_file({k: v for k, v in load_file(weights).items() if k != "model.norm.weight"}, weights, metadata={"format": "pt"})
    elif how == "a package is missing":
        config.write_text(json.dumps(entries | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    elif how == "no JSON":
        config.write_text("{")
    elif how == "no such model":
        config.write_text(json.dumps(entries | {"model_type": "nonesuch"}))
    else:
        config.write_text(json.dumps(entries | {"num_attention_heads": 0}))
    return folder


HOW = ("cut short", "empty", "a shard is gone", "another shape", "a weight is missing", "a package is missing", "no JSON")


@pytest.mark.parametrize("how", [*HOW, "no such model", "heads of no width"])
def test_a_broken_folder_is_one_line_for_who_loads_it(how, tmp_path):
    with pytest.raises(ValueError) as error:
        load_backbone(str(broken(saved(tmp_path / "it"), how)))
    assert str(tmp_path / "it") in str(error.value) and "\n" not in str(error.value)


def test_an_error_without_words_is_told_by_its_line():
    def fails():
        assert 1 + 1 == 3

    with pytest.raises(AssertionError) as error:
        fails()
    assert first_line(AssertionError()) == "AssertionError"
    bare = AssertionError().with_traceback(error.value.__traceback__)
    assert first_line(bare) == "AssertionError: assert 1 + 1 == 3"


BEHIND = (CamembertConfig, Data2VecTextConfig, RobertaConfig, RobertaPreLayerNormConfig, XLMRobertaConfig, XLMRobertaXLConfig)
BEHIND += (XmodConfig,)


@pytest.mark.parametrize("padding", [1, 3])
@pytest.mark.parametrize("config_class", [*BEHIND, LlamaConfig])
def test_a_model_reads_as_many_tokens_as_its_limit_says(config_class, padding):
    more = {"languages": ["en_XX"], "default_language": "en_XX"} if config_class is XmodConfig else {}
    config = config_class(vocab_size=9, max_position_embeddings=20, pad_token_id=padding, is_decoder=True, **SHAPE, **more)
    limit, model = position_limit(config), MODEL_FOR_CAUSAL_LM_MAPPING[config_class](config).eval()
    assert limit == (20 if config_class is LlamaConfig else 19 - padding)
    ids = torch.full((1, limit + 1), 5)
    assert model(ids[:, :limit]).logits.shape[1] == limit
    if config_class is not LlamaConfig:  # its positions are turned, not looked up
        with pytest.raises((IndexError, RuntimeError)):
            model(ids)


def test_no_other_kind_of_causal_model_counts_behind_its_padding():
    """Read off the sources: those whose table of positions leaves a row to the padding."""
    found = set()
    for path in (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"):
        source = path.read_text("utf-8")
        if "config.max_position_embeddings, config.hidden_size, padding_idx" in source and "ForCausalLM(" in source:
            found.add(path.stem)
    known = {config_class.__module__.rpartition(".")[2].replace("configuration", "modeling") for config_class in BEHIND}
    assert found == known


def test_a_limit_of_minus_one_is_none():
    config = XLNetConfig(vocab_size=9, d_model=16, n_layer=1, n_head=2, d_inner=32)
    assert config.max_position_embeddings == -1 and position_limit(config) == float("inf")
