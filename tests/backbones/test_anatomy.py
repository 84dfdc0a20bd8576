"""What a model does to its last state, measured on it; states that heads cannot read; what text decoders are wrapped in."""


import numpy as np
import pytest
import torch
from tiny_models import GROUPED, SHAPE, VOCAB, WINDOW, perturbed, random_model, tiny_backbone, tiny_model
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3nTextConfig,
    GraniteConfig,
    MiniCPM3Config,
    Mistral3Config,
    OPTConfig,
)

from mtp_utils.backbones import load
from mtp_utils.backbones.anatomy import crop_vocabulary, final_norm, finish_of, unembed, unembeds
from mtp_utils.backbones.load import Backbone
from mtp_utils.backbones.sharded import layers_of
from mtp_utils.backbones.wrapped import decoder, plain, text_parameters
from mtp_utils.base.records import Arrays
from mtp_utils.base.refusals import CannotDo
from mtp_utils.decoding import HeadDrafter, draft_and_verify, greedy_decode
from mtp_utils.heads import FrozenFeatures, Heads, HeadSpec, Joint, joint_training, sampled_paths
from mtp_utils.heads.heads import load_heads
from mtp_utils.heads.together import Together, trained_backbone
from mtp_utils.marginal import future_log_probs

LATENT = dict(q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4, head_dim=4)
CAPPED = dict(final_logit_softcapping=2.0, attn_logit_softcapping=5.0, query_pre_attn_scalar=8, sliding_window=WINDOW)
SCALED = {
    "granite": (lambda: GraniteConfig(**GROUPED, logits_scaling=3.0), (1.0, 1 / 3, None)),
    "cohere": (lambda: CohereConfig(**GROUPED, logit_scale=0.0625), (1.0, 0.0625, None)),
    "cohere2": (lambda: Cohere2Config(**GROUPED, logit_scale=0.3, sliding_window=WINDOW), (1.0, 0.3, None)),
    "gemma2": (lambda: Gemma2Config(**GROUPED, **CAPPED), (1.0, 1.0, 2.0)),
    "minicpm3": (lambda: MiniCPM3Config(**GROUPED | LATENT | {"num_key_value_heads": 4}, dim_model_base=4), (0.25, 1.0, None)),
}
TEXT = GROUPED | dict(sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=8)
VISION = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8)


def made(*given, **options):
    """A random model of a configuration, frozen."""
    return random_model(*given, **options).requires_grad_(False)


def backbone(model):
    return Backbone("tiny/own", model, None, 0, 0, None, "aa", {})


