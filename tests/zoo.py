"""A zoo of tiny random models with tokenizers of their own, which differ in what the ladder's models share: one token for begin
and end, a row for every token, text alone, plain logits, caches that can be rolled back."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3Config,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen3_5TextConfig,
    Qwen3Config,
)

TEXT = [f"Line {i} of a text: {i * i} is its square, and that is {'even' if i % 2 == 0 else 'odd'}.\n" for i in range(6000)]
WINDOW = 24


@cache
def bpe(special: tuple[str, ...], first: str | None = None) -> Tokenizer:
    """Byte-level BPE of 300 tokens, the special ones first; `first`: the one it puts before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT[:200], trainer)
    if first:
        ids = [(first, tokenizer.token_to_id(first))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=ids)
    return tokenizer


def fast(tokenizer: Tokenizer, added: tuple[str, ...] = (), **named: str) -> PreTrainedTokenizerFast:
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    found.add_tokens(list(added))
    return found


SENTENCE = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TOKENIZERS = {
    "own begin and end": lambda: fast(bpe(("<unk>", "<s>", "</s>"), "<s>"), **SENTENCE),
    "added later": lambda: fast(bpe(("<unk>", "<s>", "</s>"), "<s>"), ("<added> ", " twice", "<three>"), **SENTENCE),
    "chat": lambda: fast(bpe(("<|endoftext|>", "<|im_start|>", "<|im_end|>")), eos_token="<|im_end|>", pad_token="<|endoftext|>"),
    "end alone": lambda: fast(bpe(("</s>",)), eos_token="</s>"),
    "one for both": lambda: fast(bpe(("<|endoftext|>",)), bos_token="<|endoftext|>", eos_token="<|endoftext|>"),
}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
WIDE = SHAPE | {"intermediate_size": 48}
GROUPED = WIDE | {"num_key_value_heads": 2, "head_dim": 8}
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
SCALES = {"logits_scaling": 8.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3}
LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}


def gemma3(**tokens) -> Gemma3Config:
    text = GROUPED | SLIDING | {"query_pre_attn_scalar": 8} | tokens
    marks = {"image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7}
    return Gemma3Config(text_config=text, vision_config=VISION | {"patch_size": 14}, mm_tokens_per_image=4, **marks)


@dataclass(frozen=True)
class Animal:
    """A configuration (of vocab_size and the special tokens' ids), its tokenizer, rows beyond the tokenizer's tokens, what ends a
    text beside the tokenizer's end; and what it cannot do: `heads` (its logits are no LM head on the last state), `drafts`."""

    config: object
    tokenizer: str
    padding: int = 0
    ends: tuple[int, ...] = ()
    cannot: tuple[str, ...] = ()


ZOO = {
    "llama": Animal(lambda **t: LlamaConfig(**GROUPED, **t), "own begin and end"),
    "llama, padded": Animal(lambda **t: LlamaConfig(**GROUPED, **t), "own begin and end", padding=20),
    "llama, padded and tied": Animal(lambda **t: LlamaConfig(**GROUPED, tie_word_embeddings=True, **t), "chat", padding=64),
    "llama, tokens added later": Animal(lambda **t: LlamaConfig(**GROUPED, **t), "added later", padding=17),
    "qwen3, two ends": Animal(lambda **t: Qwen3Config(**GROUPED, tie_word_embeddings=True, **t), "chat", ends=(0,)),
    "gpt2": Animal(lambda **t: GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=512, **t), "end alone"),
    "gemma2": Animal(lambda **t: Gemma2Config(**GROUPED, **SLIDING, query_pre_attn_scalar=8, **t), "own begin and end"),
    "granite": Animal(lambda **t: GraniteConfig(**WIDE, **SCALES, **t), "one for both"),
    "cohere": Animal(lambda **t: CohereConfig(**WIDE, logit_scale=0.25, **t), "own begin and end"),
    "mistral": Animal(lambda **t: MistralConfig(**GROUPED, sliding_window=WINDOW, **t), "own begin and end"),
    "gpt-oss": Animal(lambda **t: GptOssConfig(**GROUPED, **SLIDING, **EXPERTS, **t), "chat", ends=(0,)),
    "gemma3 with vision": Animal(gemma3, "own begin and end"),
    "lfm2": Animal(
        lambda **t: Lfm2Config(**WIDE, num_key_value_heads=2, layer_types=["conv", "full_attention"], **t),
        "chat",
        cannot=("drafts",),
    ),
    "qwen3.5": Animal(
        lambda **t: Qwen3_5TextConfig(**GROUPED, **LINEAR, layer_types=["linear_attention", "full_attention"], **t),
        "chat",
        cannot=("drafts",),
    ),
    "mamba": Animal(
        lambda **t: MambaConfig(hidden_size=32, state_size=4, num_hidden_layers=2, **t), "one for both", cannot=("drafts",)
    ),
    "opt-350m": Animal(
        lambda **t: OPTConfig(**SHAPE, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False, **t),
        "end alone",
        cannot=("heads",),
    ),
}


def saved(name: str, root: Path) -> Path:
    """The animal's folder below `root`, written when it is first asked for. Weights are large enough that attention matters."""
    folder = root / name
    if not folder.exists():
        animal = ZOO[name]
        tokenizer = TOKENIZERS[animal.tokenizer]()
        end = [tokenizer.eos_token_id, *animal.ends] if animal.ends else tokenizer.eos_token_id
        tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": end, "pad_token_id": tokenizer.pad_token_id}
        torch.manual_seed(0)
        config = animal.config(vocab_size=len(tokenizer) + animal.padding, **tokens)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.3)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder
