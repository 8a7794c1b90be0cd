"""Recommendations for machines and files that are not there: when to share, when not, and why."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmem.tune import estimating, planning
from dsmem.tune.facts import Data, Speeds, Storage, System, Workload
from dsmem.tune.planning import Recommendation
from dsmem.tune.settings import PRESETS, Settings, preset, preset_of

GIB = 1 << 30
MACHINE = System(
    cpus=32,
    memory_bytes=256 * GIB,
    available_bytes=240 * GIB,
    shared_free_bytes=120 * GIB,
    shared_point="/dev/shm",
    gpus=4,
    open_files=65536,
    huge_pages="never",
)
LAPTOP = replace(MACHINE, cpus=8, available_bytes=24 * GIB, shared_free_bytes=12 * GIB, gpus=0)
SPEEDS = Speeds(
    decode_s=5e-3,
    frames_s=0.0,
    copy_s=0.4e-3,
    consume_s=0.3e-3,
    unpacked_s=5e-3,
    exchange_s=4e-3,
    samples=8,
)
MAPPED = replace(SPEEDS, decode_s=0.0, unpacked_s=0.0)


def images(size_bytes: int, **changes: Any) -> Storage:
    one = Storage(
        name="observations/images/top",
        role="image",
        count=50,
        rows=size_bytes // 921600,
        item_shape=(480, 640, 3),
        dtype="uint8",
        layout="chunked",
        chunks=(1, 480, 640, 3),
        filters=("gzip",),
        is_encoded=False,
        is_mapped=False,
        size_bytes=size_bytes,
        stored_bytes=size_bytes // 2,
    )
    return replace(one, **changes)


def data(size_bytes: int, **changes: Any) -> Data:
    """Gzip images of so many bytes, 2.7 MB a step."""
    one = Data(
        files=50,
        episodes=50,
        steps=max(size_bytes // 2764800, 1),
        layouts=("aloha",),
        cameras=("top",),
        file_bytes=size_bytes // 2,
        data_bytes=size_bytes,
        pinned_bytes=size_bytes,
        mapped_bytes=0,
        critical_bytes=1 << 20,
        step_bytes=2764800,
        is_encoded=False,
        is_local=True,
        changing=(),
        storages=(images(size_bytes),),
    )
    return replace(one, **changes)


def contiguous(size_bytes: int) -> Data:
    storage = images(size_bytes, layout="contiguous", chunks=None, filters=(), is_mapped=True)
    return data(size_bytes, mapped_bytes=size_bytes, storages=(storage,))


def recommend(system: System, found: Data, speeds: Speeds = SPEEDS, **work: Any) -> Recommendation:
    workload = Workload(8, **{"processes": max(system.gpus, 1), **work})
    return planning.recommend(system, found, speeds, workload)


def codes(found: Recommendation) -> list[str]:
    return [reason.code for reason in found.reasons]


def test_four_gpus_share_what_fits() -> None:
    found = recommend(MACHINE, data(20 * GIB))
    chosen = found.chosen.settings
    assert chosen.use_shared_memory and chosen.memory_limit is None and found.not_shared is None
    assert chosen.num_workers >= 1 and chosen.pin_memory
    assert "shared" in codes(found) and found.chosen.shared_bytes == 20 * GIB
    assert found.chosen.memory_bytes < 2 * 20 * GIB
    assert any(not one.settings.use_shared_memory for one in found.alternatives)


def test_one_process_does_not_share() -> None:
    found = recommend(LAPTOP, data(GIB))
    assert found.not_shared == "one-process" and not found.chosen.settings.use_shared_memory
    assert found.chosen.settings.num_workers == 0  # handing over costs more than copying
    assert (found.chosen.settings.cache_bytes or 0) >= GIB
    assert {"one-process", "no-workers"} <= set(codes(found))


def test_data_larger_than_memory_is_not_shared() -> None:
    found = recommend(LAPTOP, data(400 * GIB))
    assert found.not_shared == "larger-than-memory" and "larger-than-memory" in codes(found)
    assert found.chosen.settings.num_workers > 1  # every frame is decoded again
    assert found.chosen.memory_bytes <= estimating.room(LAPTOP).all_bytes
    mapped = recommend(LAPTOP, contiguous(400 * GIB), MAPPED)
    assert mapped.not_shared == "larger-than-memory"


def test_a_part_is_shared_where_that_pays() -> None:
    cached = recommend(MACHINE, data(130 * GIB))
    assert cached.not_shared == "larger-than-memory" and cached.chosen.settings.cache_scope == "shared"
    found = recommend(MACHINE, data(130 * GIB), replace(SPEEDS, decode_s=20e-3, copy_s=10e-3))  # a cache copies out
    assert found.chosen.settings.use_shared_memory and "in-part" in codes(found)
    assert found.chosen.settings.memory_limit == estimating.room(MACHINE).shared_bytes
    assert found.chosen.settings.preload_critical_data


def test_data_that_keeps_changing_is_not_shared() -> None:
    found = recommend(MACHINE, data(20 * GIB, changing=("a.hdf5", "b.hdf5")))
    assert found.not_shared == "changing" and not found.chosen.settings.use_shared_memory
    assert not any(one.settings.use_shared_memory for one in found.alternatives)
    assert any("a.hdf5 and 1 more" in reason.text for reason in found.reasons)


def test_contiguous_files_are_mapped_and_not_pinned() -> None:
    found = recommend(MACHINE, contiguous(20 * GIB), MAPPED)
    assert found.not_shared == "mapped" and found.chosen.settings.memory_mapping
    assert found.chosen.memory_bytes < GIB


def test_workers_that_can_not_be_tried_are_not_recommended() -> None:
    for system in (MACHINE, LAPTOP):
        found = recommend(system, data(20 * GIB), replace(SPEEDS, exchange_s=0.0, untried="no room for batches"))
        assert {one.settings.num_workers for one in (found.chosen, *found.alternatives)} == {0}
        assert [reason.text for reason in found.reasons if reason.code == "untried"] == [
            "no workers: one that was tried could not load batches here (no room for batches)"
        ]


def test_a_gpu_does_not_wait_for_loading() -> None:
    waiting = recommend(replace(LAPTOP, gpus=1), contiguous(GIB), MAPPED)
    assert waiting.chosen.settings.num_workers >= 1 and "overlap" in codes(waiting)
    long = recommend(replace(LAPTOP, gpus=1), contiguous(GIB), MAPPED, step_s=0.5)
    assert long.chosen.batch_s <= 1.05 * (0.5 + 8 * MAPPED.consume_s)
    middling = recommend(replace(LAPTOP, gpus=1), contiguous(GIB), MAPPED, step_s=0.02)
    assert middling.chosen.settings.num_workers >= 1  # 3.2 ms of copying go on beside the step
    assert middling.chosen.batch_s == pytest.approx(0.02 + 8 * MAPPED.consume_s)
    short = recommend(replace(LAPTOP, gpus=1), contiguous(GIB), MAPPED, step_s=0.0)
    assert short.chosen.settings.num_workers == 0


def test_encoded_frames_are_cached_decoded() -> None:
    pictures = images(GIB, is_encoded=True, layout="contiguous", chunks=None, filters=())
    found = recommend(
        LAPTOP, data(GIB, is_encoded=True, pinned_bytes=GIB // 20, storages=(pictures,)), replace(SPEEDS, frames_s=4e-3)
    )
    assert "encoded" in codes(found) and (found.chosen.settings.cache_bytes or 0) >= GIB


def test_one_cache_for_all_processes() -> None:
    pictures = images(20 * GIB, is_encoded=True, layout="contiguous", chunks=None, filters=())
    found = recommend(
        MACHINE, data(20 * GIB, is_encoded=True, pinned_bytes=GIB, storages=(pictures,)), replace(SPEEDS, frames_s=4e-3)
    )
    assert found.chosen.settings.cache_scope == "shared" and (found.chosen.settings.cache_bytes or 0) >= 20 * GIB
    assert found.chosen.memory_bytes < 30 * GIB  # a cache in each of 4 to 32 processes would hold it as often
    assert any("one cache for all" in reason.text for reason in found.reasons)


def test_chunks_that_cost_too_much_are_named() -> None:
    ragged = images(GIB, chunks=(16, 60, 80, 1))
    found = recommend(LAPTOP, data(GIB, storages=(ragged,)))
    (change,) = found.changes
    assert (change.name, change.better) == ("observations/images/top", (1, 480, 640, 3)) and change.times > 10


_SYSTEMS = st.builds(
    System,
    cpus=st.integers(1, 128),
    memory_bytes=st.just(512 * GIB),
    available_bytes=st.integers(1 << 28, 512 * GIB),
    shared_free_bytes=st.integers(0, 512 * GIB),
    shared_point=st.just("/dev/shm"),
    gpus=st.integers(0, 8),
    open_files=st.integers(64, 1 << 20),
    huge_pages=st.just("never"),
)
_TIMES = st.floats(1e-6, 0.1)
_SPEEDS = st.builds(
    lambda decode, part, copy, consume, exchange: Speeds(
        decode, part * decode, copy, consume, decode, exchange, 8
    ),
    _TIMES, st.floats(0, 1), _TIMES, _TIMES, _TIMES,
)  # fmt: skip


@given(_SYSTEMS, _SPEEDS, st.integers(1 << 20, 1 << 42), st.booleans(), st.booleans())
def test_always_possible_and_within_the_memory(
    system: System, speeds: Speeds, size_bytes: int, is_mapped: bool, changing: bool
) -> None:
    found = contiguous(size_bytes) if is_mapped else data(size_bytes)
    found = replace(found, changing=("x",) if changing else (), step_bytes=min(found.step_bytes, size_bytes))
    made = recommend(system, found, speeds)
    settings = made.chosen.settings
    assert settings.use_shared_memory == (made.not_shared is None)
    assert not (changing and settings.use_shared_memory)
    assert made.chosen.shared_bytes <= max(system.shared_free_bytes, 0)
    assert settings.num_workers <= max(-(-system.cpus // max(system.gpus, 1)), 1)
    assert 1 <= settings.cache_size <= max(system.open_files // 4, 1)
    assert made.chosen.batch_s > 0 and made.reasons and made.chosen not in made.alternatives
    room = estimating.room(system).all_bytes
    under_way = (settings.num_workers * settings.prefetch_factor + 1) * max(system.gpus, 1) * found.step_bytes * 8
    assert made.chosen.memory_bytes <= room + under_way + (1 << 20)


@given(_SYSTEMS, _SPEEDS, st.integers(1 << 20, 1 << 40))
def test_more_memory_never_slows_it_down(system: System, speeds: Speeds, size_bytes: int) -> None:
    more = replace(system, available_bytes=2 * system.available_bytes, shared_free_bytes=2 * system.shared_free_bytes)
    found = data(size_bytes, step_bytes=min(2764800, size_bytes))
    for shared in (True, False):
        settings = Settings(use_shared_memory=shared, num_workers=2)
        work = Workload(8, max(system.gpus, 1))
        less, with_more = (estimating.estimate(one, found, speeds, work, settings).batch_s for one in (system, more))
        assert with_more <= less * (1 + 1e-9)


def test_presets_and_their_sizes() -> None:
    sizes = [10**8, 10**9 - 1, 10**9, 10**10, 10**10 + 1, 10**11, 10**11 + 1]
    expected = ["small", "small", "medium", "medium", "large", "large", "xlarge"]
    assert [preset_of(size) for size in sizes] == expected
    assert list(PRESETS) == ["small", "medium", "large", "xlarge"]
    assert preset("medium") == Settings()
    with pytest.raises(ValueError, match="small, medium, large, xlarge"):
        preset("huge")


def test_settings_fit_the_constructors() -> None:
    from dsmem.training import EpisodicDataset, create_optimized_dataloader

    config = Settings().as_config()
    takes = inspect.signature(EpisodicDataset.__init__).parameters
    assert set(config["optimization"]) < set(takes) - {"dataset_path_list", "camera_names", "use_shared_memory"}
    assert set(config["dataloader"]) < set(inspect.signature(create_optimized_dataloader).parameters)
    assert {name: takes[name].default for name in ("cache_bytes", "memory_limit")} == {
        name: config["optimization"][name] for name in ("cache_bytes", "memory_limit")
    }
