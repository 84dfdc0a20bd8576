"""Speed and memory of the marginal, as ratios within one run: `python benchmarks/marginal.py [--quick] [--only a b]`.

Opponents take turns with ours, round after round, and medians are compared, so that what else the machine does hits
both. Shapes: the ladder's last rung (6 layers, 256 wide, vocabulary 1,024) and a 160M-shaped model (12 layers, 768 wide,
vocabulary 50,304), random weights. Part (e) needs a trained model and reads the ladder's last rung. Writes
benchmarks/marginal.csv and the table in benchmarks/README.md, part by part; about 25 minutes on 2 idle cores, --quick 2
minutes (and writes nothing). `--only` renews those parts; what another machine measured is dropped. On a CUDA device the
same, into marginal-cuda.csv and a table of its own, and part (g): the share of the device's matrix throughput, in bfloat16,
on random 160M-, 1.4B- and 6.9B-shaped models.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from tables import processor, splice
from transformers import AutoModelForCausalLM, DynamicCache, GPTNeoXConfig

from mtp_utils.backbones.load import available_backbones, load_backbone
from mtp_utils.base.runtime import choose_device
from mtp_utils.marginal.future import future_log_probs

HERE = Path(__file__).parent
SHAPES = {"rung": (6, 256, 4, 1024), "160M": (12, 768, 12, 50304)}  # layers, width, heads, vocabulary
LARGE = {"160M": SHAPES["160M"], "1.4B": (24, 2048, 16, 50304), "6.9B": (32, 4096, 32, 50432)}  # Pythia's
QUICK = {"lengths": (32, 64), "ks": (1, 4), "repeats": 3, "memory": (64, 4)}
FULL = {"lengths": (256, 512, 1024), "ks": (1, 4, 16, 64, 256), "repeats": 7, "memory": (512, 64)}
COLUMNS = ["part", "case", "quantity", "value", "target"]
MASSES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
DEVICE, _ = choose_device()


def random_model(shape, dtype=torch.float32):
    layers, width, heads, vocab = (SHAPES | LARGE)[shape]
    sizes = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width)
    torch.manual_seed(0)
    config = GPTNeoXConfig(vocab_size=vocab, max_position_embeddings=2048, **sizes)
    with DEVICE:
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def random_ids(model, length):
    return torch.randint(model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(1)).to(DEVICE)


def race(repeats, **contestants):
    """Median seconds of each, taking turns; one untimed round first (it also runs the self-check)."""
    seconds = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if DEVICE.type != "cpu":
                torch.accelerator.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


@torch.no_grad()
def cached_loop(model, ids, k, positions):
    """What a user would write: one prefix pass, then at each position its cache, k times, and one token more."""
    whole = DynamicCache()
    logits = model(ids, past_key_values=whole, use_cache=True).logits[0]
    found = []
    for t in positions:
        p, token = logits[t].softmax(-1).topk(k)
        cache = DynamicCache()
        for i, layer in enumerate(whole.layers):
            cache.update(*(x[:, :, : t + 1].expand(k, -1, -1, -1) for x in (layer.keys, layer.values)), i)
        after = model(token[:, None], past_key_values=cache, use_cache=True).logits[:, -1]
        found.append((p @ after.softmax(-1)).log())
    return torch.stack(found)


@torch.no_grad()
def full_re_runs(model, ids, k, positions):
    """Without a cache: the whole prefix again for every candidate of every position."""
    found = []
    for t in positions:
        prefix = ids[:, : t + 1]
        p, token = model(prefix, use_cache=False).logits[0, -1].softmax(-1).topk(k)
        after = model(torch.cat([prefix.expand(k, -1), token[:, None]], 1), use_cache=False).logits[:, -1]
        found.append((p @ after.softmax(-1)).log())
    return torch.stack(found)


@torch.no_grad()
def plain_passes(model, ids, n, at_once):
    """n forward passes over the row, log-softmax included, so many rows at once."""
    for start in range(0, n, at_once):
        model(ids.expand(min(at_once, n - start), -1), use_cache=False).logits.log_softmax(-1)


def part_a(size):
    """Ours against the loops a user would write, rung's shape, k = 8."""
    model, length, k, share = random_model("rung"), size["lengths"][0], 8, 8
    ids = random_ids(model, length)
    some = range(share - 1, length, share)  # full re-runs at every 8th position, times 8
    ours = future_log_probs(model, ids, 2, top_k=k).log_probs[0]
    for loop in (cached_loop, full_re_runs):
        assert (loop(model, ids, k, some) - ours[list(some)]).abs().max() < 1e-3
    seconds = race(
        min(3, size["repeats"]),
        ours=partial(future_log_probs, model, ids, 2, top_k=k),
        cached=partial(cached_loop, model, ids, k, range(length)),
        re_runs=partial(full_re_runs, model, ids, k, some),
    )
    case = f"rung T={length} k={k}"
    yield "a", case, "cache expanded position by position / ours", seconds["cached"] / seconds["ours"], ">= 10"
    yield "a", case, "full re-runs / ours", share * seconds["re_runs"] / seconds["ours"], ">= 80"


