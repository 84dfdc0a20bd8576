"""What a CPU says, a CUDA device says: the marginal, stored states and heads, joint training, measured tables."""

import numpy as np
import pytest
import torch
from tiny_models import PACKED, VOCAB, stop_in_step_11, tiny_backbone, tiny_model

from mtp_utils.backbones.load import load_backbone
from mtp_utils.decoding.decode import draft_and_verify, greedy_decode
from mtp_utils.decoding.drafters import HeadDrafter, LookupDrafter, MarginalDrafter
from mtp_utils.findings import measures, stored
from mtp_utils.heads import joint
from mtp_utils.heads.features import FrozenFeatures
from mtp_utils.heads.heads import Heads
from mtp_utils.heads.joint import joint_training
from mtp_utils.heads.spec import HeadSpec
from mtp_utils.heads.together import Joint
from mtp_utils.heads.training import Training, trained_heads
from mtp_utils.marginal import attention
from mtp_utils.marginal.future import future_log_probs, future_tokens
from mtp_utils.text.blocks import Blocks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

MODES = [dict(exact=True), dict(top_k=3), dict(mass=0.8), dict(samples=9), dict(top_k=2, samples=9)]
# Of probabilities. Rotary angles are float32 in models of any dtype, and a device has its own cosines.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.05}


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_BUILD", str(tmp_path))


def random_ids(vocab=VOCAB, shape=(2, 10)):
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", PACKED)
def test_the_marginal_is_the_same_in_every_mode(name, dtype):
    model, ids = tiny_model(name, dtype), random_ids()
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    for mode in MODES:
        here = future_log_probs(model.cpu(), ids, 3, attention_mask=mask, **mode)
        there = future_log_probs(model.cuda(), ids.cuda(), 3, attention_mask=mask.cuda(), **mode)
        if dtype == torch.float64 and "samples" not in mode:
            slow = future_log_probs(model, ids.cuda(), 3, attention_mask=mask.cuda(), reference=True, **mode)
            assert (there.log_probs.exp() - slow.log_probs.exp()).abs().max() < 1e-9
        if dtype == torch.bfloat16 and "samples" in mode:  # rounding may turn a draw over
            continue
        assert there.log_probs.is_cuda
        assert (there.log_probs.exp().cpu() - here.log_probs.exp()).abs().max() < TOLERANCE[dtype]
        if dtype == torch.float64:
            assert torch.equal(there.num_candidates.cpu(), here.num_candidates)


@pytest.mark.parametrize("queries", [7, 4096])
@pytest.mark.parametrize("name", ["ladder/w16", "ladder/w256"])
def test_a_rung_agrees_whichever_kernel_serves_it(name, queries, monkeypatch):
    monkeypatch.setattr("mtp_utils.marginal.packed.ACCELERATOR.queries", queries)
    monkeypatch.setattr(attention, "PLAIN_QUERIES", 100)
    here, there = (load_backbone(name, device=device).model for device in ("cpu", "cuda"))
    ids = random_ids(1024, (2, 200))
    for mode in (dict(top_k=8), dict(top_k=4, samples=16)):
        ours = [future_log_probs(m, ids.to(m.device), 2, seed=1, **mode).log_probs.cpu().exp() for m in (here, there)]
        off = (ours[0] - ours[1]).abs().amax(-1) > 1e-4
        assert off.float().mean() < (0.02 if "samples" in mode else 1e-9)  # a draw on the edge of two tokens may turn over
    drawn = [future_tokens(m, ids.to(m.device), 3, sample=True).cpu() for m in (here, there)]
    assert (drawn[0] == drawn[1]).float().mean() > 0.99


def features(device, n=20, seed=0):
    backbone = tiny_backbone()
    backbone.model.to(device)
    tokens = torch.randint(VOCAB, (n, 12), generator=torch.Generator().manual_seed(seed))
    return FrozenFeatures(backbone, tokens, (0, 1, 2), horizon=3)


@pytest.mark.parametrize("labels", ["data", "sampled", "soft"])
@pytest.mark.parametrize("kind", ["linear", "residual", "block"])
def test_heads_learn_the_same(kind, labels):
    spec, how = HeadSpec(kind, "mix", offsets=(2, 3)), Training(1e-2, 20 * 12, labels=labels)
    found = [trained_heads(features(d), features(d, 3, 1), spec, how)["loss"] for d in ("cpu", "cuda")]
    assert np.abs(found[0] - found[1]).max() < 5e-3


@pytest.mark.parametrize("bf16", [False, True])
def test_joint_training_goes_on_to_the_bit_and_learns_what_a_cpu_learns(bf16, monkeypatch):
    spec, how = HeadSpec("residual", "mix", offsets=(2, 3)), Joint(1e-2, 20 * 12, backbone_rate=0.5, rest=0.25, bf16=bf16)
    f, v = features("cuda"), features("cuda", 3, 1)
    straight = joint_training(f, v, spec, how)
    on_cpu = joint_training(features("cpu"), features("cpu", 3, 1), spec, how)
    assert np.abs(straight["loss"] - on_cpu["loss"]).max() < (0.1 if bf16 else 5e-3)
    real = joint.joint_losses
    stop_in_step_11(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        joint_training(f, v, spec, how)
    monkeypatch.setattr(joint, "joint_losses", real)
    resumed = joint_training(f, v, spec, how)
    assert all(np.array_equal(straight[name], resumed[name]) for name in straight)


def test_measured_tables_agree():
    tokens, mask = random_ids(1024, (3, 64)), torch.ones(3, 64, dtype=torch.bool)
    scored = torch.zeros_like(mask)
    scored[:, [40, 50]] = True
    names = ("a", "b", "c")
    blocks = Blocks("prose", "test", 4, names, names, (None,) * 3, tokens, mask, scored, torch.zeros_like(tokens), "text")
    estimators = {str(k): e for k, e in stored.ESTIMATORS.items()}
    backbones = [load_backbone("ladder/w64", device=device) for device in ("cpu", "cuda")]
    here, there = (measures.marginal_arrays(b, blocks, estimators, stored.DRAWN) for b in backbones)
    assert here.keys() == there.keys()
    for name in here:
        same = np.isclose(here[name], there[name], atol=1e-3, equal_nan=True).reshape(len(here[name]), -1).all(1)
        assert same.mean() >= (0.5 if name.endswith((".3", ".4", "sampled")) else 1.0), name  # a draw may turn over


@pytest.mark.parametrize("kind", ["residual", "block"])
def test_draft_and_verify_gives_the_tokens_of_greedy_decoding(kind):
    b = load_backbone("ladder/w64", device="cuda", dtype=torch.float64)
    prompts = [random_ids(1024, (1, n))[0] for n in (40, 7)]
    answers = [greedy_decode(b.model, ids, 12).tolist() for ids in prompts]
    drafters = HeadDrafter(Heads(b, HeadSpec(kind, offsets=(2, 3)))), MarginalDrafter(b.model, {2: {"top_k": 4}}), LookupDrafter()
    for drafter in drafters:
        for widths in (None, (2,)):
            assert [x.tolist() for x in draft_and_verify(b.model, drafter, prompts, 12, widths).tokens] == answers
