"""The marginal against brute force, its bounds, its estimators and its manners, on tiny random models."""

import copy

import pytest
import torch
from tiny_models import CONFIGS, GROUPED, PACKED, VOCAB, WINDOW, tiny_model
from transformers import AutoModelForCausalLM, GraniteConfig

from mtp_utils.backbones import anatomy
from mtp_utils.backbones.anatomy import finish_of, unembeds
from mtp_utils.marginal import attention, expansion, packed, reference
from mtp_utils.marginal.future import future_log_probs, future_tokens
from mtp_utils.marginal.packed import Packed

SEQ = 9  # longer than the sliding window


def brute_force(model, prefix, offset):
    """log m_offset (vocab,) after prefix (n,), and (path log-probs, p(. | path)), from plain passes over all paths."""
    paths = torch.cartesian_prod(*[torch.arange(VOCAB)] * (offset - 1)).view(-1, offset - 1)
    with torch.no_grad():
        logits = model(torch.cat([prefix.expand(len(paths), -1), paths], 1), use_cache=False).logits
    log_p = logits.log_softmax(-1)[:, len(prefix) - 1 :]
    path = torch.stack([log_p[torch.arange(len(paths)), i, paths[:, i]] for i in range(offset - 1)]).sum(0)
    return (path[:, None] + log_p[:, -1]).logsumexp(0), path, log_p[:, -1]


def batch(side="right", seed=0):
    """Two rows, the second padded by three tokens on that side; ids and mask (2, SEQ)."""
    ids = torch.randint(VOCAB, (2, SEQ), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, slice(3) if side == "left" else slice(-3, None)] = 0
    return ids, mask


@pytest.fixture
def candidates(monkeypatch):
    """How many tokens went through packed passes."""
    seen = []
    forward = Packed.forward

    def counted(self, level, start, stop):
        seen.append(stop - start)
        return forward(self, level, start, stop)

    monkeypatch.setattr(Packed, "forward", counted)
    return seen


@pytest.fixture(scope="module")
def neox():
    return tiny_model("gpt_neox")


@pytest.mark.filterwarnings("ignore:FalconForCausalLM cannot be packed")
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CONFIGS)
def test_exact_equals_brute_force_everywhere(name, side, candidates):
    model = tiny_model(name)
    ids, mask = batch(side)
    for offset in (2, 3):
        del candidates[:]
        f = future_log_probs(model, ids, offset, exact=True, attention_mask=mask)
        for row, column in mask.nonzero().tolist():
            prefix = ids[row, : column + 1][mask[row, : column + 1] == 1]
            expected, _, _ = brute_force(model, prefix, offset)
            assert (f.log_probs[row, column] - expected).abs().max() < 1e-9
        assert (f.log_probs[mask == 0] == -torch.inf).all()
        # the self-check adds 12 of its own; without packing nothing else passes here
        assert (sum(candidates) >= mask.sum() * sum(VOCAB**d for d in range(1, offset))) == (name in PACKED)


@pytest.mark.parametrize("window", [2, 3])
def test_a_path_may_outgrow_the_sliding_window(window, candidates):
    model = tiny_model("mistral", sliding_window=window)
    ids, _ = batch()
    f = future_log_probs(model, ids[:1], 4, exact=True)
    for t in (0, 3, SEQ - 1):
        assert (f.log_probs[0, t] - brute_force(model, ids[0, : t + 1], 4)[0]).abs().max() < 1e-9
    assert sum(candidates) > SEQ * VOCAB**3


@pytest.mark.parametrize("name", ["gpt_neox", "mistral", "gemma3"])
def test_small_blocks_give_the_same(name, monkeypatch):
    model = tiny_model(name)
    ids, mask = batch("left")
    kwargs = [dict(exact=True), dict(top_k=3), dict(mass=0.8), dict(samples=9), dict(top_k=2, samples=9)]
    whole = [future_log_probs(model, ids, 3, attention_mask=mask, **k) for k in kwargs]
    monkeypatch.setattr(packed, "CPU", packed.Budget(2**20, 5, 1, 3))
    monkeypatch.setattr(packed, "KEPT_BYTES", 1)
    monkeypatch.setattr(attention, "MAX_SPAN", 2)
    monkeypatch.setattr(expansion, "PATHS_AT_ONCE", 2)
    for one, k in zip(whole, kwargs, strict=True):
        other = future_log_probs(model, ids, 3, attention_mask=mask, **k)
        assert (one.log_probs.exp() - other.log_probs.exp()).abs().max() < 1e-12
        assert torch.equal(one.num_candidates, other.num_candidates)
        assert torch.equal(one.certified, other.certified)


