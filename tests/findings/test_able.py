"""What is asked of a backbone before notebooks 03 to 06 rely on it, on tiny models that can and cannot."""

import pytest
import torch
from tiny_models import tiny_model
from transformers import BertConfig, BertLMHeadModel, MambaConfig, MambaForCausalLM, OPTConfig, OPTForCausalLM

from mtp_utils.backbones.load import Backbone
from mtp_utils.base import CannotDo, Run
from mtp_utils.base.profiles import PROFILES
from mtp_utils.findings import arms, drafts
from mtp_utils.heads import FrozenFeatures, HeadSpec
from mtp_utils.heads.together import with_lora
from mtp_utils.text.blocks import Blocks

OPT = dict(vocab_size=7, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24, max_position_embeddings=64)
OPT |= dict(do_layer_norm_before=False, bos_token_id=0, eos_token_id=0, pad_token_id=0)
BERT = dict(vocab_size=7, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, is_decoder=True)
MODELS = {
    "llama": lambda: tiny_model("llama", torch.float32),
    "no last norm": lambda: OPTForCausalLM(OPTConfig(**OPT, word_embed_proj_dim=16)),
    "narrow head": lambda: OPTForCausalLM(OPTConfig(**OPT, word_embed_proj_dim=8)),
    "transform before the head": lambda: BertLMHeadModel(BertConfig(**BERT)),
    "mamba": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=7, hidden_size=16, state_size=4, num_hidden_layers=2, expand=2, time_step_rank=2)
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def backbone(request):
    torch.manual_seed(0)
    return Backbone(request.param, MODELS[request.param]().eval().requires_grad_(False), None, 0, 0, None, "aa", {})


@pytest.fixture(scope="module")
def text():
    tokens = torch.randint(7, (2, 20), generator=torch.Generator().manual_seed(0))
    scored = torch.zeros(2, 20, dtype=torch.bool)
    scored[0, 9] = scored[1, 12] = True
    return {"text": Blocks("text", "test", 4, ("a", "b"), ("a", "b"), (None,) * 2, tokens, scored | True, scored, tokens, "x")}


def able(ask, *given) -> bool:
    try:
        ask(*given)
    except CannotDo as refusal:
        assert len(str(refusal).splitlines()) == 1
        return False
    return True


def test_heads_states_and_drafts_are_asked_for_one_by_one(backbone, text):
    found = {"states": able(arms.try_states, backbone), "heads": able(arms.try_heads, backbone)}
    found["drafts"] = able(drafts.try_drafts, backbone, text, 4)
    expected = {
        "llama": (True, True, True),
        "no last norm": (True, False, True),
        "narrow head": (False, False, True),
        "transform before the head": (True, False, True),
        "mamba": (True, True, False),
    }
    assert tuple(found.values()) == expected[backbone.name]


def test_where_states_are_there_they_are_kept_whatever_the_head_does(backbone, text):
    n = backbone.model.config.num_hidden_layers
    features = FrozenFeatures(backbone, text["text"].tokens, tuple(range(n + 1)))
    assert able(lambda: features.states) == able(arms.try_states, backbone)


def test_a_kind_of_heads_that_a_backbone_cannot_have_leaves_the_others(backbone, monkeypatch):
    def tuned(run, bench, spec):
        if spec.kind == "block":
            raise CannotDo("no layer can be made by itself")
        return spec.kind

    monkeypatch.setattr(arms, "tuned_arm", tuned)
    run, bench = Run("04_toy", PROFILES["smoke"]), type("Bench", (), {"backbone": backbone})
    assert arms.able_arms(run, bench, [HeadSpec("linear"), HeadSpec("block"), HeadSpec("residual")]) == ["linear", "residual"]
    assert run._skipped == [f"block, last layer heads of {backbone.name}: no layer can be made by itself"]


def test_adapters_that_peft_refuses_are_a_refusal_of_capability(backbone):
    assert able(with_lora, backbone.model.__class__(backbone.model.config), 2, 0) == (backbone.name != "mamba")


def test_without_heads_only_lookup_drafts():
    assert list(drafts.ways_to_draft(None)) == ["prompt lookup"]
