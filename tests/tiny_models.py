"""Tiny random models from real configuration classes; float64, vocabulary 7, seeded."""

import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteMoeHybridConfig,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
)

from mtp_utils.backbones.load import Backbone
from mtp_utils.heads import joint

VOCAB = 7
WINDOW = 5
SHAPE = dict(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=32)
SHAPE |= dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
WIDE = SHAPE | dict(intermediate_size=24)
GROUPED = WIDE | dict(num_key_value_heads=2, head_dim=8)

CONFIGS = {
    "gpt_neox": lambda: GPTNeoXConfig(**WIDE),
    "llama": lambda: LlamaConfig(**WIDE, num_key_value_heads=2),
    "gpt2": lambda: GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0),
    "opt": lambda: OPTConfig(**SHAPE, ffn_dim=24, word_embed_proj_dim=16),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=WINDOW),
    "gemma3": lambda: Gemma3TextConfig(
        **GROUPED, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=8
    ),
    "qwen3": lambda: Qwen3Config(**GROUPED),
    "falcon_alibi": lambda: FalconConfig(**SHAPE, alibi=True, new_decoder_architecture=False),
}

LINEAR = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8)
MAMBA2 = dict(mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8)
RECURRENT = {  # what a cache holds of them is no list of keys
    "qwen3_5": lambda: Qwen3_5TextConfig(**GROUPED, **LINEAR, layer_types=["linear_attention", "full_attention"]),
    "lfm2": lambda: Lfm2Config(**WIDE, num_key_value_heads=2, layer_types=["conv", "full_attention"]),
    "mamba": lambda: MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4, bos_token_id=0),
    "granite_hybrid": lambda: GraniteMoeHybridConfig(
        **WIDE, **MAMBA2, num_key_value_heads=2, shared_intermediate_size=24, num_local_experts=0, mamba_expand=2,
        layer_types=["mamba", "attention"],
    ),
    "jamba": lambda: JambaConfig(
        **WIDE, num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_d_state=4, mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "falcon_h1": lambda: FalconH1Config(**GROUPED, **MAMBA2, mamba_d_ssm=32),
}  # fmt: skip
KINDS = ["sliding_attention", "full_attention"]
WINDOWED = {
    "mistral": CONFIGS["mistral"],
    "gemma2": lambda: Gemma2Config(**GROUPED, sliding_window=WINDOW, layer_types=KINDS, query_pre_attn_scalar=8),
    "gemma3": CONFIGS["gemma3"],
    "qwen2": lambda: Qwen2Config(
        **WIDE, num_key_value_heads=2, use_sliding_window=True, sliding_window=WINDOW, layer_types=KINDS[::-1]
    ),
    "gpt_oss": lambda: GptOssConfig(
        **GROUPED, sliding_window=WINDOW, layer_types=KINDS, num_local_experts=2, num_experts_per_tok=1
    ),
}


def tiny_backbone(name="gpt_neox", fingerprint="aa", dtype=torch.float32):
    """A tiny random model as a Backbone, frozen; without a tokenizer."""
    return Backbone(f"tiny/{name}", tiny_model(name, dtype).requires_grad_(False), None, 0, 0, None, fingerprint, {})


def perturbed(heads, seed=0):
    """The same heads with every tensor moved away from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in heads.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return heads


def stop_in_step_11(monkeypatch) -> list[bool]:
    """Joint training saves after every step and is interrupted in its 11th; the list grows with each call for losses, True for
    those of a step. Afterwards set joint.joint_losses back."""
    monkeypatch.setattr(joint, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(joint, "SAVE_SHARE", float("inf"))
    calls, real = [], joint.joint_losses

    def stopping(*given):
        calls.append(len(given) > 4)
        if sum(calls) == 11:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(joint, "joint_losses", stopping)
    return calls


PACKED = [name for name in CONFIGS if name != "falcon_alibi"]


def tiny_model(name, dtype=torch.float64, seed=0, **changes):
    """Random model of that architecture, weights large enough that attention matters."""
    config = (CONFIGS | RECURRENT | WINDOWED)[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    return random_model(config, dtype, seed=seed)


def random_model(config, dtype=torch.float64, make=AutoModelForCausalLM, seed=0):
    """Random model of a configuration, weights large enough that attention matters."""
    torch.manual_seed(seed)
    model = make.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.4)
    return model.to(dtype).eval()