def test_a_model_that_scales_its_logits_and_one_that_moves_them_are_packed(candidates):
    config = GraniteConfig(**GROUPED, logits_scaling=3.0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    ids, _ = batch()
    for apart in (True, False):
        assert unembeds(model) is apart  # its LM head is run apart from its decoder, or with it
        f = future_log_probs(model, ids[:1], 2, exact=True)
        assert (f.log_probs[0, 4] - brute_force(model, ids[0, :5], 2)[0]).abs().max() < 1e-9
        assert sum(candidates) >= SEQ * VOCAB
        candidates.clear()
        model = copy.deepcopy(model)
        model.register_forward_hook(lambda module, inputs, out: out.__setitem__("logits", out.logits + torch.arange(VOCAB)))


def test_out_of_memory_halves_the_passes_and_gives_the_same(neox, monkeypatch):
    ids, mask = batch()
    whole = future_log_probs(neox, ids, 3, exact=True, attention_mask=mask)
    seen, forward, largest = [], Packed.forward, 20

    def scarce(self, level, start, stop):
        seen.append(stop - start)
        if stop - start > largest:
            raise torch.OutOfMemoryError("no more")
        return forward(self, level, start, stop)

    monkeypatch.setattr(Packed, "forward", scarce)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    with pytest.warns(UserWarning, match="out of memory: passes of"):
        other = future_log_probs(neox, ids, 3, exact=True, attention_mask=mask)
    assert (whole.log_probs.exp() - other.log_probs.exp()).abs().max() < 1e-12
    assert sum(n > largest for n in seen) < 8  # the smaller size is remembered
    largest = 0
    with pytest.raises(MemoryError, match="one candidate does not fit"), pytest.warns(UserWarning):
        future_log_probs(neox, ids, 2, exact=True)


def test_holes_in_the_mask_are_closed_up(neox):
    ids, mask = batch()
    mask[0, 2] = mask[0, 5] = 0
    f = future_log_probs(neox, ids, 2, exact=True, attention_mask=mask)
    expected, _, _ = brute_force(neox, ids[0][mask[0] == 1][:4], 2)
    assert (f.log_probs[0, 4] - expected).abs().max() < 1e-9  # the fourth token that is there
    assert (f.log_probs[0, 5] == -torch.inf).all()


def test_offset_one_is_the_models_own_prediction(neox):
    ids, mask = batch()
    f = future_log_probs(neox, ids, 1, top_k=2, attention_mask=mask)
    with torch.no_grad():
        own = neox(ids).logits.log_softmax(-1)
    assert (f.log_probs - own)[mask == 1].abs().max() < 1e-12
    assert (f.captured_mass == mask).all() and (f.num_candidates == 0).all()


@pytest.mark.parametrize("offset", [2, 3])
@pytest.mark.parametrize("name", ["gpt_neox", "mistral"])
def test_top_k_of_the_whole_vocabulary_is_exact(name, offset):
    model = tiny_model(name)
    ids, mask = batch()
    exact = future_log_probs(model, ids, offset, exact=True, attention_mask=mask)
    top = future_log_probs(model, ids, offset, top_k=VOCAB, attention_mask=mask)
    assert (exact.log_probs - top.log_probs)[mask == 1].abs().max() < 1e-9
    assert (exact.captured_mass[mask == 1] > 1 - 1e-12).all() and (exact.captured_mass <= 1).all()
    assert (exact.num_candidates[mask == 1] == VOCAB ** (offset - 1)).all()


@pytest.mark.parametrize("mode", [dict(top_k=1), dict(top_k=3), dict(mass=0.5), dict(mass=0.9)], ids=str)
@pytest.mark.parametrize("offset", [2, 3])
def test_bounds_hold_the_exact_value_and_certificates_are_right(mode, offset):
    certified = 0
    for seed in range(3):
        model = tiny_model("llama", seed=seed)
        ids, mask = batch(seed=seed)
        exact = future_log_probs(model, ids, offset, exact=True, attention_mask=mask).log_probs[mask == 1].exp()
        f = future_log_probs(model, ids, offset, attention_mask=mask, **mode)
        s, m, sure = f.log_probs[mask == 1].exp(), f.captured_mass[mask == 1], f.certified[mask == 1]
        assert (s.sum(-1) - m).abs().max() < 1e-12
        assert (s <= exact + 1e-12).all() and (exact <= s + (1 - m)[:, None] + 1e-12).all()
        first, second = s.topk(2).values.T
        assert torch.equal(sure, first - second > 1 - m + 1e-10)
        assert (s.argmax(-1) == exact.argmax(-1))[sure].all()
        assert not f.certified[mask == 0].any()
        certified += int(sure.sum())
    assert certified > 0


@pytest.mark.parametrize("offset", [2, 3])
def test_mass_takes_the_fewest_paths_best_first(offset):
    model = tiny_model("qwen3")
    ids, _ = batch()
    f = future_log_probs(model, ids[:1], offset, mass=0.7)
    for t in range(SEQ):
        _, path, after = brute_force(model, ids[0, : t + 1], offset)
        order = path.argsort(descending=True)
        needed = int((path[order].exp().cumsum(0) < 0.7).sum()) + 1
        best = order[:needed]
        assert f.num_candidates[0, t] == needed
        assert (f.log_probs[0, t] - (path[best, None] + after[best]).logsumexp(0)).abs().max() < 1e-9
        assert f.captured_mass[0, t] >= 0.7


ESTIMATORS = [(2, dict(samples=5)), (3, dict(samples=5)), (2, dict(top_k=2, samples=3)), (3, dict(top_k=2, samples=3))]


@pytest.mark.parametrize("offset, mode", ESTIMATORS, ids=str)
def test_sampled_probabilities_are_unbiased_and_their_logs_are_not(offset, mode, neox):
    """z-tests of 7 means over 4,000 draws: |z| < 5 fails by chance in fewer than 5 of a million runs."""
    draws = 4000
    prefix = batch()[0][0]
    exact, _, _ = brute_force(neox, prefix, offset)
    ids, last = prefix.expand(draws, -1), torch.zeros(draws, SEQ, dtype=torch.bool)
    last[:, -1] = True
    f = future_log_probs(neox, ids, offset, positions=last, seed=1, **mode)
    p = f.log_probs[:, -1].exp()
    assert (p.sum(-1) - 1).abs().max() < 1e-12
    z = (p.mean(0) - exact.exp()) / (p.std(0) / draws**0.5)
    assert z.abs().max() < 5
    bias = p.clamp_min(1e-30).log().mean(0) - exact
    assert (bias < 0).all() and bias.min() < -0.01  # Jensen: why a sampled cross-entropy is too high
    truncated = future_log_probs(neox, ids[:1], offset, top_k=2, positions=last[:1])
    if "top_k" in mode:
        assert (f.captured_mass[:1] - truncated.captured_mass).abs().max() < 1e-12
        assert torch.equal(f.certified[:1], truncated.certified)
        wrong = (truncated.log_probs[0, -1].exp() / truncated.captured_mass[0, -1] - exact.exp()) / (
            p.std(0) / draws**0.5
        )
        assert wrong.abs().max() > 5  # the test would see what truncation does
    else:
        assert (f.captured_mass == 0).all() and not f.certified.any()


def test_bias_of_sampled_logs_shrinks_with_samples(neox):
    ids, last = batch()[0][:1].expand(2000, -1), torch.zeros(2000, SEQ, dtype=torch.bool)
    last[:, -1] = True
    exact, _, _ = brute_force(neox, ids[0], 2)
    few, more = (
        (future_log_probs(neox, ids, 2, samples=n, positions=last).log_probs[:, -1] - exact).mean() for n in (4, 16)
    )
    assert few < 2 * more < 0


def test_hybrid_with_the_whole_vocabulary_enumerated_is_exact(neox):
    ids, mask = batch()
    exact = future_log_probs(neox, ids, 3, exact=True, attention_mask=mask)
    hybrid = future_log_probs(neox, ids, 3, top_k=VOCAB, samples=4, attention_mask=mask)
    assert (exact.log_probs - hybrid.log_probs)[mask == 1].abs().max() < 1e-9
    assert torch.equal(exact.num_candidates, hybrid.num_candidates)


def test_draws_depend_on_seed_row_and_position_alone(neox):
    ids, mask = batch("left")
    there = mask == 1
    f = future_log_probs(neox, ids, 3, samples=6, attention_mask=mask)
    positions = there & (torch.arange(SEQ) % 3 == 0)
    some = future_log_probs(neox, ids, 3, samples=6, attention_mask=mask, positions=positions)
    assert (f.log_probs.exp() - some.log_probs.exp())[positions].abs().max() < 1e-12
    assert (some.log_probs[~positions] == -torch.inf).all() and (some.num_candidates[~positions] == 0).all()
    moved = torch.cat([ids[1, 3:], ids[1, :3]]), torch.cat([mask[1, 3:], mask[1, :3]])  # padding on the other side
    right = future_log_probs(
        neox, torch.stack([ids[0], moved[0]]), 3, samples=6, attention_mask=torch.stack([mask[0], moved[1]])
    )
    assert (right.log_probs[1, :6] - f.log_probs[1, 3:]).abs().max() < 1e-9
    other = future_log_probs(neox, ids, 3, samples=6, attention_mask=mask, seed=1)
    assert not torch.equal(f.log_probs[there], other.log_probs[there])
    seeds = torch.arange(2 * SEQ).view(2, SEQ)
    alone = future_log_probs(neox, ids[1:], 3, samples=6, attention_mask=mask[1:], seed=seeds[1:])
    both = future_log_probs(neox, ids, 3, samples=6, attention_mask=mask, seed=seeds)
    assert (alone.log_probs[0, 3:] - both.log_probs[1, 3:]).abs().max() < 1e-9


@pytest.mark.parametrize("offset", [2, 3])
def test_entropies_and_mutual_information_equal_brute_force(offset, neox):
    ids, mask = batch()
    f = future_log_probs(neox, ids, offset, exact=True, attention_mask=mask, with_entropy=True)
    log_m, path, after = brute_force(neox, ids[0, :5], offset)
    given = (path.exp() * -(after.exp() * after).sum(-1)).sum()
    assert (f.entropy[0, 4] + (log_m.exp() * log_m).sum()).abs() < 1e-9
    assert (f.conditional_entropy[0, 4] - given).abs() < 1e-9
    assert (f.mutual_information[mask == 1] > 0).all()
    assert (f.entropy[mask == 0] == 0).all() and (f.conditional_entropy[mask == 0] == 0).all()
    assert future_log_probs(neox, ids, offset, top_k=1).conditional_entropy is None


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_greedy_tokens_are_what_greedy_decoding_gives(name):
    model = tiny_model(name)
    ids, mask = batch("left")
    tokens = future_tokens(model, ids, 4, attention_mask=mask)
    assert (tokens[mask == 0] == -100).all()
    for row, column in [(0, 0), (0, SEQ - 1), (1, 3), (1, SEQ - 1)]:
        prefix = ids[row, : column + 1][mask[row, : column + 1] == 1]
        for _ in range(4):
            with torch.no_grad():
                prefix = torch.cat([prefix, model(prefix[None], use_cache=False).logits[0, -1:].argmax(-1)])
        assert torch.equal(tokens[row, column], prefix[-4:])


def test_sampled_tokens_follow_the_marginals(neox):
    """z-tests of 3 x 7 frequencies over 6,000 draws: |z| < 5 fails by chance in about 1 of 80,000 runs."""
    draws = 6000
    prefix = batch()[0][0, :4]
    ids, last = prefix.expand(draws, -1), torch.zeros(draws, 4, dtype=torch.bool)
    last[:, -1] = True
    tokens = future_tokens(neox, ids, 3, sample=True, seed=3, positions=last)[:, -1]
    for offset in (1, 2, 3):
        p = brute_force(neox, prefix, offset)[0].exp() if offset > 1 else neox(prefix[None]).logits[0, -1].softmax(-1)
        seen = tokens[:, offset - 1].bincount(minlength=VOCAB) / draws
        assert ((seen - p) / (p * (1 - p) / draws).sqrt()).abs().max() < 5
    again = future_tokens(neox, ids[:50], 3, sample=True, seed=3, positions=last[:50])[:, -1]
    assert torch.equal(again, tokens[:50])
    assert not torch.equal(tokens, future_tokens(neox, ids, 3, sample=True, seed=4, positions=last)[:, -1])


def test_cost_is_that_of_the_wanted_positions(neox, candidates):
    ids, mask = batch()
    future_log_probs(neox, ids, 2, top_k=3)  # the self-check is behind us
    del candidates[:]
    passed = []
    handle = neox.get_input_embeddings().register_forward_hook(lambda *x: passed.append(x[1][0].numel()))
    positions = torch.zeros_like(ids, dtype=torch.bool)
    positions[0, 1] = positions[0, 4] = True
    f = future_log_probs(neox, ids, 2, top_k=3, positions=positions)
    handle.remove()
    assert sum(candidates) == 2 * 3
    assert sum(passed) == 5 + 2 * 3  # the prefix ends where the last wanted position is
    assert f.num_candidates.sum() == 6


@pytest.mark.parametrize("name", ["gpt_neox", "mistral"])
def test_lower_precision_agrees_with_full_re_runs(name, candidates):
    ids, mask = batch()
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        model = tiny_model(name, dtype)
        f = future_log_probs(model, ids, 3, top_k=4, attention_mask=mask)
        slow = future_log_probs(model, ids, 3, top_k=4, attention_mask=mask, reference=True)
        assert f.log_probs.dtype == torch.float32 and candidates
        close = (f.log_probs.exp() - slow.log_probs.exp())[mask == 1].abs().max()
        assert close < limit and next(model.parameters()).dtype == dtype
        del candidates[:]


def test_model_is_as_before_afterwards_also_on_error(neox):
    model = tiny_model("gemma3").train()
    model.model.layers[0].eval()
    modes = [m.training for m in model.modules()]
    ids, _ = batch()
    future_log_probs(model, ids, 2, top_k=2)
    assert [m.training for m in model.modules()] == modes and model.config._attn_implementation == "sdpa"
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="non-finite") as caught:
        future_log_probs(model, ids, 2, top_k=2)
    assert [m.training for m in model.modules()] == modes and model.config._attn_implementation == "sdpa"
    assert caught.value is not None and all(p.requires_grad for p in model.parameters())


