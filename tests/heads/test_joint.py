"""Heads and backbone together: gradients are those of the whole loss, a stopped run ends as an undisturbed one."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import VOCAB, stop_in_step_11, tiny_backbone

from mtp_utils.base import records
from mtp_utils.base.records import Arrays
from mtp_utils.heads import joint, training
from mtp_utils.heads.features import FrozenFeatures
from mtp_utils.heads.joint import joint_training
from mtp_utils.heads.spec import HeadSpec
from mtp_utils.heads.together import Joint, Together, joint_losses, trained_backbone
from mtp_utils.text import blocks

SPEC = HeadSpec("residual", "mix", offsets=(2, 3))
HOW = Joint(1e-2, 20 * 12, backbone_rate=0.5, rest=0.25)


def text(name="gpt_neox", n=20, seed=0):
    tokens = torch.randint(VOCAB, (n, 12), generator=torch.Generator().manual_seed(seed))
    return FrozenFeatures(tiny_backbone(name), tokens, (0, 1, 2), horizon=3)


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_BUILD", str(tmp_path))


@pytest.mark.parametrize("labels", ["data", "sampled", "soft"])
@pytest.mark.parametrize("name", ["gpt_neox", "llama", "gpt2"])
def test_gradients_block_by_block_and_one_head_after_another_are_those_of_the_whole_loss(monkeypatch, name, labels):
    monkeypatch.setattr(training, "NUMBERS", 5 * VOCAB)
    monkeypatch.setattr("mtp_utils.heads.together.NUMBERS", 5 * VOCAB)
    monkeypatch.setattr(joint, "NUMBERS", 5 * VOCAB)  # less than a block's
    f, how = text(name, 3), dataclasses.replace(HOW, labels=labels, ntp_weight=0.7, decay=0.5)
    f.paths  # noqa: B018 (drawn from the base model, before anything is trained)
    together = Together(f.backbone, SPEC, how)
    together.free(True)
    found = joint.losses_of_step(together, f, np.arange(3), how, torch.Tensor.backward)
    parameters = [*together.trained.values(), *together.heads.parameters()]
    ours = [p.grad.clone() for p in parameters if p.grad is not None]
    for p in parameters:
        p.grad = None
    hidden = together.model.base_model(f.tokens, output_hidden_states=True).hidden_states
    states, losses = together.heads(torch.stack(hidden, 2)), []
    whole = 0.7 * torch.nn.functional.cross_entropy(
        together.model.get_output_embeddings()(hidden[-1])[:, :-1].flatten(0, 1), f.tokens[:, 1:].flatten()
    )
    for weight, (k, h) in zip((1.0, 0.5), states.items(), strict=True):
        q = together.heads.log_probs(k, h)
        if labels == "data":
            losses.append(torch.nn.functional.nll_loss(q[:, :-k].flatten(0, 1), f.tokens[:, k:].flatten()))
        elif labels == "sampled":
            losses.append(torch.nn.functional.nll_loss(q.flatten(0, 1), f.paths.tokens[..., k - 1].flatten()))
        else:
            taught = f.backbone.model.get_output_embeddings()(torch.from_numpy(f.paths.states[:, :, k - 1]).float())
            losses.append(-(taught.softmax(-1) * q).sum(-1).mean())
        whole = whole + weight * losses[-1]
    whole.backward()
    theirs = [p.grad for p in parameters if p.grad is not None]
    assert len(ours) == len(theirs) > 10 and found[1:] == pytest.approx([x.item() for x in losses], abs=1e-5)
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(ours, theirs, strict=True))


def test_labels_and_states_are_the_base_models_in_its_own_dtype_also_when_asked_for_in_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        inside = text()
        inside.paths, inside.states  # noqa: B018 (made here)
    outside = text()
    assert torch.equal(inside.paths.tokens, outside.paths.tokens) and np.array_equal(inside.paths.states, outside.paths.states)
    assert np.array_equal(inside.states, outside.states)


@pytest.mark.parametrize("lora", [0, 2])
def test_a_stopped_run_goes_on_and_ends_as_an_undisturbed_one_to_the_bit(monkeypatch, lora):
    f, v, how = text(), text(n=3, seed=1), dataclasses.replace(HOW, lora=lora)
    straight = joint_training(f, v, SPEC, how)
    assert not list((joint.paths.cache() / "joint").glob("*"))  # shorter than SAVE_EVERY
    real, calls = joint.joint_losses, stop_in_step_11(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        joint_training(f, v, SPEC, how)
    monkeypatch.setattr(joint, "joint_losses", lambda *given: calls.append(len(given) > 4) or real(*given))
    resumed = joint_training(f, v, SPEC, how)
    assert sum(calls) == 21 and straight["loss"].shape == (20, 2)  # 10, the one that was stopped, 10
    assert straight.keys() == resumed.keys() and all(np.array_equal(straight[n], resumed[n]) for n in straight)


def test_the_seconds_of_a_resumed_run_are_those_of_all_its_parts(monkeypatch):
    clock, told, real = iter(range(10**6)), [], joint.joint_losses
    monkeypatch.setattr(joint.time, "monotonic", lambda: float(next(clock)))  # a second for every look at it
    monkeypatch.setattr(records, "_EARLIER", told)
    given = {"features": text(), "validation": text(n=3, seed=1), "spec": SPEC, "how": HOW}
    stop_in_step_11(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        records.measured_arrays("05_stopped", joint_training, profile="smoke", **given)
    monkeypatch.setattr(joint, "joint_losses", real)
    found = records.measured_arrays("05_stopped", joint_training, profile="smoke", **given)
    assert len(told) == 1 and told[0] > 9 and found.seconds > told[0] + 9


KILLED = """
import os
from test_joint import HOW, SPEC, joint, joint_training, text

