"""Public names of a package whose modules are imported when a name is first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from importlib import import_module


def names(
    package: str, homes: Mapping[str, str], packages: Collection[str] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package; `homes`: public name → the module that has it.

    `packages`: those inside it that are found without an import of their own.
    """
    namespace = vars(sys.modules[package])

    def find(name: str) -> object:
        if name in packages:
            return import_module(f"{package}.{name}")
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(import_module(home), name)
        namespace[name] = value
        return value

    return find, lambda: sorted({*namespace, *homes, *packages})
