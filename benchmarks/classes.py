"""How each causal-LM class of transformers is served: `python benchmarks/classes.py [--only llama bloom]`.

Every class is built tiny from its own configuration class: sizes shrunk by name, two layers where it allows, random weights
large enough that attention matters, float32. Then offsets 2 and 3 of a few positions, as `future_log_probs` serves them and as
the reference does. A few minutes on one core. Writes classes.csv and the README's table; --only renews those lines.
"""

import argparse
import re
import signal
import time
import unittest.mock
import warnings

import pandas as pd
import torch
import transformers
from own_cache import RIGHT, own_cache
from tables import HERE, splice
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mtp_utils.marginal.future import future_log_probs
from mtp_utils.marginal.reference import engine_for
from mtp_utils.marginal.rows import undisturbed

SECONDS = 30  # of the processor, for one class
VOCAB, WINDOW = 61, 5
# The first pattern that a setting's name matches gives its size; what matches none stays.
SIZES = {
    r"_token_id$|padding_idx": 0,
    r"mamba.*heads$": 8,
    r"vocab_size(_per_layer_input)?$|^n_words$|^n_token": VOCAB,
    r"sliding_window|window_size|attention_window|local_attention_window": WINDOW,
    r"(interval|period|stride|step)$|_every$|pattern$|_freq$": 2,
    r"first_k_dense|first_dense|num_dense_layers": 1,
    r"num_hidden_layers|n_layers?$|num_layers|(encoder|decoder)_layers$|num_blocks$": 2,
    r"num_nextn|num_mtp|num_kv_shared": 0,
    r"qk_head_dim": 12,
    r"qk_rope_head_dim|rotary_dim$": 4,
    r"v_head_dim": 6,
    r"kv_lora_rank|q_lora_rank|lora_rank": 8,
    r"n_group$|topk_group|n_groups$|ngroups": 1,
    r"index_n_heads": 32,  # fewer leave ties of scores that are all zero, broken by the length of the text
    r"index_topk|topk_tokens": 4,
    r"top_?k|experts_per_tok|num_selected|moe_k$": 2,
    r"(num|n)_.*experts?$|num_experts|moe_num": 4,
    r"(key_value|kv)_heads?$|kv_n_heads|num_key_value": 2,
    r"heads?$|^n_head": 4,
    r"head_?dim|head_size|d_head$|d_kv$|channels$": 8,
    r"intermediate|ffn|^n_inner|d_inner|mlp_dim|d_ff": 48,
    r"hidden_size|n_embd|d_model|^dim$|embed(ding)?_(size|dim|proj_dim)|^emb_dim|lru_width|hidden_dim|dim_model": 32,
    r"d_state|state_size|ssm_state": 8,
    r"chunk_size|block_size": 4,
}
MIXED = {"layer_types": ["linear_attention", "full_attention"]}
INDEXED = dict(indexer_n_heads=32, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=4, indexer_compress_ratio=2)
EXACT = {  # of one kind of configuration, where the names' rules do not hold
    "mamba2": {"num_heads": 8},
    "bamba": {"mamba_d_head": 8, "attn_layer_indices": [1]},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 8},
    "granitemoehybrid": {"mamba_d_head": 8, "layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_offset": 1, "expert_layer_offset": 1},
    "deepseek_v2": {"topk_group": 1, "n_group": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "kimi_linear": MIXED,
    "qwen4_exp_text": MIXED | INDEXED,
    "qwen4_exp": {"text_config": MIXED | INDEXED},
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), MIXED),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), {"text_config": MIXED}),
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "whisper": {"decoder_attention_heads": 4, "encoder_attention_heads": 4, "decoder_layers": 2, "encoder_layers": 2},
    "marian": {"decoder_vocab_size": VOCAB, "pad_token_id": 0},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "dots1": {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "reformer": {"axial_pos_embds": False, "is_decoder": True},
    "zamba2": {"layer_types": ["mamba", "hybrid"], "hybrid_layer_ids": [1]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "xmod": {"default_language": "en_XX"},
    "hrm_text": {"num_hidden_layers": 8, "num_layers_per_stack": 1, "layer_types": ["full_attention"] * 8},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},  # its cache rounds the heads' widths up
    "bailing_hybrid": {"layer_group_size": 2, "num_experts": 4, "n_group": 1, "topk_group": 1, "partial_rotary_factor": 1.0},
}
WAYS = {"Packed": "packed", "Expanded": "expanded cache", "OneByOne": "one by one", "Reference": "full re-runs"}
COLUMNS = ["class", "configuration", "served", "max |dp|", "reason", "own cache"]


