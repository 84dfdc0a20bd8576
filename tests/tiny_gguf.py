"""Tiny Llamas as GGUF files, laid out as llama.cpp does."""

import json
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType, TokenType, quants
from transformers import LlamaConfig, LlamaForCausalLM

from mtp_utils.base import paths

KINDS = {name: GGMLQuantizationType[name] for name in ("F32", "F16", "Q8_0", "Q4_1")}
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "model.layers": "blk", "model.embed_tokens": "token_embd",
    "model.norm": "output_norm", "lm_head": "output",
}  # fmt: skip


def tiny_llama(**changes) -> LlamaForCausalLM:
    """Random, for the ladder's tokenizer of 1,024 tokens; two heads share one of keys; rows of 32 weights, as blocks need."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True, "rms_norm_eps": 2**-20}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1024, bos_token_id=0, eos_token_id=0, **shape | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def stored_as(kind: str, weight: np.ndarray) -> np.ndarray:
    """What a matrix of float32 is once it was stored in that type."""
    return quants.dequantize(quants.quantize(weight, KINDS[kind]), KINDS[kind])


def write_gguf(path: Path, model: LlamaForCausalLM, kind: str = "F32", architecture: str = "llama", scaling=None, **more) -> Path:
    """The model with the ladder's tokenizer; matrices in that type, scaling (type, factor) of rotary frequencies said, and `more`
    tensors in float32."""
    config, writer = model.config, GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if scaling:
        writer.add_rope_scaling_type(RopeScalingType(scaling[0]))
        writer.add_rope_scaling_factor(scaling[1])
    written = json.loads((paths.LADDER / "tokenizer" / "tokenizer.json").read_text("utf-8"))
    vocabulary, control = written["model"]["vocab"], {token["content"] for token in written["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in control else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in written["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    for name, weight in model.state_dict().items():
        if name in tied:
            continue
        weight, heads = weight.numpy(), {"q": config.num_attention_heads, "k": config.num_key_value_heads}
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp turns neighbours, transformers halves
            shape = weight.shape
            weight = weight.reshape(heads[name[-13]], 2, -1, shape[1]).swapaxes(1, 2).reshape(shape)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        stored = quants.quantize(weight, KINDS[kind]) if weight.ndim > 1 else weight
        writer.add_tensor(name, stored, raw_dtype=KINDS[kind] if weight.ndim > 1 else None)
    for name, values in more.items():
        writer.add_tensor(name, np.asarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