def part_b(size):
    """Ours against plain passes over the same number of tokens, the faster of two ways to batch them, k = 8."""
    for shape in SHAPES:
        model, k = random_model(shape), 8
        for length in size["lengths"]:
            ids = random_ids(model, length)
            seconds = race(
                size["repeats"] if shape == "rung" else 3,
                ours=partial(future_log_probs, model, ids, 2, top_k=k),
                single=partial(plain_passes, model, ids, 1 + k, 1),
                batched=partial(plain_passes, model, ids, 1 + k, 3),
            )
            ratio = seconds["ours"] / min(seconds["single"], seconds["batched"])
            yield "b", f"{shape} T={length} k={k}", "ours / plain passes over as many tokens", ratio, "<= 1.1"


def part_c(size):
    """Memory above the model, 160M shape; in a process of its own, so that nothing else has raised the peak."""
    command = [sys.executable, __file__, "--memory", *map(str, size["memory"])]
    gigabytes = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    yield "c", "160M T={} k={}".format(*size["memory"]), "peak memory above the model [GB]", gigabytes, "<= 1.5"


def memory(length, k):
    """Peak memory, in GB, of one call above what the process holds with the model loaded and once used."""
    model = random_model("160M")
    ids = random_ids(model, length)
    future_log_probs(model, ids[:, :16], 2, top_k=1)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    else:
        before, peak = resident("VmRSS"), lambda: resident("VmHWM")
    future_log_probs(model, ids, 2, top_k=k)
    return (peak() - before) / 1e9


def resident(field):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def part_d(size):
    """Growth with T and k, rung's shape."""
    model = random_model("rung")
    for length in size["lengths"]:
        for k in size["ks"]:
            ids = random_ids(model, length)
            seconds = race(3, ours=partial(future_log_probs, model, ids, 2, top_k=k))["ours"]
            yield "d", f"rung T={length} k={k}", "seconds", seconds, ""
            yield (
                "d",
                f"rung T={length} k={k}",
                "microseconds per token of (1 + k) T",
                1e6 * seconds / ((1 + k) * length),
                "",
            )


def part_e(size):
    """Candidates for the same captured mass and the same certified share: adaptive (mass=) against fixed k."""
    if "ladder/w256" not in available_backbones():
        print("(e) skipped: it needs the trained rung ladder/w256")
        return
    from mtp_utils.text.blocks import evaluation_blocks

    backbone = load_backbone("ladder/w256", device=DEVICE)
    for corpus in ("code", "prose"):
        blocks = evaluation_blocks(corpus, "validation", backbone.tokenizer, n_documents=24, positions_per_document=4, horizon=2)

        def measure(blocks=blocks, **mode):
            f = future_log_probs(
                backbone.model, blocks.tokens.to(DEVICE), 2, attention_mask=blocks.mask, positions=blocks.scored, **mode
            )
            n, held, sure = (x[blocks.scored.to(DEVICE)].double() for x in (f.num_candidates, f.captured_mass, f.certified))
            return [x.item() for x in (n.mean(), held.mean(), held.quantile(0.1), sure.mean())]

        names = ("candidates", "mean captured mass", "mass held at 9 of 10 positions", "certified share")
        adaptive = pd.DataFrame([measure(mass=m) for m in MASSES], columns=names).astype(float)
        for k in size["ks"]:
            fixed = dict(zip(names, measure(top_k=k), strict=True))
            for what in names[1:]:
                if adaptive[what].min() < fixed[what] <= adaptive[what].max():
                    needed = interpolate(fixed[what], adaptive[what], adaptive["candidates"])
                    yield "e", f"{corpus}, {what} {fixed[what]:.2f}", f"adaptive candidates / {k}", needed / k, ""


def interpolate(x, xs, ys):
    """Piecewise linear y where xs, ascending, first reaches x."""
    i = int((xs < x).sum())
    return ys[i] if i == 0 else ys[i - 1] + (ys[i] - ys[i - 1]) * (x - xs[i - 1]) / (xs[i] - xs[i - 1])