def test_dropout_is_off(neox):
    model = tiny_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5)
    ids, _ = batch()
    still = future_log_probs(model, ids, 2, exact=True)
    assert torch.equal(still.log_probs, future_log_probs(model.train(), ids, 2, exact=True).log_probs)


def test_non_finite_logits_name_row_and_position():
    model = tiny_model("llama")
    ids, mask = batch("left")
    future_log_probs(model, ids, 2, top_k=2)

    def spoil(module, inputs, logits):
        if logits.shape[:2] == (2, SEQ):
            logits[1, 4, 2] = torch.nan

    model.lm_head.register_forward_hook(spoil)
    with pytest.raises(ValueError, match=r"non-finite logits at \(row, position\) \(1, 7\)"):
        future_log_probs(model, ids, 2, top_k=2, attention_mask=mask)  # three tokens of padding before it


@pytest.mark.parametrize("name", ["gpt_neox", "mistral"])
def test_wrong_packing_is_noticed_and_the_reference_serves(name, monkeypatch):
    ids, mask = batch()
    if name == "mistral":  # an attention that keeps its window to itself
        original = attention.attend
        monkeypatch.setitem(
            attention.AttentionInterface._global_mapping,
            attention.NAME,
            lambda *args, sliding_window=None, **kwargs: original(*args, **kwargs),
        )
    else:
        monkeypatch.setattr(attention, "absorb", lambda out, lse, *_: (out, lse))
    model, reason = tiny_model(name), "does not announce" if name == "mistral" else "log-probabilities off"
    with pytest.warns(UserWarning, match=f"cannot be packed .*{reason}"):
        f = future_log_probs(model, ids, 3, exact=True, attention_mask=mask)
    assert (f.log_probs[0, -1] - brute_force(model, ids[0], 3)[0]).abs().max() < 1e-9
    with pytest.warns(UserWarning, match="cannot be packed"):
        assert (future_tokens(model, ids, 2)[0, 0, 1] >= 0).all()