def texts(n=2, length=9, seed=1):
    return torch.randint(VOCAB, (n, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_a_model_does_to_its_logits_is_measured_and_done_to_every_heads(name, dtype):
    config, (before, after, cap) = SCALED[name]
    model, ids = made(config(), dtype), texts()
    how = finish_of(model)
    assert how.before == pytest.approx(before, rel=3e-3) and how.after == pytest.approx(after, rel=3e-3) and how.cap == cap
    last, logits = decoder(model)(ids).last_hidden_state, model(ids).logits
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    assert (unembed(model, last) - logits).abs().max() <= tolerance * logits.abs().max()
    states = last[:, :, None].to(torch.promote_types(dtype, torch.float32))
    for unembedding in ("shared", "copied"):
        heads = Heads(backbone(model), HeadSpec("residual", unembedding=unembedding, offsets=(2,)))
        found = heads.log_probs(2, heads(states)[2])  # it starts as the LM head
        assert (found - logits.float().log_softmax(-1)).abs().max() <= 3 * tolerance * logits.abs().max()


@pytest.mark.filterwarnings("ignore:.*cannot be packed")
@pytest.mark.parametrize("name", ["granite", "minicpm3"])
def test_heads_on_scaled_logits_draft_are_saved_and_learn_from_what_the_model_says(name, tmp_path):
    model, ids = made(SCALED[name][0](), torch.float32), texts()
    b = backbone(model)
    heads = Heads(b, HeadSpec("residual", offsets=(2, 3)))
    heads.save(tmp_path)
    states = decoder(model)(ids).last_hidden_state[:, :, None]
    assert torch.equal(load_heads(tmp_path, b).draft(states), heads.draft(states))
    done = draft_and_verify(model, HeadDrafter(heads), ids[0], 12, (2, 1))
    assert done.tokens[0].tolist() == greedy_decode(model, ids[0], 12).tolist()
    paths = sampled_paths(b, ids, 2)
    path = torch.cat([ids[0, :5], paths.tokens[0, 4, :1]])
    said = unembed(model, torch.from_numpy(paths.states[0, 4, 1])).softmax(-1)
    assert (said - model(path[None]).logits[0, -1].softmax(-1)).abs().max() < 2e-3  # states are stored in half precision


def test_anything_else_done_to_logits_is_refused_by_what_needs_it_and_the_marginal_is_right():
    model, ids = tiny_model("llama"), texts(1)
    model.register_forward_hook(lambda module, inputs, out: out.__setitem__("logits", out.logits + torch.arange(VOCAB)))
    assert not unembeds(model)
    for refused in (lambda: Heads(backbone(model), HeadSpec()), lambda: unembed(model, torch.zeros(16).double())):
        with pytest.raises(CannotDo, match="LlamaForCausalLM does more than its LM head"):
            refused()
    ours, reference = (future_log_probs(model, ids, 2, exact=True, reference=r).log_probs for r in (False, True))
    assert (ours - reference).abs().max() < 1e-9


GEMMA3N = dict(vocab_size_per_layer_input=VOCAB, hidden_size_per_layer_input=4, laurel_rank=4, num_kv_shared_layers=0)
GEMMA3N |= dict(sliding_window=WINDOW, layer_types=TEXT["layer_types"], activation_sparsity_pattern=[0.0, 0.0])
UNEVEN = {
    "opt-350m": lambda: OPTConfig(**SHAPE, ffn_dim=24, word_embed_proj_dim=8, do_layer_norm_before=False),
    "gemma3n": lambda: Gemma3nTextConfig(**GROUPED, **GEMMA3N),
}


@pytest.mark.filterwarnings("ignore:.*cannot be packed")
@pytest.mark.parametrize("name", UNEVEN)
def test_states_that_heads_cannot_read_are_refused_with_the_reason_and_the_marginal_is_right(name):
    model, ids = made(UNEVEN[name]()), texts(1)
    b = backbone(model)
    features = FrozenFeatures(b, ids, (2,))
    together = (lambda: Together(b, None, Joint(1e-3, 8)), lambda: sampled_paths(b, ids, 2), lambda: features.states)
    for refused in (lambda: Heads(b, HeadSpec()), lambda: Heads(b, HeadSpec("linear", 1)), *together):
        with pytest.raises(CannotDo, match="has hidden states of shape"):
            refused()
    ours, reference = (future_log_probs(model, ids, 2, exact=True, reference=r).log_probs for r in (False, True))
    assert (ours - reference).abs().max() < 1e-9


def test_without_a_final_norm_only_heads_on_the_last_layer_are_built():
    model, ids = made(OPTConfig(**SHAPE, ffn_dim=24, word_embed_proj_dim=16, do_layer_norm_before=False)), texts(1)
    with pytest.raises(CannotDo, match="no norm after its last layer"):
        final_norm(model)
    with pytest.raises(CannotDo, match="no norm after its last layer"):
        Heads(backbone(model), HeadSpec("linear", 1))
    heads = Heads(backbone(model), HeadSpec("linear", offsets=(2,)))
    found = heads.log_probs(2, heads(decoder(model)(ids).last_hidden_state[:, :, None])[2])
    assert (found - model(ids).logits.log_softmax(-1)).abs().max() < 1e-5


def wrapper(name, dtype=torch.float64):
    """(a model that takes images too, its text model): the same weights."""
    vision = VISION if name == "gemma3" else VISION | {"head_dim": 8}
    if name == "gemma3":
        config = Gemma3Config(text_config=TEXT, vision_config=vision, mm_tokens_per_image=4)
    else:
        parts = dict(text_config=GROUPED | {"model_type": "mistral"}, vision_config=vision | {"model_type": "pixtral"})
        config = Mistral3Config(**parts, tie_word_embeddings=False)
    model = made(config, dtype, load.loader_of(config))
    text = AutoModelForCausalLM.from_config(model.config.get_text_config(), dtype=dtype).eval().requires_grad_(False)
    text.base_model.load_state_dict(decoder(model).state_dict())
    text.get_output_embeddings().load_state_dict(model.get_output_embeddings().state_dict())
    return model, text


@pytest.mark.parametrize("name", ["gemma3", "mistral3"])
def test_a_model_that_takes_images_too_says_of_a_text_what_its_text_model_says(name):
    (model, text), ids = wrapper(name), texts()
    assert unembeds(model)
    found = [future_log_probs(m, ids, 2, exact=True).log_probs for m in (model, text)]
    assert (found[0] - found[1]).abs().max() < 1e-12
    assert layers_of(model) is decoder(model).layers and final_norm(model) is decoder(model).norm
    for spec in (HeadSpec("block", "mix", offsets=(2,)), HeadSpec("linear", 1, offsets=(2,))):
        ours, theirs = (Heads(backbone(m), spec) for m in (model, text))
        assert all(torch.equal(x, theirs.state_dict()[n]) for n, x in ours.state_dict().items())
        features = [FrozenFeatures(backbone(m), ids, ours.layers) for m in (model, text)]
        states = [f.batch(slice(0, 2), ours.layers) for f in features]
        assert torch.equal(*states) and torch.equal(ours(states[0])[2], theirs(states[1])[2])


class Tokens:
    """A token for every row."""

    def get_vocab(self):
        return {str(i): i for i in range(VOCAB)}


@pytest.mark.parametrize("name", ["gemma3", "mistral3"])
def test_of_a_model_that_takes_images_too_the_text_part_is_counted_and_trained(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_BUILD", str(tmp_path / "build"))
    monkeypatch.setattr(load, "_tokenizer", lambda folder, source: Tokens())
    loaded = []
    for folder, m in zip(("own", "text"), wrapper(name, torch.float32), strict=True):
        m.save_pretrained(tmp_path / folder)
        loaded.append(load.load_backbone(str(tmp_path / folder), device="cpu", dtype=torch.float32))
    b, text = loaded
    assert (b.n_params, b.n_params_total) == (text.n_params, text.n_params_total) and 0 < b.n_params < b.n_params_total
    assert type(b.model) is not type(text.model) and sum(p.numel() for p in b.model.parameters()) > b.n_params_total
    spec = HeadSpec("residual", "mix", offsets=(2,))
    for lora in (0, 2):
        how, trained = Joint(1e-2, 4 * 9, backbone_rate=0.5, rest=0.0, lora=lora, checks=1), []
        for one in loaded:
            f = FrozenFeatures(one, texts(4), (0, 1, 2))
            trained.append(joint_training(f, f, spec, how))
        of_text = set(text_parameters(b.model))
        names = [n.removeprefix("model.") for n in trained[0] if n.startswith("model.")]
        bare = {n.split(".lora_")[0].replace(".base_layer", "") + ".weight" if lora else n for n in names}
        assert len(names) == len([n for n in trained[1] if n.startswith("model.")]) and bare <= of_text
        assert lora or bare == of_text
        if not lora:
            assert np.allclose(trained[0]["validation"], trained[1]["validation"], atol=1e-4)
        after = trained_backbone(b, Arrays(trained[0], "x"), how, "joint").model
        for n, p in b.model.named_parameters():
            assert n in of_text or torch.equal(p, after.get_parameter(n))
        assert (after(texts()).logits - b.model(texts()).logits).abs().max() > 1e-4


def lora(model):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    return wrapped.eval()


def compiled(model):
    return torch.compile(model, backend="eager")


WRAPPERS = {"peft": lora, "compiled": compiled, "both": lambda model: compiled(lora(model))}


@pytest.mark.parametrize("how", WRAPPERS)
def test_a_wrapped_model_is_read_as_the_plain_one_at_packed_speed(how, recwarn):
    wrapped, ids = WRAPPERS[how](tiny_model("llama", torch.float32)), texts()
    found = future_log_probs(wrapped, ids, 2, exact=True).log_probs
    assert not [w for w in recwarn if "cannot be packed" in str(w.message)]
    b = backbone(wrapped)
    heads = Heads(b, HeadSpec("residual", offsets=(2,)))
    done = draft_and_verify(wrapped, HeadDrafter(heads), ids[0], 8)
    merged = plain(wrapped)
    if how != "compiled":
        before = merged(ids).logits
        merged = (wrapped if how == "peft" else wrapped._orig_mod).merge_and_unload()
        assert (merged(ids).logits - before).abs().max() < 1e-4
    assert (found - future_log_probs(merged, ids, 2, exact=True).log_probs).abs().max() < 1e-4
    assert done.tokens[0].tolist() == greedy_decode(merged, ids[0], 8).tolist()


def test_adapters_that_are_no_part_of_the_weights_and_training_on_adapters_are_refused_in_one_line():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(CannotDo, match="learned prompt .* get_base_model"):
        future_log_probs(peft.get_peft_model(tiny_model("llama"), config), texts(), 2, exact=True)
    with pytest.raises(ValueError, match="merge_and_unload"):
        Together(backbone(lora(tiny_model("llama", torch.float32))), None, Joint(1e-3, 8))


def test_a_map_of_too_large_a_vocabulary_is_what_the_model_cannot_do(monkeypatch):
    monkeypatch.setattr("mtp_utils.heads.parts.LARGEST_MAP", VOCAB - 1)
    with pytest.raises(CannotDo, match=r"vocabulary\^2 weights; 7 is above 6"):
        Heads(tiny_backbone(), HeadSpec("next_token"))
    spread = tiny_model("gpt_neox")
    spread.hf_device_map = {"a": 0, "b": 1}
    with pytest.raises(CannotDo, match="several devices"):
        Together(backbone(spread), None, Joint(1e-3, 8))


def test_block_heads_draft_up_to_the_last_learned_position_in_rows_that_end_apart():
    b, rng = tiny_backbone("opt"), torch.Generator().manual_seed(0)
    drafter = HeadDrafter(perturbed(Heads(b, HeadSpec("block", offsets=(2, 3)))))
    rows = [torch.randint(VOCAB, (n,), generator=rng) for n in (11, 12, 3)]
    for end in range(VOCAB):
        done = draft_and_verify(b.model, drafter, rows, 20, eos_token_id=end)
        expected = [greedy_decode(b.model, row, 20, eos_token_id=end).tolist() for row in rows]
        assert [row.tolist() for row in done.tokens] == expected


@pytest.mark.parametrize("offloaded", ["embed_in", "embed_out"])
def test_rows_beyond_the_tokenizer_go_from_both_embeddings_or_from_none(offloaded):
    model = tiny_model("gpt_neox", torch.float32)
    crop_vocabulary(model, 5)
    assert model(torch.tensor([[1, 2]])).logits.shape[-1] == model.get_input_embeddings().num_embeddings == 5
    part = model.get_input_embeddings() if offloaded == "embed_in" else model.get_output_embeddings()
    part.to("meta")
    crop_vocabulary(model, 4)
    assert {len(e.weight) for e in (model.get_input_embeddings(), model.get_output_embeddings())} == {5}