joint.SAVE_EVERY, joint.SAVE_SHARE, calls, real = 0.0, float("inf"), [], joint.joint_losses


def dying(*given):
    calls.append(len(given) > 4)
    return os.kill(os.getpid(), 9) if sum(calls) == 11 else real(*given)


joint.joint_losses = dying
joint_training(text(), text(n=3, seed=1), SPEC, HOW)
"""


def test_a_run_killed_in_its_11th_step_goes_on_and_ends_as_an_undisturbed_one_to_the_bit(tmp_path, monkeypatch):
    f, v, tests = text(), text(n=3, seed=1), Path(__file__).parent
    straight = joint_training(f, v, SPEC, HOW)
    found = os.pathsep.join(map(str, (tests, *tests.parents[:2])))
    environment = os.environ | {"PYTHONPATH": found, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    assert subprocess.run([sys.executable, "-c", KILLED], env=environment, timeout=120).returncode == -9
    steps, real = [], joint.joint_losses
    monkeypatch.setattr(joint, "joint_losses", lambda *given: steps.append(len(given) > 4) or real(*given))
    resumed = joint_training(f, v, SPEC, HOW)
    assert sum(steps) == 10 and all(np.array_equal(straight[n], resumed[n]) for n in straight)


def test_the_base_model_stays_and_the_backbone_rests_at_first():
    f = text()
    before = {n: p.clone() for n, p in f.backbone.model.state_dict().items()}
    resting = joint_training(f, f, SPEC, dataclasses.replace(HOW, rest=1.0))
    moving = joint_training(f, f, SPEC, dataclasses.replace(HOW, rest=0.0))
    never = joint_training(f, f, SPEC, dataclasses.replace(HOW, rest=0.0, backbone_rate=0.0))
    for name, tensor in before.items():
        assert torch.equal(tensor, f.backbone.model.state_dict()[name])
        if f"model.{name}" in moving:
            assert np.array_equal(resting[f"model.{name}"], tensor.numpy()) and np.array_equal(
                never[f"model.{name}"], tensor.numpy()
            )
    assert any(not np.array_equal(moving[n], resting[n]) for n in moving if n.startswith("model."))
    heads = [n for n in moving if n.startswith("heads.")]
    assert heads and any(not np.array_equal(resting[n], moving[n]) for n in heads)


def test_adapters_merged_into_the_weights_give_the_same_logits():
    f, how = text(), dataclasses.replace(HOW, lora=2, tokens=20 * 12)
    found = joint_training(f, f, SPEC, how)
    trained = [n for n in found if n.startswith("model.")]
    assert trained and all(".lora_" in n for n in trained) and not any("embed_out" in n for n in trained)
    merged = trained_backbone(f.backbone, Arrays(found, "x"), how, "joint").model
    unmerged = Together(f.backbone, SPEC, how)
    unmerged.load_state_dict({n: torch.from_numpy(x) for n, x in found.items() if n.startswith(("model.", "heads."))})
    logits = [m(f.tokens).logits for m in (merged, unmerged.model, f.backbone.model)]
    assert (logits[0] - logits[1]).abs().max() < 1e-5 < 1e-3 < (logits[0] - logits[2]).abs().max()


def test_full_fine_tuning_comes_back_as_a_backbone_of_its_own():
    f = text()
    found = joint_training(f, f, SPEC, HOW)
    back = trained_backbone(f.backbone, Arrays(found, "digest"), HOW, "joint")
    assert back.name == "joint" and back.fingerprint == "digest" and not any(p.requires_grad for p in back.model.parameters())
    again = Together(back, SPEC, HOW)
    again.heads.load_state_dict(
        {n.removeprefix("heads."): torch.from_numpy(x) for n, x in found.items() if n.startswith("heads.")}
    )
    kept = joint.losses_on(again, f, HOW)
    best = found["kept"][0]
    assert kept == pytest.approx([found["ntp_validation"][best], *found["validation"][best]], abs=1e-5)
    assert best == found["validation"].mean(1).argmin() > 0


def test_without_heads_the_backbone_learns_the_next_token_alone():
    cycle = torch.arange(96 * 12).view(96, 12) % VOCAB
    f = FrozenFeatures(tiny_backbone(), cycle, (2,))
    found = joint_training(f, f, None, Joint(3e-2, 96 * 12, backbone_rate=1.0))
    assert found["ntp_validation"][-1] < 0.5 * found["ntp_validation"][0] and not any(n.startswith("heads.") for n in found)


def test_joint_training_learns_what_frozen_heads_cannot():
    """The token after next is the one before: the state of a random backbone without it cannot tell a linear map."""
    pairs = torch.randint(VOCAB, (400, 2), generator=torch.Generator().manual_seed(0))
    tokens = pairs.repeat(1, 6)  # a b a b ...: offset 2 repeats the token itself, offset 3 the one before
    f, held = (FrozenFeatures(tiny_backbone(), part, (2,)) for part in (tokens[:360], tokens[360:]))
    spec = HeadSpec("linear", offsets=(3,))
    frozen, free = (joint_training(f, held, spec, Joint(1e-2, 360 * 12, backbone_rate=r, rest=0.1)) for r in (0.0, 1.0))
    assert free["validation"].min() < 0.7 * frozen["validation"].min()


def test_a_loss_that_is_not_finite_names_step_rates_and_documents_and_keeps_the_checkpoint(monkeypatch):
    f, steps, losses = text(), [], joint.joint_losses
    monkeypatch.setattr(joint, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(joint, "SAVE_SHARE", float("inf"))
    monkeypatch.setattr(blocks, "documents_in", lambda block, tokenizer: [f"file{block[0]}.py#0"])

    def breaking(*given):
        steps.append(len(given) > 4)
        return [float("nan"), 1.0, 1.0] if sum(steps) == 5 else losses(*given)

    monkeypatch.setattr(joint, "joint_losses", breaking)
    with pytest.raises(FloatingPointError, match=r"at step 4, rates \[0\.0\d+, .* on block \d+: file\d\.py#0; the last") as error:
        joint_training(f, f, SPEC, HOW)
    kept = list((joint.paths.cache() / "joint").glob("*.safetensors"))
    assert len(kept) == 1 and str(kept[0]) in str(error.value)


def test_the_documents_of_a_training_block_are_found_by_its_tokens(monkeypatch):
    lengths = [100, 300, 40, 200]  # tokens of each document, its END first
    stream = np.concatenate([[0, *np.random.default_rng(i).integers(1, 9, n - 1)] for i, n in enumerate(lengths)]).astype(
        np.uint16
    )
    monkeypatch.setattr(blocks, "stream", lambda corpus, split, tokenizer: stream if corpus == "code" else stream[::-1][:512])
    monkeypatch.setattr(blocks, "begins", lambda corpus, split, tokenizer: np.flatnonzero(stream == 0))
    names = [dataclasses.make_dataclass("D", ["id"])(f"d{i}") for i in range(4)]
    monkeypatch.setattr(blocks.corpora, "documents", lambda corpus, split: names if corpus == "code" else [])
    rows = torch.from_numpy(stream[:512].reshape(2, 256).astype(np.int64))
    assert blocks.documents_in(rows[0], object()) == ["d0", "d1"] and blocks.documents_in(rows[1], object()) == [
        "d1",
        "d2",
        "d3",
    ]
    assert blocks.documents_in(rows[0] + 1, object()) == [] == blocks.documents_in(rows[0], None)


def test_the_heads_rate_warms_up_over_its_share():
    given = text(), text(n=3, seed=1), SPEC
    found = [joint_training(*given, dataclasses.replace(HOW, warmup=share))["loss"] for share in (0.05, 0.9)]
    assert not np.array_equal(*found)


def test_a_head_that_rests_is_cast_once_for_all_losses_of_a_step():
    f, read = text(), []
    together = Together(f.backbone, SPEC, dataclasses.replace(HOW, bf16=True))
    together.free(False)
    together.model.get_output_embeddings().register_forward_hook(lambda m, *_: read.append((id(m), m.weight.dtype)))
    joint_losses(together, f, slice(0, 2), dataclasses.replace(HOW, bf16=True), torch.Tensor.backward)
    assert len(read) > 1 and len(set(read)) == 1 and read[0][1] == torch.bfloat16


def test_in_bfloat16_it_learns_too():
    f = FrozenFeatures(tiny_backbone(), torch.arange(96 * 12).view(96, 12) % VOCAB, (2,))
    found = joint_training(f, f, HeadSpec(offsets=(2, 3)), Joint(3e-2, 96 * 12, backbone_rate=1.0, bf16=True))
    assert found["validation"][-1].max() < 0.5 * found["validation"][0].min()
    assert found["heads.trunks.2.0.linear.weight"].dtype == np.float32


def test_arguments_outside_their_limits_are_named():
    for changes in ({"rest": 1.5}, {"backbone_rate": -1.0}, {"lora": -1}, {"ntp_weight": -0.1}, {"decay": 0.0}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            Joint(1e-3, 100, **changes)