def test_rope_that_changes_with_length_is_not_packed():
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 6}
    rope |= {"short_factor": [1.0, 1.0], "long_factor": [3.0, 5.0]}
    model = tiny_model("llama", rope_parameters=rope)
    ids, _ = batch()
    short = future_log_probs(model, ids[:, :4], 2, exact=True)  # below the switch: packed, no warning
    assert (short.log_probs[0, 3] - brute_force(model, ids[0, :4], 2)[0]).abs().max() < 1e-9
    with pytest.warns(UserWarning, match="cannot be packed"):
        f = future_log_probs(model, ids, 2, exact=True)
    for t in (2, SEQ - 1):
        assert (f.log_probs[0, t] - brute_force(model, ids[0, : t + 1], 2)[0]).abs().max() < 1e-9


def test_the_window_of_one_call_does_not_vouch_for_another():
    model = tiny_model("mistral")
    ids, _ = batch()
    future_log_probs(model, ids[:, : WINDOW - 3], 2, exact=True)
    f = future_log_probs(model, ids, 2, exact=True)
    assert (f.log_probs[0, -1] - brute_force(model, ids[0], 2)[0]).abs().max() < 1e-9


IDS = torch.zeros(2, 4, dtype=torch.long)
BAD = [
    (dict(offset=0), "offset must be an integer >= 1, not 0"),
    (dict(top_k=0), r"top_k must be in \[1, 7\]"),
    (dict(top_k=8), r"top_k must be in \[1, 7\]"),
    (dict(top_k=None, samples=0), "samples must be >= 1"),
    (dict(top_k=None, mass=0.0), r"mass must be in \(0, 1\]"),
    (dict(top_k=None, mass=1.5), r"mass must be in \(0, 1\]"),
    (dict(top_k=None), "exactly one of top_k, mass, exact, samples"),
    (dict(mass=0.5), "exactly one of top_k, mass, exact, samples"),
    (dict(exact=True), "exactly one of top_k, mass, exact, samples"),
    (dict(input_ids=IDS[:, :0]), "input_ids is empty"),
    (dict(input_ids=IDS[:0]), "input_ids is empty"),
    (dict(input_ids=IDS[0]), "input_ids must be"),
    (dict(input_ids=IDS.float()), "input_ids must be"),
    (dict(input_ids=torch.zeros(1, 32, dtype=torch.long)), "33 is above the model's 32 positions"),
    (dict(input_ids=IDS + 7), r"input_ids must be in \[0, 7\)"),
    (dict(input_ids=IDS - 1), r"input_ids must be in \[0, 7\)"),
    (dict(attention_mask=torch.ones(2, 5)), r"attention_mask must have input_ids' shape \(2, 4\), not \(2, 5\)"),
    (dict(attention_mask=torch.zeros(2, 4)), "attention_mask leaves input_ids empty"),
    (dict(positions=torch.ones(4, dtype=torch.bool)), "positions must have input_ids' shape"),
    (dict(top_k=None, samples=2, seed=torch.zeros(3)), "seed must be an int or"),
    (dict(offset=4, top_k=7, max_paths=300), "343 paths per position are above max_paths=300: .* FLOPs"),
    (dict(offset=3, top_k=None, mass=0.999, max_paths=2), "max_paths=2 paths at a position do not hold"),
]


