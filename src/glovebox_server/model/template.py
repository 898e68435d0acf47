"""A template: what sandboxes are made of."""

# The field `resources` would hide the module of that name while annotations are evaluated.
from __future__ import annotations

import dataclasses
import pathlib

from glovebox_server.model import resources


@dataclasses.dataclass(frozen=True)
class Layer:
    """One read-only directory tree of the host that a sandbox sees, under its own writable overlay.

    `target` is where it stands inside ("/" for the root). Host ids 0..65535 in it are seen as the sandbox's own, where
    the host can map them.
    """

    source: pathlib.Path
    target: str


@dataclasses.dataclass(frozen=True)
class Template:
    """An image with resources and a warm-up, under a name."""

    template_id: str
    names: tuple[str, ...]
    layers: tuple[Layer, ...]
    python: str  # the interpreter inside that runs the guest agent and the Python contexts
    path: str  # the PATH of processes inside
    guest_archive: str = "/opt/glovebox/lib/glovebox-guest.pyz"  # the guest agent as one file, inside
    resources: resources.Resources = resources.Resources()
    warm_modules: tuple[str, ...] = ()
    runtime: str = "namespace"
