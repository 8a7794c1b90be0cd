"""Tuning without the process that a real loader is measured in, but where a test asks for it: it takes 3 s."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import warm

from dsmem.tune import sampling

MEASURED = sampling.handed_over_s


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "handed_over_s", lambda *_, **__: 0.01)


@pytest.fixture
def forked_trials(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Trials are forks of this process; the pids of all that are started."""
    return warm.use(monkeypatch)


@pytest.fixture
def handed_over_s() -> Callable[..., float]:
    """The real one."""
    return MEASURED
