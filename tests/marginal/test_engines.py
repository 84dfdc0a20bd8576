"""Packed passes over more kinds of attention, and the expanded cache where they do not serve, against brute force."""

import pytest
import torch
from test_marginal import SEQ, batch, brute_force
from tiny_models import GROUPED, SHAPE, VOCAB, WIDE, random_model, tiny_model
from transformers import (
    BartConfig,
    BloomConfig,
    DeepseekV3Config,
    GraniteMoeHybridConfig,
    MambaConfig,
    MiniCPM3Config,
    MptConfig,
    RobertaConfig,
    RwkvConfig,
    SmolLM3Config,
)

from mtp_utils.marginal import expanded, rows
from mtp_utils.marginal.expanded import Expanded, OneByOne
from mtp_utils.marginal.future import future_log_probs, future_tokens
from mtp_utils.marginal.packed import Packed
from mtp_utils.marginal.reference import checked, engine_for

LATENT = dict(kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=6)
MAMBA = dict(mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, mamba_expand=2, mamba_chunk_size=8)
PACKED = {
    "latent attention, keys wider than values": lambda: DeepseekV3Config(**WIDE, **LATENT, first_k_dense_replace=2, head_dim=4),
    "latent attention, another class": lambda: MiniCPM3Config(**WIDE, **LATENT, head_dim=4),
    "layers without positions": lambda: SmolLM3Config(**GROUPED, no_rope_layers=[1, 0]),
    "positions counted from the cache": lambda: BartConfig(
        vocab_size=VOCAB, d_model=16, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=24, encoder_layers=2
    ),
}
EXPANDED = {
    "recurrent and attention layers": lambda: GraniteMoeHybridConfig(
        **SHAPE, **MAMBA, shared_intermediate_size=24, num_local_experts=0, layer_types=["mamba", "attention"]
    ),
    "recurrent layers alone": lambda: MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4),
    "a bias of its own": lambda: BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=2, n_head=4),
    "another bias of its own": lambda: MptConfig(vocab_size=VOCAB, d_model=16, n_layers=2, n_heads=4, max_seq_len=32),
}


@pytest.mark.parametrize("name", PACKED)
def test_what_is_one_rule_away_is_packed_and_exact(name):
    model, (ids, mask) = random_model(PACKED[name]()), batch("left")
    for offset in (2, 3):
        f = future_log_probs(model, ids, offset, exact=True, attention_mask=mask)
        for row, column in mask.nonzero()[::2].tolist():
            prefix = ids[row, : column + 1][mask[row, : column + 1] == 1]
            assert (f.log_probs[row, column] - brute_force(model, prefix, offset)[0]).abs().max() < 1e-9
    assert engine_for(model, SEQ + 3) == (Packed, None)


@pytest.mark.filterwarnings("ignore:.*cannot be packed")
@pytest.mark.parametrize("name", EXPANDED)
def test_what_cannot_be_packed_is_served_by_its_repeated_cache(name):
    model, (ids, mask) = random_model(EXPANDED[name](), torch.float32), batch("left")
    wanted = mask * (torch.arange(SEQ) % 4 == 0)
    for offset in (2, 3):
        f = future_log_probs(model, ids, offset, exact=True, attention_mask=mask, positions=wanted)
        for row, column in wanted.nonzero().tolist():
            prefix = ids[row, : column + 1][mask[row, : column + 1] == 1]
            assert (f.log_probs[row, column] - brute_force(model, prefix, offset)[0]).abs().max() < 1e-4
    assert engine_for(model, SEQ + 3)[0] is Expanded
    with pytest.warns(UserWarning, match="cannot be packed .*its cache is repeated"):
        tokens = future_tokens(model, ids, 3, attention_mask=mask, positions=wanted)
    prefix = ids[0, :5]
    for _ in range(3):
        with torch.no_grad():
            prefix = torch.cat([prefix, model(prefix[None], use_cache=False).logits[0, -1:].argmax(-1)])
    assert torch.equal(tokens[0, 4], prefix[-3:])


@pytest.mark.filterwarnings("ignore:.*cannot be packed")
@pytest.mark.parametrize("change", [dict(STEPS=0), dict(PASS=2), dict(STEPS=2, CACHE_BYTES=5000)], ids=str)
def test_how_a_cache_is_led_and_repeated_changes_nothing(change, monkeypatch):
    for name in ("recurrent and attention layers", "a bias of its own"):
        model, (ids, mask) = random_model(EXPANDED[name](), torch.float32), batch()
        positions = torch.zeros_like(mask, dtype=torch.bool)
        positions[:, [1, 2, 5]] = True
        call = dict(attention_mask=mask, positions=positions, top_k=3)
        one = future_log_probs(model, ids, 3, **call)
        with monkeypatch.context() as patch:
            for setting, value in change.items():
                patch.setattr(expanded, setting, value)
            other = future_log_probs(model, ids, 3, **call)
        assert (one.log_probs.exp() - other.log_probs.exp()).abs().max() < 1e-5
        assert torch.equal(one.num_candidates, other.num_candidates)