@pytest.mark.parametrize("change, message", BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_is_a_value_error_that_names_it(change, message, neox):
    arguments = dict(input_ids=IDS, offset=2, top_k=2) | change
    with pytest.raises(ValueError, match=message):
        future_log_probs(neox, **arguments)


def test_padding_ids_may_be_anything_and_no_wanted_position_costs_nothing(neox, candidates):
    ids, mask = batch()
    f = future_log_probs(neox, ids.masked_fill(mask == 0, -100), 2, top_k=2, attention_mask=mask)
    assert (f.num_candidates == 2 * mask).all()
    del candidates[:]
    none = future_log_probs(neox, ids, 2, top_k=2, positions=torch.zeros_like(ids, dtype=torch.bool))
    assert none.log_probs.shape == (2, SEQ, VOCAB) and (none.log_probs == -torch.inf).all() and not candidates


def test_what_is_sampled_has_no_part_in_a_certificate():
    """Of the same enumerated paths: certified with samples exactly where it is without them."""
    ids, flags = torch.randint(VOCAB, (3, 12), generator=torch.Generator().manual_seed(1)), []
    for seed in range(6):
        model = tiny_model("gpt_neox", seed=seed)
        for k in (2, 4, 6):
            both = future_log_probs(model, ids, 2, top_k=k, samples=2, seed=seed)
            alone = future_log_probs(model, ids, 2, top_k=k)
            assert torch.equal(both.certified, alone.certified)
            exact = future_log_probs(model, ids, 2, exact=True)
            assert (both.log_probs.argmax(-1) == exact.log_probs.argmax(-1))[both.certified].all() or not both.certified.any()
            flags.append(both.certified.float().mean())
    assert 0 < sum(flags) / len(flags) < 1


def test_a_certificate_of_a_hybrid_speaks_of_the_enumerated_arg_max():
    model, ids = tiny_model("gpt_neox", seed=3), torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(2))
    f, exact = future_log_probs(model, ids, 3, top_k=3, samples=4), future_log_probs(model, ids, 3, exact=True)
    assert torch.equal(f.certified, future_log_probs(model, ids, 3, top_k=3).certified)
    assert (f.log_probs.argmax(-1) == exact.log_probs.argmax(-1))[f.certified].all()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none left"), RuntimeError("cannot: can't allocate memory: 9 bytes")])
