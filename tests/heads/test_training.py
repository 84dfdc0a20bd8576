"""Frozen features are the backbone's states, soft labels average to the marginal, and the loop learns what can be learnt."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import VOCAB, tiny_backbone

from mtp_utils.backbones.anatomy import unembed
from mtp_utils.backbones.checkpoints import rate_at
from mtp_utils.base.records import Arrays
from mtp_utils.heads import features, training
from mtp_utils.heads.features import FrozenFeatures, sampled_paths
from mtp_utils.heads.heads import Heads
from mtp_utils.heads.parts import cast_once
from mtp_utils.heads.spec import HeadSpec
from mtp_utils.heads.training import Training, heads_from, step_losses, trained_heads
from mtp_utils.marginal.future import future_log_probs

TWO = (2, 3)
SPECS = [
    HeadSpec("residual", "mix", 1, "shared", TWO),
    HeadSpec("block", "last", 1, "copied", TWO),
    HeadSpec("next_token", offsets=TWO),
]


def random_tokens(blocks=4, length=12, seed=0):
    return torch.randint(VOCAB, (blocks, length), generator=torch.Generator().manual_seed(seed))


def frozen(name="gpt_neox", layers=(0, 1, 2), **tokens):
    return FrozenFeatures(tiny_backbone(name), random_tokens(**tokens), layers, horizon=3)


@pytest.mark.parametrize("name", ["gpt_neox", "llama", "gpt2", "opt", "gemma3"])
def test_features_are_the_hidden_states(name):
    f = frozen(name, blocks=11)
    with torch.no_grad():
        out = f.backbone.model(f.tokens[8:11], output_hidden_states=True)
    found = f.batch(slice(8, 11), (2, 0))
    for i, layer in enumerate((2, 0)):
        true = out.hidden_states[layer]
        assert (found[:, :, i] - true).abs().max() <= 2**-10 * true.abs().max()
    assert (unembed(f.backbone.model, found[:, :, 0]) - out.logits).abs().max() < 0.05


def test_features_beyond_the_bound_lie_in_a_file_and_are_the_same(monkeypatch, tmp_path):
    monkeypatch.setenv("MTP_BUILD", str(tmp_path))
    within = frozen().states
    monkeypatch.setattr(features, "BOUND", 100)
    beyond = frozen().states
    assert isinstance(beyond, np.memmap) and not isinstance(within, np.memmap) and np.array_equal(within, beyond)
    assert not any(p.is_file() for p in tmp_path.rglob("*"))  # it goes with the process, however that ends


@pytest.mark.parametrize("name", ["gpt_neox", "gpt2", "gemma3"])
def test_what_stands_behind_a_text_is_spared_and_what_stands_in_it_is_the_same(name):
    whole, lengths = frozen(name, blocks=19), torch.arange(19) % 12 + 1
    cut = FrozenFeatures(whole.backbone, whole.tokens, whole.layers, 3, lengths=lengths)
    read, there = [], torch.arange(12) < lengths[:, None]
    hook = whole.backbone.model.get_input_embeddings().register_forward_pre_hook(lambda _, ids: read.append(ids[0].numel()))
    assert cut.states.shape == (3, 19, 12, 16)
    hook.remove()
    assert sum(read) < 0.8 * whole.tokens.numel() and cut.fingerprint == whole.fingerprint
    assert np.abs(cut.states - whole.states)[:, there].max() < 2e-3 * np.abs(whole.states[:, there]).max()
    assert np.isfinite(cut.states).all() and not cut.states[:, lengths == 1, 4:].any()


def test_the_warm_up_is_a_share_of_the_steps():
    rates = [rate_at(step, 20, 2.0, 0.25) for step in range(20)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0]) and rates[5] == 2.0 and rates[19] < 0.25
    assert rate_at(0, 20, 2.0, 0.0) == 2.0
    spec, f = HeadSpec("linear", offsets=(2,)), frozen(blocks=8)
    found = [trained_heads(f, f, spec, Training(1e-2, 96, warmup=share))["loss"] for share in (0.05, 0.05, 0.9)]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    with pytest.raises(ValueError, match=r"warmup=1.5 must lie in \[0, 1\]"):
        Training(1e-3, 100, warmup=1.5)


@pytest.mark.parametrize("name", ["blocks", "epochs", "checks"])
def test_training_that_trains_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        Training(1e-3, 100, **{name: 0})


def test_a_state_that_is_no_number_is_refused_where_it_is_made():
    with pytest.raises(OverflowError, match="no number"):
        features._fitting(torch.tensor([1.0, torch.nan, 1e6]), np.float16)


def test_states_beyond_float16_are_kept_as_float32():
    f = frozen()
    with torch.no_grad():
        f.backbone.model.get_input_embeddings().weight.mul_(1e6)
    assert f.states.dtype == np.float32 and np.isfinite(f.states).all() and np.abs(f.states).max() > 65504


def test_bfloat16_changes_states_and_heads_by_its_rounding_and_states_are_others():
    plain = frozen()
    rounded = FrozenFeatures(plain.backbone, plain.tokens, plain.layers, 3, bf16=True)
    assert rounded.fingerprint != plain.fingerprint and rounded.batch(slice(0, 4), (2,)).dtype == torch.float32
    error = np.abs(rounded.states.astype(float) - plain.states).max() / np.abs(plain.states).max()
    assert 1e-4 < error < 0.03
    spec, how = HeadSpec("block", unembedding="own", offsets=TWO), {"rate": 1e-3, "tokens": 48, "epochs": 1}
    found = [trained_heads(plain, plain, spec, Training(bf16=bf16, **how)) for bf16 in (False, True)]
    assert all(x.dtype == np.float32 for name, x in found[1].items() if name.startswith("heads."))
    gap = np.abs(found[0]["validation"] - found[1]["validation"])
    assert gap[0].max() == 0 and 0 < gap[-1].max() < 0.02  # validated in float32


@pytest.mark.filterwarnings("ignore:FalconForCausalLM cannot be packed")
@pytest.mark.parametrize("name", ["gpt_neox", "llama", "gpt2", "opt", "gemma3", "falcon_alibi"])
def test_the_state_of_a_path_is_that_of_the_whole_sequence(name):
    b, ids = tiny_backbone(name), random_tokens(3, 7)
    paths = sampled_paths(b, ids, 3)
    for row, t in ((0, 0), (1, 3), (2, 6)):
        for depth in range(3):
            whole = torch.cat([ids[row, : t + 1], paths.tokens[row, t, :depth]])[None]
            logits = unembed(b.model, torch.from_numpy(paths.states[row, t, depth]).float())
            assert (logits - b.model(whole).logits[0, -1]).abs().max() < 0.02


def test_soft_labels_and_sampled_labels_average_to_the_marginal():
    b, n = tiny_backbone(), 1500
    prefix = random_tokens(1, 3)
    paths = sampled_paths(b, prefix.expand(n, -1), 3)
    for offset in (2, 3):
        m = future_log_probs(b.model, prefix, offset, exact=True).log_probs[0].exp().double()
        states = torch.from_numpy(paths.states[:, :, offset - 1]).float()
        soft = unembed(b.model, states).softmax(-1).double()
        error = (soft.mean(0) - m) / (soft.std(0) / n**0.5 + 2e-4)
        assert error.abs().max() < 5  # 21 comparisons an offset: a false alarm in fewer than 1 of 10,000 runs
        drawn = torch.nn.functional.one_hot(paths.tokens[:, :, offset - 1], VOCAB).double().mean(0)
        assert ((drawn - m) / (m * (1 - m) / n).sqrt()).abs().max() < 5


def test_weights_that_rest_are_cast_once_for_a_training_and_no_number_changes(monkeypatch):
    f, casts, read = frozen(blocks=2), [], []
    monkeypatch.setattr(training, "NUMBERS", 5 * VOCAB)

    def gradients(unembedding: str) -> list:
        heads = Heads(f.backbone, HeadSpec("block", unembedding=unembedding, rank=3, unigram=False, offsets=(2,)))
        read.clear()
        with torch.autocast("cpu", torch.bfloat16):
            losses = step_losses(heads, f, slice(0, 2), "data", torch.Tensor.backward, head=training.cast_once(heads.model))
        return [torch.tensor(losses), *(p.grad for p in heads.parameters() if p.grad is not None)]

    def counting(model):
        casts.append(cast_once(model))
        return casts[-1]

    f.backbone.model.get_output_embeddings().register_forward_hook(lambda m, *_: read.append(m.weight.dtype))
    for unembedding in ("shared", "corrected"):
        monkeypatch.setattr(training, "cast_once", counting)
        ours = gradients(unembedding)
        assert len(casts) == 1 and casts.pop().weight.dtype == torch.bfloat16 and set(read) == {torch.bfloat16}
        monkeypatch.setattr(training, "cast_once", lambda model: model.get_output_embeddings())
        assert all(torch.equal(a, b) for a, b in zip(ours, gradients(unembedding), strict=True)) and set(read) == {torch.float32}
        monkeypatch.setattr(training, "cast_once", counting)
        read.clear()
        trained_heads(f, f, HeadSpec("linear", unembedding=unembedding, offsets=TWO), Training(1e-2, 24, checks=1, bf16=True))
        parts = [read.count(dtype) for dtype in (torch.float32, torch.bfloat16)]  # validated twice, trained once
        assert len(casts) == 1 and casts.pop() is not f.backbone.model.get_output_embeddings() and parts[0] == 2 * parts[1]


def test_what_cannot_be_cast_once_stays_as_it_is():
    model = tiny_backbone().model
    head = model.get_output_embeddings().requires_grad_(False)
    elsewhere = SimpleNamespace(get_output_embeddings=lambda: torch.nn.Linear(16, VOCAB, device="meta").requires_grad_(False))
    assert cast_once(model) is head and cast_once(elsewhere).weight.is_meta  # outside of autocast
    with torch.autocast("cpu", torch.bfloat16):
        assert cast_once(model).weight.dtype == torch.bfloat16 and cast_once(elsewhere).weight.is_meta
        hooked = copy.deepcopy(model)
        hooked.get_output_embeddings().forward = head.forward  # as accelerate does
        assert cast_once(hooked) is hooked.get_output_embeddings()
        head.requires_grad_(True)
        assert cast_once(model) is head  # autocast keeps what it cast of weights that learn


@pytest.mark.parametrize("labels", training.TRAIN_LABELS)
@pytest.mark.parametrize("spec", SPECS)
def test_gradients_in_parts_are_those_of_the_whole_loss(monkeypatch, labels, spec):
    monkeypatch.setattr(training, "NUMBERS", 5 * VOCAB)
    f = frozen(blocks=2)
    heads = Heads(f.backbone, spec)
    found = step_losses(heads, f, slice(0, 2), labels, torch.Tensor.backward)
    ours = [p.grad for p in heads.parameters()]
    heads.zero_grad()
    hidden, losses = heads(f.batch(slice(0, 2), heads.layers)), []
    for k, h in hidden.items():
        q = heads.log_probs(k, h)
        if labels == "data":
            losses.append(torch.nn.functional.nll_loss(q[:, :-k].flatten(0, 1), f.tokens[:, k:].flatten()))
        elif labels == "sampled":
            losses.append(torch.nn.functional.nll_loss(q.flatten(0, 1), f.paths.tokens[..., k - 1].flatten()))
        else:
            p = unembed(f.backbone.model, torch.from_numpy(f.paths.states[:, :, k - 1]).float()).softmax(-1)
            kept = (p - (p - q.exp()).clamp_min(0)).sum(-1)  # sum of min(p, q)
            asked = {"soft": -(p * q).sum(-1), "accepted": 1 - kept, "log_accepted": -kept.log()}
            losses.append(asked[labels].mean())
    assert found == pytest.approx([x.item() for x in losses], abs=1e-5)
    sum(losses).backward()
    theirs = [p.grad for p in heads.parameters()]
    assert all((a is None) == (b is None) for a, b in zip(ours, theirs, strict=True))
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(ours, theirs, strict=True) if a is not None)


def test_a_head_that_is_asked_for_acceptance_is_accepted_more_often_than_one_that_is_asked_for_cross_entropy():
    f, spec, found = frozen(blocks=8), HeadSpec("linear", unembedding="own", offsets=(2,)), {}
    for labels in ("soft", "accepted"):
        arrays = trained_heads(f, f, spec, Training(3e-2, f.tokens.numel() * 40, labels, epochs=40))
        heads = heads_from(Arrays(arrays, ""), f.backbone, spec)
        found[labels] = [training.validate(heads, f, asked)[0] for asked in ("soft", "accepted")]
    assert found["accepted"][1] < found["soft"][1] and found["soft"][0] < found["accepted"][0]


def test_heads_learn_a_sequence_in_which_every_token_tells_the_later_ones():
    cycle = torch.arange(96 * 12).view(96, 12) % VOCAB
    b = tiny_backbone()
    text, held_out = FrozenFeatures(b, cycle[:80], (2,)), FrozenFeatures(b, cycle[80:], (2,))
    spec, how = HeadSpec("linear", unembedding="copied", offsets=(2, 3)), Training(3e-2, 80 * 12, blocks=4)
    found = trained_heads(text, held_out, spec, how)
    assert found["loss"].shape == (20, 2) and found["validation"].shape == (5, 2) and found["kept"].tolist() == [4, 4]
    assert found["validation"][-1].max() < 0.3 < 1.0 < found["loss"][0].min()
    other = trained_heads(text, held_out, spec, how)
    assert all(np.array_equal(found[n], other[n]) for n in found)  # to the bit


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("unigram", [False, True])
def test_a_corrected_unembedding_learns(rank, unigram):
    f = frozen(blocks=8)
    spec = HeadSpec("residual", unembedding="corrected", offsets=(2,), rank=rank, unigram=unigram)
    found = trained_heads(f, f, spec, Training(3e-2, 8 * 12 * 20, epochs=20))
    assert found["validation"][-1, 0] < found["validation"][0, 0] - 0.3
    assert abs(found["heads.unembeddings.2.gamma"] - (not unigram)) > 0.1


def test_another_seed_trains_other_heads_whatever_their_kind():
    f = frozen(blocks=8)
    for spec in (HeadSpec(offsets=(2,)), HeadSpec("linear", "concat", offsets=(2,)), HeadSpec("next_token", offsets=(2,))):
        one, two = (trained_heads(f, f, spec, Training(1e-2, 96, blocks=1, seed=s)) for s in (0, 1))
        assert any(not np.array_equal(one[n], two[n]) for n in one if n.startswith("heads."))


def test_shuffled_labels_teach_nothing():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(VOCAB, (96, 12), generator=generator)
    b = tiny_backbone()
    found = trained_heads(
        FrozenFeatures(b, noise[:80], (2,)), FrozenFeatures(b, noise[80:], (2,)), HeadSpec(offsets=(2,)), Training(1e-2, 80 * 12)
    )
    assert found["validation"][1:].min() > np.log(VOCAB) - 0.05


def test_each_offset_keeps_the_head_of_its_best_check_the_untrained_one_among_them():
    f = frozen(blocks=16)
    held_out = FrozenFeatures(f.backbone, random_tokens(4, seed=1), (2,))
    spec = HeadSpec("residual", offsets=(2, 3))
    found = trained_heads(f, held_out, spec, Training((0.5, 0.0), f.tokens.numel()))
    assert found["kept"].tolist() == found["validation"].argmin(0).tolist()
    assert np.ptp(found["validation"][:, 1]) == 0 and found["kept"][1] == 0  # at rate 0 nothing is better than the start

    class Stored:
        values = found

    again = training.validate(heads_from(Stored, f.backbone, spec), held_out, "data")
    assert again == pytest.approx(found["validation"].min(0).tolist(), abs=1e-6)


def test_heads_of_several_offsets_are_those_of_each_offset_alone():
    f = frozen(blocks=16)
    both, rates = trained_heads(f, f, HeadSpec("linear", offsets=(2, 3)), Training((1e-1, 1e-2), 192)), {2: 1e-1, 3: 1e-2}
    for k in (2, 3):
        alone = trained_heads(f, f, HeadSpec("linear", offsets=(k,)), Training(rates[k], 192))
        names = [n for n in alone if n.startswith("heads.")]
        assert names and all(np.allclose(alone[n], both[n], atol=1e-6) for n in names)


def test_every_epoch_sees_all_its_blocks_in_another_order():
    f = frozen(blocks=9)
    order, checks = training.plan(f, HeadSpec(), Training(1e-3, 3 * 8 * 12, blocks=2, epochs=3))
    assert order.shape == (12, 2) and checks == {3, 6, 9, 12}
    first, *others = order.reshape(3, 8).tolist()
    assert all(sorted(one) == list(range(8)) and one != first for one in others)
    once, _ = training.plan(f, HeadSpec(), Training(1e-3, 8 * 12, blocks=2))
    assert once.ravel().tolist() == first  # more epochs go on where one ends
    assert len(trained_heads(f, f, HeadSpec(), Training(1e-3, 2 * 9 * 12, epochs=2))["loss"]) == 18


def test_more_tokens_than_there_are_and_unknown_labels_are_refused():
    f = frozen(blocks=4)
    with pytest.raises(ValueError, match="between 12 and 48"):
        trained_heads(f, f, HeadSpec(), Training(1e-3, 100))
    with pytest.raises(ValueError, match="up to offset 3"):
        trained_heads(f, f, HeadSpec(), Training(1e-3, 48, "soft"))
    with pytest.raises(ValueError, match="one for each of offsets"):
        trained_heads(f, f, HeadSpec(), Training((1e-3, 1e-2), 48))
    with pytest.raises(ValueError, match="labels='hard'"):
        Training(1e-3, 48, labels="hard")
