"""What the notebooks of the multi-token prediction companion share: nine rooms, each standing on those before it in ROOMS.

Importing the package or a room costs nothing: no model, no device and no download before a function asks for it.
"""

import importlib

__version__ = "0.1.0"
ROOMS = ("base", "text", "backbones", "marginal", "heads", "decoding", "findings", "drawing", "reproduce")


def hand_on(room: str, **names: tuple[str, ...]) -> tuple:
    """`__getattr__`, `__dir__` and `__all__` of a room: module -> its public names, each imported when it is first asked for."""
    home = {name: module for module, public in names.items() for name in public}

    def of_room(name: str):
        if name not in home:
            raise AttributeError(f"module {room!r} has no attribute {name!r}; it hands on {', '.join(sorted(home))}")
        return getattr(importlib.import_module(f"{room}.{home[name]}"), name)

    return of_room, lambda: sorted(home), sorted(home)
