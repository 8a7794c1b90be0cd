"""Tuning without the process that a real loader is measured in, but where a test asks for it: it takes 3 s."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dsmem.tune import sampling

MEASURED = sampling.handed_over_s


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "handed_over_s", lambda *_, **__: 0.01)


@pytest.fixture
def handed_over_s() -> Callable[..., float]:
    """The real one."""
    return MEASURED
