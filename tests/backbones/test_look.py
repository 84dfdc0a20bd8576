"""What would make every number wrong is said in one line before any work; what is merely unusual is not refused."""

import inspect
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_run import ROOT
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
)

from mtp_utils.backbones import load_backbone
from mtp_utils.backbones.look import look

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
NEEDED = 260


def llama(rows: int = 1024, **changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, bos_token_id=0, eos_token_id=0, **SHAPE | changes))


def saved(model, folder):
    """The model with the ladder's tokenizer of 1,024 tokens."""
    model.save_pretrained(folder)
    load_backbone("ladder/w16", device="cpu").tokenizer.save_pretrained(folder)
    return folder


def altered(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def configured(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder


MLP = "model.layers.1.mlp.up_proj.weight"
BIDIRECTIONAL = {"vocab_size": 1024, "max_position_embeddings": 600, **SHAPE}
GPTQ, UNKNOWN = ({"quantization_config": {"quant_method": how, "bits": 4}} for how in ("gptq", "x9"))
OWN_CODE = {"model_type": "mine", "auto_map": {"AutoConfig": "a.B"}}
DECODER = BIDIRECTIONAL | {"max_position_embeddings": 261, "is_decoder": True}
REFUSED = {
    "a weight is missing": (lambda f: altered(saved(llama(), f), lambda w: w.pop(MLP)), f"in none of its files, {MLP}"),
    "a weight has another shape": (lambda f: altered(saved(llama(), f), lambda w: w.update({MLP: torch.ones(2)})), "cannot be"),
    "a weight is not a number": (lambda f: altered(saved(llama(), f), lambda w: w[MLP].fill_(torch.nan)), f"of {MLP} are not"),
    "a token has no row": (lambda f: saved(llama(1000), f), "its tokenizer's token 1023,"),
    "BERT": (lambda f: saved(BertLMHeadModel(BertConfig(**BIDIRECTIONAL)), f), "no causal model (BertLMHeadModel)"),
    "RoBERTa": (lambda f: saved(RobertaForCausalLM(RobertaConfig(**BIDIRECTIONAL)), f), "no causal model (RobertaForCausalLM)"),
    "RoBERTa's first positions": (lambda f: saved(RobertaForCausalLM(RobertaConfig(**DECODER)), f), "reads 259 tokens"),
    "a short context": (lambda f: saved(llama(max_position_embeddings=100), f), "reads 100 tokens; 260 are needed"),
    "GPTQ": (lambda f: configured(saved(llama(), f), **GPTQ), "(gptq): give the"),
    "an unknown way": (lambda f: configured(saved(llama(), f), **UNKNOWN), "(x9): give the unquantised"),
    "code of its own": (lambda f: configured(saved(llama(), f), **OWN_CODE), "cannot load"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_rightly_is_refused_in_one_line(case, tmp_path):
    make, message = REFUSED[case]
    with pytest.raises(ValueError) as error:
        look(str(make(tmp_path / "it")), NEEDED)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_adapter_and_a_folder_without_a_tokenizer_are_told_what_to_do(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is an adapter: merge it into its base model first"):
        look(str(tmp_path / "adapter"), NEEDED)
    llama().save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="has no tokenizer: save the model's there too"):
        look(str(tmp_path / "bare"), NEEDED)


GOOD = {
    "llama": lambda: llama(),
    "tied": lambda: llama(tie_word_embeddings=True),
    "learned positions, just enough": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=1024, n_embd=16, n_head=2, n_positions=260)),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_sound_model_is_only_told_its_size(case, tmp_path):
    assert len(look(str(saved(GOOD[case](), tmp_path / "it")), NEEDED)) == 1


def test_what_lies_on_rows_without_a_token_is_said_once(tmp_path):
    model = llama(1088, tie_word_embeddings=True)
    model.model.embed_tokens.weight[1024:].data.zero_()  # logits of 0, as nearly all of an untrained model
    _, said = look(str(saved(model, tmp_path / "it")), NEEDED)
    assert "5.9 % of the probability lies on 64 rows without a token" in said
    b = load_backbone(str(tmp_path / "it"), device="cpu")
    assert b.model(torch.tensor([[1023]])).logits.shape[-1] == b.model.config.vocab_size == 1024 and b.n_params_total > b.n_params
    assert torch.equal(b.model.lm_head.weight, model.lm_head.weight[:1024]) and b.n_params_total == model.num_parameters()


def test_layers_that_predict_further_tokens_are_named_and_not_refused(tmp_path):
    extra = "model.layers.2.eh_proj.weight"
    more = {extra: torch.ones(2, 2), "other.weight": torch.ones(1)}
    folder = altered(saved(llama(), tmp_path / "it"), lambda w: w.update(more))
    _, first, second = look(str(folder), NEEDED)
    assert f"layers that predict further tokens ({extra}" in first and "not used here" in first and "(other.weight" in second


def test_the_runner_refuses_with_exit_code_2_before_any_measuring_and_a_dry_run_says_the_same(tmp_path):
    folder = altered(saved(llama(), tmp_path / "broken"), lambda w: w.pop(MLP))
    for more in ([], ["--dry-run"]):
        command = [sys.executable, "-m", "mtp_utils.reproduce", "smoke", "--backbone", str(folder), *more]
        environment = os.environ | {"MTP_BUILD": str(tmp_path / "build"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("reproduce.sh: own/broken: 1 weights are in none of its files")
    assert not list((tmp_path / "build").glob("*/tables"))


def test_a_model_that_hears_the_text_beside_its_own_is_refused(tmp_path, monkeypatch):
    folder, forward = saved(llama(), tmp_path / "it"), LlamaForCausalLM.forward

    def beside(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.logits = out.logits - 0.1 * out.logits.mean(0, keepdim=True)
        return out

    beside.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(LlamaForCausalLM, "forward", beside)
    with pytest.raises(ValueError, match=f"what {folder} says of a text changes with the text beside it") as error:
        look(str(folder), NEEDED)
    assert "\n" not in str(error.value)