def sizes(config):
    """The settings of a configuration that the rules shrink: {name: size}, of its parts too."""
    found, given = {}, config.to_dict()
    for name, value in given.items():
        part = vars(config).get(name)
        if hasattr(part, "to_dict"):
            found[name] = sizes(part)
        elif type(value) is int:
            rule = next((size for pattern, size in SIZES.items() if re.search(pattern, name)), value)
            if rule < value:
                found[name] = rule
    if "num_key_value_heads" in given:  # latent attention has as many as queries
        found["num_key_value_heads"] = 4 if given.get("kv_lora_rank") else 2
    if "head_dim" in given:
        found["head_dim"] = 4 if "qk_rope_head_dim" in given else 8  # there it is that of the rotated part
    return found


def merged(found, exact):
    return found | {name: merged(found[name], x) if isinstance(found.get(name), dict) else x for name, x in exact.items()}


def tiny(kind):
    """A random model of that configuration's causal-LM class."""
    make = CONFIG_MAPPING[kind]
    change = merged(sizes(make()), EXACT.get(kind, {}))
    try:
        config = make(**change, is_decoder=True)
    except (TypeError, ValueError):
        config = make(**change)
    build = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    torch.manual_seed(0)
    model = build(config if "Conditional" in build.__name__ or not config.sub_configs else config.get_text_config(decoder=True))
    model = model.float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return model


def served(model):
    """(way, why not a better one, largest difference in probability from the reference)."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, model.get_input_embeddings().num_embeddings, (2, 14), generator=generator)
    positions = torch.zeros_like(ids, dtype=torch.bool)
    positions[0, [0, 7, 13]] = positions[1, [3, 8]] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = dict(top_k=3, positions=positions)
        error = 0.0
        for offset in (2, 3):
            ours, theirs = (future_log_probs(model, ids, offset, **call, reference=r).log_probs.exp() for r in (False, True))
            error = max(error, (ours - theirs).abs().max().item())
        with undisturbed(model):
            engine, reason = engine_for(model, 16)
    return WAYS[engine.__name__], reason or "", error


def looked_at(kind):
    """One line of the table."""

    def late(*_):
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    name, step = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind], "cannot be built"
    try:
        model = tiny(kind)
        step = "cannot be run"
        way, reason, error = served(model)
        return name, kind, way, error, reason, own_cache(model) if way == WAYS["Reference"] else ""
    except Exception as error:
        return name, kind, step, float("nan"), " ".join(str(error).split())[:300] or type(error).__name__, ""
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="model types whose lines are renewed")
    given = parser.parse_args()
    rows = []
    transformers.logging.set_verbosity_error()
    for kind in given.only or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        rows.append(looked_at(kind))
        print(*rows[-1], sep=", ", flush=True)
    table = pd.DataFrame(rows, columns=COLUMNS)
    if given.only:
        known = pd.read_csv(HERE / "classes.csv", keep_default_na=False, na_values={"max |dp|": [""]})
        table = pd.concat([known[~known["configuration"].isin(given.only)], table])
    publish(table.sort_values("configuration"))


def speed(kind, length=48, **change):
    """Seconds of full re-runs over seconds with the expanded cache: one row, every position, top_k=8."""
    with unittest.mock.patch.dict(EXACT, {kind: EXACT.get(kind, {}) | change}):
        model = tiny(kind)
    ids = torch.randint(3, VOCAB, (1, length), generator=torch.Generator().manual_seed(1))
    seconds = {True: [], False: []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            for reference, found in seconds.items():
                start = time.perf_counter()
                future_log_probs(model, ids, 2, top_k=8, reference=reference)
                found.append(time.perf_counter() - start)
    return min(seconds[True]) / min(seconds[False])


def publish(table):
    """The whole table, and in the README one line a way."""
    table.to_csv(HERE / "classes.csv", index=False, lineterminator="\n", float_format="%.1e")
    once = table.sort_values("max |dp|").drop_duplicates("class").sort_values("configuration")
    lines = [f"transformers {transformers.__version__}, {len(once)} classes.", ""]
    lines += ["| served | classes | largest difference | which |", "|---|---|---|---|"]
    for way in [*WAYS.values(), "cannot be run", "cannot be built"]:
        here = once[once["served"] == way]
        which = ", ".join(here["configuration"]) if way != WAYS["Packed"] else "the others"
        worst = here["max |dp|"].max()
        lines.append(f"| {way} | {len(here)} | {'' if here.empty or pd.isna(worst) else f'{worst:.0e}'} | {which} |")
    slow = once[once["served"] == WAYS["Reference"]]
    without = "; ".join(slow["configuration"] + " " + slow["own cache"].str.split(": ").str[0])
    usable = sum(slow["own cache"] == RIGHT)
    lines += ["", f"Of the {len(slow)} at full re-runs, {usable} have a cache of use, by their own steps (in nats): {without}."]
    ratios = {"Granite hybrid": speed("granitemoehybrid"), "Falcon with ALiBi": speed("falcon", alibi=True)}
    said = ", ".join(f"{name} {ratio:.2g}" for name, ratio in ratios.items())
    lines += ["", f"Full re-runs / expanded cache in seconds, 48 tokens, top_k=8, two layers 32 wide: {said}."]
    splice("classes", lines)


if __name__ == "__main__":
    main()
