"""What the model in the explorer's page costs a reader: `python benchmarks/page.py` (needs chromium and chromedriver).

A sentence of 40 tokens is typed into the published page, in headless Chromium; the seconds until the page holds its answer
(candidates, bounds and certificate of the token after next at every token, k = 64), beside the package's on the same rung and
text with one thread, as a page has. The first answer reads the weights, too, and is told apart. Prints; writes page.csv and
the README's table.
"""

import shutil
import statistics
import sys
import time
from pathlib import Path

import torch
from selenium import webdriver
from tables import publish

from mtp_utils.backbones import load_backbone
from mtp_utils.base import paths
from mtp_utils.base.artifacts import EXPLORER
from mtp_utils.drawing import explorer
from mtp_utils.marginal import future_log_probs
from mtp_utils.text.tokens import encode, front_of

TEXT = "Returns the mean of the values along the given axis, or None where the array is empty or holds no numbers at all. "
TOKENS, K, TARGET = 40, 64, 2.0
OTHERS = "ABCDE"  # first letters of the later texts
TYPE = """
const [text, done] = arguments, box = document.getElementById("own"), started = performance.now();
own.text = null; box.value = text; box.dispatchEvent(new Event("input"));
const look = () => own.text === null ? setTimeout(look, 5) : done((performance.now() - started) / 1000);
look();"""


def browser():
    """A headless Chromium, or the end with what is missing."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        sys.exit("chromium and chromedriver are not here (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.binary_location = shutil.which("chromium")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def in_page(text: str) -> list[float]:
    """Seconds of the first answer and of others, each with another first letter, for the page keeps what it has computed."""
    driver = browser()
    try:
        driver.get((paths.FIGURES / EXPLORER).as_uri())
        driver.set_script_timeout(120)
        return [driver.execute_async_script(TYPE, letter + text) for letter in ("", *OTHERS)]
    finally:
        driver.quit()


def in_package(backbone, text: str) -> float:
    """The least seconds of the package for the same, on one thread."""
    torch.set_num_threads(1)
    ids = torch.tensor([[*front_of(backbone.tokenizer), *encode(backbone.tokenizer, [text])[0]]])
    found = []
    for _ in range(5):
        started = time.perf_counter()
        future_log_probs(backbone.model, ids, 2, top_k=K, with_entropy=True)
        found.append(time.perf_counter() - started)
    return min(found)


if __name__ == "__main__":
    rung = load_backbone(f"ladder/{explorer.RUNG}", device="cpu")
    ids = encode(rung.tokenizer, [TEXT * 3])[0][:TOKENS]
    sentence = rung.tokenizer.decode(ids)
    first, *later = in_page(sentence)
    page, package = statistics.median(later), in_package(rung, sentence)
    case = f"{explorer.RUNG}, {TOKENS} tokens, k={K}"
    rows = [
        (case, "seconds in the page, the first answer", first, f"<= {TARGET:g}"),
        (case, "seconds in the page, later ones", page, f"<= {TARGET:g}"),
        (case, "page / package on one thread", page / package, ""),
    ]
    publish(Path(__file__).stem, rows)
    print("\n".join("{:36} {:44} {:8.3f} {}".format(*row) for row in rows))
