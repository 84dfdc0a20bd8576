"""What a joint step costs against plain fine-tuning: `python benchmarks/joint.py [--quick]`.

A step of heads and backbone together (residual heads at offsets 2 .. K + 1, the next-token loss kept in, one head's logits at
a time) against a step of the same backbone on transformers' own next-token loss, on the same tokens, both with AdamW and
clipping; and the peak memory of both, each in a process of its own. Beside the ratio the one that the arithmetic of the LM
head alone imposes: each head multiplies by the unembedding as often as the next token does. Random weights. Prints; writes
joint.csv and the README's table without --quick.
"""

import argparse
import subprocess
import sys

import torch
from marginal import DEVICE, race, random_model, resident
from tables import publish

from mtp_utils.backbones.load import Backbone
from mtp_utils.heads.features import FrozenFeatures
from mtp_utils.heads.spec import HeadSpec
from mtp_utils.heads.together import Joint, Together, joint_losses
from mtp_utils.heads.training import head_groups

BLOCKS = {"rung": 4, "160M": 1}  # of 256 tokens a step


def plain_step(shape):
    """transformers' own next-token loss."""
    model = random_model(shape)
    ids, optimizer = tokens(model, shape), torch.optim.AdamW(model.parameters(), 1e-4)

    def step():
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def joint_step(shape, n_heads):
    """Heads and backbone together."""
    model = random_model(shape)
    backbone, how = Backbone("random", model, None, 0, 0, None, "random", {}), Joint(1e-3, 256, blocks=BLOCKS[shape])
    features = FrozenFeatures(backbone, tokens(model, shape).cpu(), ())
    together = Together(backbone, HeadSpec("residual", offsets=tuple(range(2, n_heads + 2))), how)
    del backbone, model
    features.backbone = together.backbone  # the copy is enough here
    together.free(True)
    groups = [g for k in together.heads.spec.offsets for g in head_groups(together.heads, k, 1e-3)]
    parameters = list(together.trained.values())
    optimizer = torch.optim.AdamW([*groups, {"params": parameters, "lr": 1e-4}])

    def step():
        joint_losses(together, features, slice(None), how, torch.Tensor.backward)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def tokens(model, shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(model.config.vocab_size, (BLOCKS[shape], 256), generator=generator).to(DEVICE)


def arithmetic(shape, n_heads):
    """Products with weights a token: joint over plain."""
    model = random_model(shape)
    head = model.get_output_embeddings().weight
    body = sum(p.numel() for p in model.parameters()) - 2 * head.numel()  # the input embedding multiplies nothing
    return (body + (1 + n_heads) * head.numel() + n_heads * head.shape[1] ** 2) / (body + head.numel())


def peak(shape, n_heads):
    """GB, of a process that makes two such steps; 0 heads: plain ones."""
    call = [sys.executable, __file__, "--peak", shape, str(n_heads)]
    return float(subprocess.run(call, capture_output=True, text=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small case, to see that it runs; writes nothing")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        shape, n_heads = given.peak[0], int(given.peak[1])
        step = joint_step(shape, n_heads) if n_heads else plain_step(shape)
        step(), step()
        print((torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else resident("VmHWM")) / 1e9)
        return
    rows = []
    for shape in ("rung",) if given.quick else ("rung", "160M"):
        plain, counts = plain_step(shape), (1,) if given.quick else (1, 4, 8)
        memory = peak(shape, 0)
        rows.append((f"{shape}, plain", "peak memory [GB]", memory, ""))
        for n in counts:
            seconds = race(3 if given.quick else 7, plain=plain, joint=joint_step(shape, n))
            case = f"{shape}, K = {n} residual heads"
            rows.append(
                (
                    case,
                    "joint step / plain step",
                    seconds["joint"] / seconds["plain"],
                    "<= 1.5" if (shape, n) == ("160M", 4) else "",
                )
            )
            rows.append((case, "the same by arithmetic", arithmetic(shape, n), ""))
            rows.append((case, "peak memory [GB]", peak(shape, n), ""))
            print(*("{}: {} = {:.3g} {}".format(*row) for row in rows[-3:]), sep="\n", flush=True)
    if not given.quick:
        publish("joint", rows)


if __name__ == "__main__":
    main()