def test_rows_of_which_few_positions_are_wanted_share_a_pass_however_large_the_vocabulary(monkeypatch):
    model, ids = tiny_model("llama"), torch.randint(VOCAB, (6, SEQ), generator=torch.Generator().manual_seed(3))
    last = torch.zeros_like(ids, dtype=torch.bool)
    last[:, -1] = last[0, 3] = True
    call, found = {"top_k": 3}, {}
    for limit in (rows.PREFIX_LOGITS, 6 * 2 * VOCAB, 5 * 2 * VOCAB, 1):
        monkeypatch.setattr(rows, "PREFIX_LOGITS", limit)
        sizes = {name: [len(group) for group in rows.Rows(model, ids, 2, positions=at).groups()]
                 for name, at in (("few", last), ("all", last | True))}  # fmt: skip
        found[limit] = sizes, future_log_probs(model, ids, 2, positions=last, **call).log_probs[last]
    sizes, (first, *others) = zip(*found.values(), strict=True)
    assert [x["few"] for x in sizes] == [[6], [6], [5, 1], [1] * 6]
    assert [x["all"] for x in sizes][0] == [6] and all(len(x["all"]) == 6 for x in sizes[1:])
    assert all((first.exp() - other.exp()).abs().max() < 1e-6 for other in others)


@pytest.mark.parametrize("padding", (1, 3))
def test_positions_behind_a_padding_token_are_counted_as_the_model_does(padding):
    config = RobertaConfig(**WIDE | dict(pad_token_id=padding), is_decoder=True)
    model = random_model(config, torch.float32)
    ids = torch.tensor([[3, 1, 4, 3, 3, 5], [2, 6, 5, 1, 1, 2]])  # with padding tokens that are text
    for offset in (1, 2, 3):  # all candidates: the padding token too
        ours, right = (future_log_probs(model, ids, offset, exact=True, reference=r).log_probs for r in (False, True))
        assert (ours - right).abs().max() < 1e-4
    assert engine_for(model, 9) == (Packed, None)
    with torch.no_grad():
        assert checked(model, Expanded, 9, {}) == (None, True)


@pytest.mark.filterwarnings("ignore:.*cannot be packed")
def test_a_step_that_is_right_of_one_text_alone_serves_one_candidate_at_a_time():
    config = RwkvConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, context_length=32, bos_token_id=0, eos_token_id=0)
    model, ids = random_model(config, torch.float32), torch.tensor([[3, 1, 4, 6], [2, 6, 5, 1]])
    for offset in (2, 3):
        ours, right = (future_log_probs(model, ids, offset, top_k=3, reference=r).log_probs for r in (False, True))
        assert (ours - right).abs().max() < 1e-4
    assert engine_for(model, 7)[0] is OneByOne


def test_a_row_is_repeated_where_its_batch_is():
    keys, places = torch.rand(1, 2, 5, 3), torch.arange(15).view(3, 1, 5)
    assert torch.equal(expanded.repeated(keys, 4), keys.expand(4, -1, -1, -1))
    assert torch.equal(expanded.repeated(places, 4), places.expand(-1, 4, -1))


def test_the_prefix_has_logits_of_the_wanted_positions_alone():
    model, seen = random_model(EXPANDED["recurrent and attention layers"](), torch.float32), []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[1]))
    ids, t = torch.randint(VOCAB, (1, 9)), torch.tensor([2, 5])
    with torch.no_grad():
        found = Expanded(model, ids, torch.zeros_like(t), t).logits
        hook.remove()
        assert seen == [2] and torch.allclose(found, model(ids, use_cache=False).logits[0, t], atol=1e-5)


def test_a_sliding_cache_may_be_expanded_too():
    for window in (2, 5):
        model = tiny_model("mistral", sliding_window=window)
        with torch.no_grad():
            assert checked(model, Expanded, 20, {"sliding_window": window}) == (None, True)


def test_a_model_without_a_cache_says_so():
    model = tiny_model("llama")
    forward = model.forward
    model.forward = lambda input_ids, use_cache=False, **_: forward(input_ids=input_ids, use_cache=False)
    reason, _ = checked(model, Expanded, 20, {})
    assert "no cache" in reason


def test_errors_of_a_models_own_are_reasons_in_one_line_and_those_of_the_moment_are_not_kept(monkeypatch):
    model = tiny_model("llama")
    forward = model.forward

    def only_whole(input_ids, past_key_values=None, **given):
        if past_key_values is not None:
            raise RuntimeError("\nno cache here\nat all")
        return forward(input_ids=input_ids, **given)

    model.forward = only_whole
    reason = engine_for(model, 20)[1]
    assert "RuntimeError: no cache here" in reason and "\n" not in reason
    model = tiny_model("llama")
    with monkeypatch.context() as patch:

        def full(*given):
            raise MemoryError("one candidate does not fit")

        patch.setattr(Packed, "forward", full)
        with pytest.raises(MemoryError):
            engine_for(model, 20)
    assert engine_for(model, 20) == (Packed, None)
