"""What can be set for training on episodes: as arguments of its classes, as sections of dsmem.yaml, and as presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from dsmem.config.schema import Config, Dataloader, MemoryMapping, SharedMemory
from dsmem.errors import UsageError

Preset = Literal["small", "medium", "large", "xlarge"]
GB = 10**9


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that is recommended; the defaults are those of `EpisodicDataset` and `create_optimized_dataloader`."""

    use_shared_memory: bool = True
    preload_critical_data: bool = True
    memory_mapping: bool = True
    cache_size: int = 100
    """Files kept open."""
    cache_bytes: int | None = None
    """The ceiling of the cache of one training process, its workers together; None = a quarter of available memory."""
    cache_scope: Literal["process", "shared"] = "process"
    """A cache in each process, or one in shared memory for all that read the same files."""
    memory_limit: int | None = None
    """Bytes of shared memory and cache together; None = as much as fits."""
    num_workers: int = 4
    """Of each training process."""
    pin_memory: bool = True
    persistent_workers: bool = True
    prefetch_factor: int = 2
    """Batches that each worker is ahead."""

    def as_config(self) -> dict[str, dict[str, Any]]:
        """The sections of dsmem.yaml, and `optimization`: keywords for `EpisodicDataset` beside use_shared_memory."""
        return {
            **self.sections(),
            "optimization": {
                "cache_size": self.cache_size,
                "cache_bytes": self.cache_bytes,
                "cache_scope": self.cache_scope,
                "memory_limit": self.memory_limit,
                "memory_mapping": self.memory_mapping,
                "preload_critical_data": self.preload_critical_data,
            },
        }

    def sections(self) -> dict[str, dict[str, Any]]:
        """What dsmem.yaml has of it."""
        mapping = MemoryMapping(self.memory_mapping, self.cache_size, self.cache_bytes, self.cache_scope)
        sharing = SharedMemory(self.use_shared_memory, self.preload_critical_data, self.memory_limit)
        names = [one.name for one in fields(Dataloader)]
        loading = Dataloader(**{name: getattr(self, name) for name in names})
        return {"memory_mapping": asdict(mapping), "shared_memory": asdict(sharing), "dataloader": asdict(loading)}

    def dataset_options(self) -> dict[str, Any]:
        """Keywords for `EpisodicDataset`."""
        return {"use_shared_memory": self.use_shared_memory, **self.as_config()["optimization"]}

    def loader_options(self) -> dict[str, Any]:
        """Keywords for `create_optimized_dataloader` beside its dataset_kwargs."""
        return self.sections()["dataloader"]


def from_config(config: Config) -> Settings:
    """The settings that a dsmem.yaml holds."""
    mapping, sharing = config.memory_mapping, config.shared_memory
    return Settings(
        use_shared_memory=sharing.enabled,
        preload_critical_data=sharing.preload_critical_data,
        memory_limit=sharing.memory_limit,
        memory_mapping=mapping.enabled,
        cache_size=mapping.cache_size,
        cache_bytes=mapping.cache_bytes,
        cache_scope=mapping.cache_scope,
        **asdict(config.dataloader),
    )


_USUAL = Settings()
PRESETS: Mapping[Preset, Settings] = {
    "small": replace(_USUAL, num_workers=2),
    "medium": _USUAL,
    "large": replace(_USUAL, cache_size=200, num_workers=8, prefetch_factor=4),
    "xlarge": replace(_USUAL, cache_size=500, num_workers=8, prefetch_factor=4),
}
"""Where nobody looked at machine and files: by the bytes of decoded data alone."""
_UP_TO: Mapping[Preset, int] = {"small": GB, "medium": 10 * GB, "large": 100 * GB}


def preset(name: str) -> Settings:
    """The settings of a preset; raises UsageError, which lists them."""
    for known, settings in PRESETS.items():
        if known == name:
            return settings
    raise UsageError(f"there is no preset {name!r}; the presets are {', '.join(PRESETS)}")


def preset_of(data_bytes: int) -> Preset:
    """The preset for so much data: small < 1 GB ≤ medium ≤ 10 GB < large ≤ 100 GB < xlarge."""
    if data_bytes < _UP_TO["small"]:
        return "small"
    return next((name for name in ("medium", "large") if data_bytes <= _UP_TO[name]), "xlarge")
