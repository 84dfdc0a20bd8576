"""Whatever `future_log_probs` is given, it answers rightly or says what is wrong; the embedded profiles call nobody."""

import os
import random
import subprocess
import sys

import pytest
import torch
from tiny_models import VOCAB, tiny_model

from mtp_utils.base import paths
from mtp_utils.marginal.future import future_log_probs

CHOICES = {
    "shape": [(1, 1), (2, 5), (3, 9), (1, 31), (0, 4), (2, 0), (4,)],
    "offset": [1, 2, 3, 5, 0, -1, 1.5, "2", None],
    "top_k": [None, 1, 3, VOCAB, VOCAB + 1, 0, -2],
    "mass": [None, 0.5, 1.0, 1, 0.0, -0.1, 1.1, float("nan")],
    "exact": [False, True],
    "samples": [None, 1, 7, 0, -1],
    "seed": [0, 1, -5, 2**70],
    "attention_mask": [None, "ones", "left", "holes", "none", "other shape"],
    "positions": [None, "some", "none", "other shape"],
    "max_paths": [65536, 50, 1, 0],
    "with_entropy": [False, True],
    "ids": ["fine", "fine", "fine", "too large", "negative", "float"],
}
LIKELY = {"shape": 4, "offset": 3, "attention_mask": 4, "positions": 2, "max_paths": 2}  # that many of the choices are valid


def drawn(rng: random.Random) -> dict:
    """Arguments of a call, mostly sound ones."""
    given = {}
    for name, values in CHOICES.items():
        sound = values[: LIKELY.get(name, 3)]
        given[name] = rng.choice(sound if rng.random() < 0.85 else values)
    if rng.random() < 0.7:  # one mode
        chosen = rng.choice(["top_k", "mass", "exact", "samples", "hybrid"])
        given |= {"top_k": None, "mass": None, "exact": chosen == "exact", "samples": None}
        given |= {"top_k": rng.choice([1, 3])} if chosen in ("top_k", "hybrid") else {}
        given |= {"samples": 5} if chosen in ("samples", "hybrid") else {}
        given |= {"mass": 0.7} if chosen == "mass" else {}
    return given


def tensors(given: dict, rng: random.Random) -> tuple[torch.Tensor, dict]:
    shape = given.pop("shape")
    ids = torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    kind = given.pop("ids")
    if ids.numel() and kind in ("too large", "negative"):
        ids.view(-1)[rng.randrange(ids.numel())] = VOCAB if kind == "too large" else -1
    ids = ids.float() if kind == "float" else ids
    ones = torch.ones(shape, dtype=torch.int64)
    masks = {"ones": ones, "none": 0 * ones, "other shape": torch.ones(3, 2), "some": ones.bool() & (ids % 2 == 0), None: None}
    left, holes = ones.clone(), ones.clone()
    left[..., : max(0, ones.shape[-1] // 2)] = 0
    holes[..., 1::3] = 0
    masks |= {"left": left, "holes": holes}
    return ids, given | {name: masks[given[name]] for name in ("attention_mask", "positions")}


@pytest.mark.parametrize("name", ["gpt_neox", "mistral"])
def test_any_arguments_give_an_answer_that_adds_up_or_a_value_error(name):
    model, rng, answered = tiny_model(name), random.Random(0), 0
    for _ in range(400):
        ids, given = tensors(drawn(rng), rng)
        try:
            f = future_log_probs(model, ids, **given)
        except ValueError as error:
            assert str(error), given
            continue
        answered += 1
        wanted = torch.ones_like(ids, dtype=torch.bool)
        for mask in (given["attention_mask"], given["positions"]):
            wanted &= mask != 0 if mask is not None else True
        total, captured = f.log_probs.exp().sum(-1), f.captured_mass
        expected = torch.ones_like(total) if given["samples"] else captured
        assert (total[wanted] - expected[wanted]).abs().max() < 1e-9 if wanted.any() else True
        assert (total[~wanted] == 0).all() and (captured >= 0).all() and (captured <= 1).all()
        assert (f.num_candidates <= given["max_paths"]).all() and f.certified[~wanted].sum() == 0
    assert answered > 100 and not model.training


WATCH = """import socket
def refuse(self, address, *rest):
    if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(("127.", "::1", "localhost")):
        open({log!r}, "a").write(repr(address))
        raise OSError("the network is cut")
    return real(self, address, *rest)
real, socket.socket.connect = socket.socket.connect, refuse
def look(host, *rest, **options):
    if host not in (None, "", "localhost", "127.0.0.1", "::1", socket.gethostname()):
        open({log!r}, "a").write(repr(host))
        raise OSError("the network is cut")
    return found(host, *rest, **options)
found, socket.getaddrinfo = socket.getaddrinfo, look
"""


def test_the_embedded_profiles_make_no_network_call(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WATCH.format(log=str(tmp_path / "calls")))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"PYTHONPATH": str(tmp_path), "MTP_BUILD": str(tmp_path / "build")}
    check = "import socket\ntry:\n    socket.create_connection(('192.0.2.1', 80), 1)\nexcept OSError as error:\n    print(error)"
    assert "cut" in subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True).stdout
    (tmp_path / "calls").unlink()
    command = [sys.executable, "-m", "mtp_utils.reproduce", "smoke", "--only", "00"]
    done = subprocess.run(command, env=environment, cwd=paths.ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "calls").exists()
