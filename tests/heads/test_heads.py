"""Heads against their formulas written out, what they may not touch, what they save; on several architectures."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny_models import CONFIGS, VOCAB, perturbed, tiny_backbone

from mtp_utils.backbones.anatomy import final_norm, unembed
from mtp_utils.base.refusals import CannotDo
from mtp_utils.heads.heads import Heads, load_heads
from mtp_utils.heads.spec import HeadSpec, spread

NAMES = ("gpt_neox", "llama", "gpt2", "opt", "gemma3", "qwen3")


def states_of(backbone, layers, seed=0, length=6):
    ids = torch.randint(VOCAB, (2, length), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        out = backbone.model(ids, output_hidden_states=True, use_cache=False)
    return torch.stack([out.hidden_states[i] for i in layers], 2), out.logits


@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_state_through_the_unembedding_gives_the_models_logits(name):
    b = tiny_backbone(name)
    states, logits = states_of(b, [2])
    assert (unembed(b.model, states[:, :, 0]) - logits).abs().max() < 1e-4
    seen = []
    hook = final_norm(b.model).register_forward_hook(lambda module, inputs, output: seen.append(output))
    last = b.model.base_model(torch.tensor([[1, 2, 3]])).last_hidden_state
    hook.remove()
    assert torch.equal(seen[0], last)  # nothing comes after the final norm


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layers", [1, 2])
def test_a_residual_or_linear_head_starts_as_the_lm_head(name, layers):
    b = tiny_backbone(name)
    for kind in ("residual", "linear"):
        for unembedding in ("shared", "copied"):
            heads = Heads(b, HeadSpec(kind, layers=layers, unembedding=unembedding))
            states, logits = states_of(b, heads.layers)
            for k, h in heads(states).items():
                assert (heads.log_probs(k, h) - logits.log_softmax(-1)).abs().max() < 1e-5


def test_of_a_deep_model_a_mix_reads_some_layers_evenly_spread_and_of_another_all():
    assert spread(2) == (0, 1, 2) and spread(6) == tuple(range(7)) and spread(30) == (0, 5, 10, 15, 20, 25, 30)
    for n in range(1, 40):
        found = spread(n)
        assert (found[0], found[-1]) == (0, n) and len(set(found)) == min(n + 1, 7)
        assert max(np.diff(found)) - min(np.diff(found)) <= 1


def test_a_head_with_an_unembedding_of_its_own_starts_as_the_unigram_of_its_text():
    b, tokens = tiny_backbone(), torch.tensor([[1, 1, 1, 2, 5], [1, 2, 2, 0, 1]])
    heads = Heads(b, HeadSpec("block", unembedding="own", offsets=(2, 3)))
    heads.begin(tokens)
    states, _ = states_of(b, heads.layers)
    counts = torch.tensor([2.0, 6.0, 4.0, 1.0, 1.0, 2.0, 1.0])
    for k, h in heads(states).items():
        assert torch.allclose(heads.log_probs(k, h), (counts / counts.sum()).log().expand(*h.shape[:-1], -1), atol=1e-6)
    own = heads.unembeddings["2"]
    with torch.no_grad():
        own.weight.normal_()
    h = heads(states)[2]
    assert torch.allclose(heads.log_probs(2, h), (h @ own.weight.T + own.bias).log_softmax(-1), atol=1e-5)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_corrected_unembedding_is_its_formula_and_starts_as_the_lm_head_or_as_the_unigram(rank):
    b, tokens = tiny_backbone("llama"), torch.tensor([[1, 1, 1, 2, 5], [1, 2, 2, 0, 1]])
    counts = torch.tensor([2.0, 6.0, 4.0, 1.0, 1.0, 2.0, 1.0])
    for unigram in (False, True):
        spec = HeadSpec("residual", unembedding="corrected", offsets=(2, 3), rank=rank, unigram=unigram)
        heads = Heads(b, spec)
        heads.begin(tokens)
        states, _ = states_of(b, heads.layers)
        U = b.model.get_output_embeddings().weight
        start = (counts / counts.sum()).log() if unigram else (states[:, :, 0] @ U.T).log_softmax(-1)
        assert all((heads.log_probs(k, h) - start).abs().max() < 1e-5 for k, h in heads(states).items())
        own = perturbed(heads).unembeddings["2"]
        assert sum(x.numel() for x in own.parameters()) == rank * (16 + 7) + 7 + 1
        h = heads(states)[2]
        logits = own.gamma * (h @ U.T) + h @ own.A.T @ own.B.T + own.bias
        assert (heads.log_probs(2, h) - logits.log_softmax(-1)).abs().max() < 1e-5


def test_residual_and_linear_are_their_formulas():
    b = tiny_backbone()
    for layers in (1, 2):
        for kind in ("residual", "linear"):
            heads = perturbed(Heads(b, HeadSpec(kind, layers=layers, unembedding="copied", offsets=(2, 3))))
            states, _ = states_of(b, heads.layers)
            for k, h in heads(states).items():
                x = states[:, :, 0]
                for i in range(layers):
                    part = heads.trunks[str(k)][i]
                    w, bias = (part.linear.weight, part.linear.bias) if kind == "residual" else (part.weight, part.bias)
                    y = x @ w.T + bias
                    x = x + y * y.sigmoid() if kind == "residual" else y
                logits = x @ heads.unembeddings[str(k)].weight.T
                assert (heads.log_probs(k, h) - logits.log_softmax(-1)).abs().max() < 1e-5


def test_mix_and_concatenation_are_their_formulas_and_start_at_the_last_layer():
    b = tiny_backbone("llama")
    for features in ("mix", "concat"):
        start = Heads(b, HeadSpec("linear", features))
        states, _ = states_of(b, start.layers)
        error = (start(states)[2] - states[:, :, -1]).abs().max()
        assert error < 1e-5 if features == "concat" else error < 0.2
        heads = perturbed(Heads(b, HeadSpec("linear", features)))
        f, trunk = heads.features["3"], heads.trunks["3"][0]
        normed = []
        for i in range(3):
            x = states[:, :, i]
            if i < 2:
                x = x * (x.pow(2).mean(-1, keepdim=True) + b.model.config.rms_norm_eps).rsqrt() * f.parts[i].norm.weight
            normed.append(x)
        if features == "mix":
            w = f.w.exp() / f.w.exp().sum()
            expected = f.gamma * sum(w[i] * normed[i] for i in range(3))
            assert heads.mix_weights()[3] == pytest.approx(w.tolist(), abs=1e-6)
        else:
            expected = torch.cat(normed, -1) @ f.map.weight.T
        assert (heads(states)[3] - (expected @ trunk.weight.T + trunk.bias)).abs().max() < 1e-4


def test_the_next_token_map_is_a_mixture_that_sees_only_the_next_token():
    b = tiny_backbone()
    heads = perturbed(Heads(b, HeadSpec("next_token", offsets=(2,))))
    states, logits = states_of(b, heads.layers)
    rows = heads.trunks["2"].rows.exp() / heads.trunks["2"].rows.exp().sum(1, keepdim=True)
    found = heads.log_probs(2, heads(states)[2])
    assert (found.exp() - logits.softmax(-1) @ rows).abs().max() < 1e-6
    assert (found.exp().sum(-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_two_layers_and_two_offsets_share_no_weights(name):
    b = tiny_backbone(name)
    for kind in ("linear", "residual", "block"):
        one, two = (Heads(b, HeadSpec(kind, layers=n)) for n in (1, 2))
        assert len({p.data_ptr() for p in two.parameters()}) == len(list(two.parameters()))
        sizes = [sum(p.numel() for p in heads.trunks["2"].parameters()) for heads in (one, two)]
        assert sizes[1] > 1.5 * sizes[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_block_is_causal_and_knows_its_positions(name):
    b = tiny_backbone(name)
    heads = perturbed(Heads(b, HeadSpec("block", offsets=(2,))))
    states, _ = states_of(b, heads.layers, length=8)
    whole = heads(states)[2]
    assert (heads(states[:, :5])[2] - whole[:, :5]).abs().max() < 1e-4  # what comes later changes nothing
    moved = states[:, [1, 0, 2, 3, 4, 5, 6, 7]]
    assert (heads(moved)[2][:, 7] - whole[:, 7]).abs().max() > 1e-4  # the order of what comes before does


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["residual", "block"])
def test_drafts_with_a_cache_are_the_drafts_without(name, kind):
    b = tiny_backbone(name)
    heads = perturbed(Heads(b, HeadSpec(kind, offsets=(2, 3))))
    states, _ = states_of(b, heads.layers, length=9)
    caches, start = {}, 0
    for stop in (4, 5, 7, 9):
        hidden = heads(states[:, start:stop], caches)
        whole = heads(states[:, :stop])
        assert all((hidden[k][:, -1] - whole[k][:, -1]).abs().max() < 1e-4 for k in (2, 3))
        start = stop
    assert torch.equal(heads.draft(states), torch.stack([heads.log_probs(k, whole[k][:, -1]).argmax(-1) for k in (2, 3)], 1))


@pytest.mark.parametrize("kind", ["linear", "residual", "block", "next_token"])
def test_a_step_changes_no_backbone_tensor_by_one_bit(kind):
    b = tiny_backbone("llama")
    before = {n: x.clone() for n, x in b.model.state_dict().items()}
    heads = Heads(b, HeadSpec(kind, offsets=(2,)))
    states, _ = states_of(b, heads.layers)
    start = {n: x.clone() for n, x in heads.state_dict().items()}
    optimizer = torch.optim.SGD(heads.parameters(), lr=1.0)
    heads.log_probs(2, heads(states)[2])[..., 0].mean().backward()
    optimizer.step()
    assert all(p.grad is None and not p.requires_grad for p in b.model.parameters())
    assert all(torch.equal(x, before[n]) for n, x in b.model.state_dict().items())
    assert any(not torch.equal(x, start[n]) for n, x in heads.state_dict().items())
    assert not {p.data_ptr() for p in heads.parameters()} & {p.data_ptr() for p in b.model.parameters()}


def test_saved_heads_come_back_on_their_backbone_and_on_no_other(tmp_path):
    b = tiny_backbone()
    for spec in (HeadSpec("block", "mix", 2, "copied"), HeadSpec("next_token"), HeadSpec("linear", 1)):
        heads = perturbed(Heads(b, spec))
        heads.save(tmp_path)
        again = load_heads(tmp_path, b)
        assert again.spec == spec and all(torch.equal(x, again.state_dict()[n]) for n, x in heads.state_dict().items())
    assert not any(n.startswith("_model") for n in heads.state_dict())
    with pytest.raises(ValueError, match="not of"):
        load_heads(tmp_path, dataclasses.replace(b, fingerprint="bb"))
    with pytest.raises(ValueError, match="not of"):
        load_heads(tmp_path, dataclasses.replace(b, revision="main"))
    assert json.loads((tmp_path / "heads.json").read_text())["backbone"]["name"] == "tiny/gpt_neox"
    file = tmp_path / "heads.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ValueError, match="sha256"):
        load_heads(tmp_path, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "mlp"}, "kind='mlp'"),
        ({"features": "first"}, "features='first'"),
        ({"layers": 3}, "layers=3"),
        ({"unembedding": "tied"}, "unembedding='tied'"),
        ({"rank": -1}, "rank=-1"),
        ({"offsets": (0, 2)}, "offsets="),
        ({"offsets": (2, 2)}, "offsets="),
        ({"kind": "next_token", "features": "mix"}, "sees only"),
    ],
)
def test_a_spec_that_means_nothing_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HeadSpec(**arguments)


def test_heads_on_a_model_that_scales_its_logits_scale_theirs():
    b = tiny_backbone()
    b.model.register_forward_hook(lambda module, inputs, out: out.__setitem__("logits", 2 * out.logits))
    heads = Heads(b, HeadSpec("residual", offsets=(2,)))
    states, logits = states_of(b, heads.layers)
    assert (heads.log_probs(2, heads(states)[2]) - logits.log_softmax(-1)).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_unembedding_is_shared_and_nothing_is_trained_in_its_place():
    b = tiny_backbone("llama")
    layer = {torch.nn.Linear}
    b = dataclasses.replace(b, model=torch.ao.quantization.quantize_dynamic(b.model, layer, dtype=torch.qint8))
    for own in ("copied", "own"):
        with pytest.raises(CannotDo, match="unembedding is quantised"):
            Heads(b, HeadSpec("residual", unembedding=own, offsets=(2,)))
    assert Heads(b, HeadSpec("residual", offsets=(2,))).of(2)


def test_a_layer_the_backbone_lacks_is_refused():
    with pytest.raises(ValueError, match="layers 0 .* to 2"):
        Heads(tiny_backbone(), HeadSpec("linear", 3))
