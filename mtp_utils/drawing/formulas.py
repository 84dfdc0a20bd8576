"""TeX as it stands in markdown -> inline SVG, by the typesetter that figures' labels have: no script, no font, no network."""

import html
import re
from functools import cache

SIZE = 100  # units of a drawing for one em, so that whole numbers are fine enough
SAME = {r"\le": r"\leq", r"\ge": r"\geq"}  # what matplotlib knows under its longer name alone


@cache
def formula(tex: str) -> str:
    """The formula as one `<svg>` in the colour and size of the text around it, standing on its baseline; its TeX is what a screen
    reader is given. What matplotlib cannot set is shown as TeX, in a `<code>`."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import MathTextParser
    from matplotlib.textpath import TextPath

    known = re.sub(r"\\[lg]e(?![a-zA-Z])", lambda found: SAME[found[0]], " ".join(tex.split()))
    font = FontProperties(size=SIZE, math_fontfamily="stix")
    try:
        width, height, depth, *_ = MathTextParser("path").parse(f"${known}$", 72, font)
    except ValueError:
        return f"<code>{html.escape(tex)}</code>"
    path = _drawn(TextPath((0, 0), f"${known}$", prop=font))
    top, below = height - depth + 6, depth + 6  # some units more, for strokes that reach over
    size = f"width:{width / SIZE:.2f}em;height:{(top + below) / SIZE:.2f}em;vertical-align:{-below / SIZE:.2f}em"
    box = f'viewBox="0 {-top:.0f} {width:.0f} {top + below:.0f}"'
    return f'<svg class="formula" role="img" aria-label="{html.escape(tex)}" style="{size}" {box}><path d="{path}"/></svg>'


def _drawn(path) -> str:
    """The path as SVG has it, y downwards, in whole units."""
    letters = {path.MOVETO: "M", path.LINETO: "L", path.CURVE3: "Q", path.CURVE4: "C"}
    parts = []
    for points, code in path.iter_segments(simplify=False, curves=True):
        flipped = [str(round(-value if i % 2 else value)) for i, value in enumerate(points)]
        parts.append("Z" if code == path.CLOSEPOLY else letters[code] + " ".join(flipped))
    return "".join(parts)
