"""The architecture: nine rooms in an order, no circle, nothing that a room's listing hides."""

import ast
from pathlib import Path

from toy_run import ROOT

from mtp_utils import ROOMS

PACKAGE = ROOT / "mtp_utils"
MODULES = {".".join(("mtp_utils", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in sorted(PACKAGE.rglob("*.py"))}
LONGEST = 250  # lines of a module; one that outgrows them holds two things


def imports(name: str, path: Path):
    """(line, module of this package or room) of every import in a module, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base) for a in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)


def test_a_room_imports_only_what_stands_below_it_and_no_two_modules_import_each_other():
    height, wrong, below = {room: i for i, room in enumerate(ROOMS)}, [], {}
    for name, path in MODULES.items():
        for line, target in imports(name, path):
            here, there = (x.split(".")[1:2] for x in (name, target))
            if target.startswith("mtp_utils.") and here and (height[here[0]] < height[there[0]] or target not in MODULES):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {here[0]} imports {target}, which does not stand below it")
            below.setdefault(name, {}).setdefault(target, f"{path.relative_to(ROOT)}:{line}")

    def walk(name: str, way: tuple[str, ...]) -> None:
        for target, line in below.pop(name, {}).items():
            if target in (*way, name):
                wrong.append(f"{line}: {name} imports {target}, and {target} imports it, itself or through others")
            walk(target, (*way, name))

    for name in MODULES:
        walk(name, ())
    assert wrong == []


def test_the_package_shows_its_rooms_and_nothing_else():
    shown = {p.name for p in PACKAGE.iterdir()} - {"__pycache__"}
    assert shown == {"__init__.py", *ROOMS}