def test_running_out_of_memory_once_is_no_property_of_a_model(error, monkeypatch):
    model = tiny_model("llama")
    ids = torch.randint(VOCAB, (1, 8), generator=torch.Generator().manual_seed(0))

    def scarce(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(anatomy, "_one_pass", scarce)
        with pytest.raises(type(error)):
            finish_of(model)
    assert not finish_of(model).trouble
    with monkeypatch.context() as patch:
        patch.setattr(reference, "compare", scarce)
        with pytest.raises(type(error)):
            future_log_probs(model, ids, 2, top_k=2)
    assert reference.engine_for(model, 10) == (Packed, None)


@pytest.mark.parametrize("name", ["gpt_neox", "llama", "gpt2", "falcon_alibi"])
def test_the_reference_keeps_the_logits_it_uses(name, monkeypatch):
    model, shapes = tiny_model(name), []
    real = type(model).forward

    def counted(self, *args, **kwargs):
        out = real(self, *args, **kwargs)
        shapes.append(out.logits.shape[1])
        return out

    monkeypatch.setattr(model, "forward", counted.__get__(model), raising=False)
    model.forward.__func__.__wrapped__ = real  # its signature is the model's own
    ids = torch.randint(VOCAB, (1, 9), generator=torch.Generator().manual_seed(0))
    before = future_log_probs(tiny_model(name), ids, 2, exact=True, reference=True).log_probs
    found = future_log_probs(model, ids, 2, exact=True, reference=True).log_probs
    assert torch.equal(before, found) and max(shapes) == 1


def test_a_scale_is_seen_though_the_first_tokens_row_is_zero():
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = 0.0  # of padding: every layer of it is zero
    assert unembeds(model)
    scaled = tiny_model("llama")
    with torch.no_grad():
        scaled.get_input_embeddings().weight[0] = 0.0
    forward = scaled.forward

    def with_scale(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 3.0
        return out

    scaled.forward = with_scale
    assert finish_of(scaled).after == pytest.approx(3.0)
