"""What a measurement, a training run and one gradient give, however many processes make them: `python ranks_job.py OUT`.

Started by torchrun it runs in each of them, and the first one writes; where FSDP is asked for, what can be shared out so; see
test_ranks.py.
"""

import os
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.numpy import save_file
from tiny_models import VOCAB, stop_in_step_11, tiny_backbone
from torch.distributed.tensor import DTensor

from mtp_utils.backbones import sharded
from mtp_utils.base import ranks
from mtp_utils.base.records import Arrays
from mtp_utils.findings import head_measures, measures, stored
from mtp_utils.findings.scoring import Labels
from mtp_utils.heads import joint, training
from mtp_utils.heads.features import FrozenFeatures
from mtp_utils.heads.heads import Heads
from mtp_utils.heads.joint import joint_training
from mtp_utils.heads.spec import HeadSpec
from mtp_utils.heads.together import Joint, Together, joint_losses
from mtp_utils.heads.training import Training
from mtp_utils.text.blocks import Blocks

ROWS, LENGTH = 9, 12
ESTIMATORS = {"1": {"exact": True}, "2": {"exact": True}, "3": {"top_k": 2, "samples": 8}}


def random_tokens(n: int, seed: int) -> torch.Tensor:
    return torch.randint(VOCAB, (n, LENGTH), generator=torch.Generator().manual_seed(seed))


def test_blocks() -> Blocks:
    """Nine documents, two positions of each."""
    tokens, names = random_tokens(ROWS, 1), tuple(f"d{i}" for i in range(ROWS))
    scored = torch.zeros_like(tokens, dtype=torch.bool)
    scored[:, [4, 7]] = True
    whole = torch.ones_like(scored)
    return Blocks("prose", "test", 4, names, names, (None,) * ROWS, tokens, whole, scored, torch.zeros_like(tokens), "text")


def results() -> dict[str, np.ndarray]:
    """Everything that processes share, by name."""
    torch.set_num_threads(1)
    found, blocks, backbone = {}, test_blocks(), tiny_backbone(dtype=torch.float64)
    arrays = measures.marginal_arrays(backbone, blocks, ESTIMATORS, stored.DRAWN)
    found |= {f"marginal.{n}": x for n, x in arrays.items()}
    cut = measures.truncation_table(backbone, blocks, [{"top_k": 2}, {"samples": 8}])
    found |= {f"truncation.{n}": cut[n].to_numpy(float) for n in cut.select_dtypes("number")}
    found |= {f"next.{n}": x for n, x in measures.next_token_arrays(backbone, blocks).items()}
    layers = tuple(range(backbone.model.config.num_hidden_layers + 1))
    text, held_out = (FrozenFeatures(backbone, random_tokens(n, seed), layers, horizon=3) for n, seed in ((20, 2), (3, 3)))
    found |= {"states": text.states, "paths": text.paths.tokens.numpy()}
    for labels in training.TRAIN_LABELS:
        for blocks_a_step in (1, 2):  # one block cannot be shared out: every process does it
            how = Training(1e-2, 20 * LENGTH, labels=labels, blocks=blocks_a_step)
            heads = training.trained_heads(text, held_out, HeadSpec("residual", "mix", offsets=(2, 3)), how)
            found |= {f"heads.{labels}.{blocks_a_step}.{n}": x for n, x in heads.items()}
    table = measures.label_table(blocks, {source: arrays[f"labels.{source}"] for source in stored.DRAWN})
    marginals = {k: Arrays({"log_probs": arrays[f"log_probs.{k}"]}, "") for k in (2, 3)}
    states = FrozenFeatures(backbone, blocks.tokens, layers)
    gap = head_measures.gap_arrays(
        states, blocks, Labels(table), marginals, Arrays(heads, ""), HeadSpec("residual", "mix", offsets=(2, 3))
    )
    found |= {f"gaps.{n}": x for n, x in gap.items()}
    how = Joint(1e-2, 20 * LENGTH, blocks=2, backbone_rate=0.5, rest=0.25)
    both = joint_training(text, held_out, HeadSpec("residual", "mix", offsets=(2, 3)), how)
    found |= {f"joint.{n}": x for n, x in both.items()}
    return found | {f"gradient.{n}": x for n, x in gradients(backbone, text).items()}


def sharded_results(stop: bool) -> dict[str, np.ndarray]:
    """Joint training of several architectures (GPT-2's embedding is its LM head), in full and with adapters, and gradients; with
    `stop` the training is interrupted in its 11th step and goes on from its checkpoint."""
    torch.set_num_threads(1)
    found, spec = {}, HeadSpec("residual", "mix", unembedding="corrected", rank=3, offsets=(2, 3))
    for name, lora in (("gpt_neox", 0), ("gpt2", 0), ("gemma3", 2)):
        backbone = tiny_backbone(name, fingerprint=name)
        text, held_out = (FrozenFeatures(backbone, random_tokens(n, seed), (0, 1, 2), horizon=3) for n, seed in ((40, 2), (3, 3)))
        given = text, held_out, spec, Joint(1e-2, 40 * LENGTH, blocks=2, backbone_rate=0.5, rest=0.25, lora=lora)
        if stop:
            with pytest.MonkeyPatch.context() as patch:
                calls = stop_in_step_11(patch)
                with pytest.raises(KeyboardInterrupt):
                    joint_training(*given)
            assert sum(calls) == 11 and joint.checkpoint_path(*given).exists()
        trained = joint_training(*given)
        found |= {f"joint.{name}.{n}": x for n, x in trained.items()}
        one = Together(backbone, spec, given[-1], shared=sharded.asked())
        shares = [p for p in one.trained.values() if isinstance(p, DTensor)]
        held = sum(p.to_local().numel() for p in shares)
        assert bool(shares) == sharded.asked() and held <= 0.6 * sum(p.numel() for p in shares)
        where = tiny_backbone(name, dtype=torch.float64)
        found |= {f"gradient.{name}.{n}": x for n, x in gradients(where, text, lora=lora).items()}
    heads = training.trained_heads(text, held_out, spec, Training(1e-2, 40 * LENGTH, blocks=2))
    return found | {f"heads.{n}": x for n, x in heads.items()}


def gradients(backbone, text: FrozenFeatures, lora: int = 0) -> dict[str, np.ndarray]:
    """Of one step on four blocks, in float64, before any clipping."""
    how = Joint(1e-2, 4 * LENGTH, blocks=4, lora=lora)
    together = Together(backbone, HeadSpec("block", offsets=(2, 3)), how, shared=sharded.asked())
    together.backbone.model.double()
    together.heads.double()
    together.free(True)
    joint_losses(together, text, training.share_of(np.arange(4)), how, torch.Tensor.backward)
    named = together.trained | dict(together.heads.named_parameters())
    training.combine(Accelerator(), list(named.values()), norm=1e9)
    assert isinstance(together.heads, Heads)
    return {n: sharded.whole(p.grad).numpy() for n, p in named.items() if p.grad is not None}


if __name__ == "__main__":
    measured = sharded_results(stop=True) if sharded.asked() else results()
    if ranks.first():
        save_file({n: np.ascontiguousarray(x, dtype=np.float64) for n, x in measured.items()}, sys.argv[1])
    ranks.gather(None)
    sys.stderr.flush()
    os._exit(0)  # taken down by Python, threads of torch that shared parameters out were seen to abort a process that was done