def part_f(size):
    """Cost of some positions against all of them, rung's shape, k = 8, whole prefix needed in each case."""
    model, length, k = random_model("rung"), size["lengths"][-1], 8
    ids, column = random_ids(model, length), torch.arange(length, device=DEVICE)
    shares = (1, 2, 4, 8, 16)
    wanted = {n: (column % n == n - 1)[None] for n in shares}
    runs = {f"every {n}": partial(future_log_probs, model, ids, 2, top_k=k, positions=wanted[n]) for n in shares}
    seconds = race(size["repeats"], **runs)
    for n in shares[1:]:
        tokens = (length + k * length / n) / (length + k * length)
        ratio = seconds[f"every {n}"] / seconds["every 1"] / tokens
        yield (
            "f",
            f"rung T={length} k={k}, every {n}. position",
            "share of the time / share of the tokens",
            ratio,
            "about 1",
        )


def part_g(size):
    """Positions per second in bfloat16, and the share of what the device's matrix products reach; plain passes beside it."""
    if DEVICE.type != "cuda":
        print("(g) skipped: it needs a CUDA device")
        return
    square = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    peak = 2 * 8192**3 / race(size["repeats"], product=lambda: square @ square)["product"]
    yield "g", "8192 x 8192 x 8192, bfloat16", "TFLOP/s", peak / 1e12, ""
    rows, length, k = 4, size["lengths"][-1], 8
    for shape, (layers, width, _, vocab) in LARGE.items():
        model = random_model(shape, torch.bfloat16)
        ids = random_ids(model, length).expand(rows, -1)
        plain = partial(plain_passes, model, ids[:1], rows * (1 + k), 2)
        seconds = race(3, ours=partial(future_log_probs, model, ids, 2, top_k=k), plain=plain)
        weights = layers * 12 * width**2 + width * vocab
        flops = rows * (1 + k) * length * (2 * weights + 4 * layers * width * length / 2)  # and attention over half the row
        case = f"{shape} bfloat16, {rows} x T={length} k={k}"
        yield "g", case, "positions per second", rows * length / seconds["ours"], ""
        yield "g", case, "share of the matrix throughput", flops / seconds["ours"] / peak, ">= 0.6"
        yield "g", case, "the same of plain passes over as many tokens", flops / seconds["plain"] / peak, ""
        del model
        torch.cuda.empty_cache()


def kernel_used():
    """The attention kernel of a candidate pass, as the profiler names it."""
    model = random_model("rung")
    ids = random_ids(model, 32)
    future_log_probs(model, ids, 2, top_k=2)
    with torch.profiler.profile() as profile:
        future_log_probs(model, ids, 2, top_k=2)
    return ", ".join(sorted({e.key for e in profile.key_averages() if "scaled_dot_product" in e.key}))


def write(rows, part, kernel):
    """Renew one part in the CSV, and the table between the markers of the README: a processor's, or a CUDA device's."""
    cuda = DEVICE.type == "cuda"
    name = torch.cuda.get_device_name() if cuda else processor()
    where = f"{name}, {torch.get_num_threads()} threads; torch {torch.__version__}, Python {platform.python_version()}"
    file = HERE / ("marginal-cuda.csv" if cuda else "marginal.csv")
    known = pd.read_csv(file, keep_default_na=False) if file.exists() else pd.DataFrame(columns=[*COLUMNS, "where"])
    known = known[(known["where"] == where) & (known["part"] != part)]
    rows = pd.concat([known, pd.DataFrame(rows, columns=COLUMNS).assign(where=where)]).sort_values("part", kind="stable")
    rows.to_csv(file, index=False)
    lines = [f"{where}; attention by {kernel}.", ""]
    lines += ["| part | case | quantity | value | target |", "|---|---|---|---|---|"]
    lines += [f"| {r.part} | {r.case} | {r.quantity} | {r.value:.3g} | {r.target} |" for r in rows.itertuples()]
    splice("cuda" if cuda else "table", lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; writes nothing")
    parser.add_argument("--only", nargs="+", choices=list("abcdefg"), default=list("abcdefg"), help="these parts alone")
    parser.add_argument("--memory", nargs=2, type=int, metavar=("T", "K"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        print(memory(*given.memory))
        return
    for part in given.only:
        rows = []
        for row in globals()[f"part_{part}"](QUICK if given.quick else FULL):
            print("({}) {}: {} = {:.3g} {}".format(*row), flush=True)
            rows.append(row)
        if not given.quick:
            write(rows, part, kernel_used())


if __name__ == "__main__":
    main()
