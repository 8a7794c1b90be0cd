"""Digests against the libraries and md5sum, the tree against five lines of its own, and the cache against the file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import blake3
import pytest
import xxhash

from dsmem import digest, settings
from dsmem.digest import cache
from dsmem.errors import BadSource, SourceChanged, SourceMissing, UsageError
from dsmem.files import FileIdentity

MIB = 1 << 20
SLICE = 32 * MIB
SIZES = [0, 1, 100, MIB, SLICE - 1, SLICE, SLICE + 1, 2 * SLICE, 2 * SLICE + 12345]
STREAMS: dict[str, Callable[[bytes], str]] = {
    "md5": lambda data: hashlib.md5(data).hexdigest(),
    "sha256": lambda data: hashlib.sha256(data).hexdigest(),
    "blake3": lambda data: blake3.blake3(data).hexdigest(),
    "xxh3-128": lambda data: xxhash.xxh3_128_hexdigest(data),
}


def reference_tree(data: bytes) -> str:
    outer = xxhash.xxh3_128()
    for start in range(0, len(data), 32 * 1024 * 1024):
        outer.update(xxhash.xxh3_128_digest(data[start : start + 32 * 1024 * 1024]))
    return outer.hexdigest()


def sparse(path: Path, size_bytes: int) -> Path:
    """A file of that size, mostly holes, with marks at both ends of every slice."""
    with open(path, "wb") as file:
        file.truncate(size_bytes)
        for mark in range(0, size_bytes, SLICE):
            file.seek(mark)
            file.write(b"begin"[: size_bytes - mark])
            file.seek(max(min(mark + SLICE, size_bytes) - 3, 0))
            file.write(b"end"[: size_bytes - file.tell()])
        assert os.fstat(file.fileno()).st_size == size_bytes
    return path


@pytest.fixture(scope="module")
def files_by_size(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    directory = tmp_path_factory.mktemp("sizes")
    return {size: sparse(directory / str(size), size) for size in SIZES}


@pytest.mark.parametrize("size", SIZES)
def test_the_tree_is_what_it_says(files_by_size: dict[int, Path], size: int) -> None:
    found = digest.hash_file(files_by_size[size], cache=False)
    assert found.hex == reference_tree(files_by_size[size].read_bytes())
    assert (found.algo, found.size_bytes, found.cached) == ("xxh3-tree", size, False)


@pytest.mark.parametrize("algo", STREAMS)
@pytest.mark.parametrize("size", [0, 100, 8 * MIB, 8 * MIB + 1])
def test_streams_are_the_libraries(tmp_path: Path, algo: str, size: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(os.urandom(size))
    assert digest.hash_file(path, algo, cache=False).hex == STREAMS[algo](path.read_bytes())


@pytest.mark.skipif(shutil.which("md5sum") is None, reason="there is no md5sum")
def test_md5_is_what_md5sum_prints(files_by_size: dict[int, Path]) -> None:
    path = files_by_size[SLICE + 1]
    printed = subprocess.run(["md5sum", path], capture_output=True, text=True, check=True).stdout
    assert printed.split()[0] == digest.hash_file(path, "md5", cache=False).hex


def test_known_values(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "abc").write_bytes(b"abc")
    assert digest.hash_file(tmp_path / "empty", "md5").hex == "d41d8cd98f00b204e9800998ecf8427e"
    assert digest.hash_file(tmp_path / "abc", "md5").hex == "900150983cd24fb0d6963f7d28e17f72"
    assert digest.hash_file(tmp_path / "empty", "xxh3-128").hex == "99aa06d3014798d86001c324468d497f"
    assert digest.hash_file(tmp_path / "empty").hex == "99aa06d3014798d86001c324468d497f"


def test_an_open_file_is_hashed_to_the_size_that_is_asked(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abcdef")
    fd = digest.open_source(str(tmp_path / "x"))
    try:
        assert digest.hash_descriptor(fd, 3, "md5") == hashlib.md5(b"abc").hexdigest()
        for algo in digest.ALGORITHMS:
            with pytest.raises(SourceChanged, match="shorter"):
                digest.hash_descriptor(fd, 7, algo)
    finally:
        os.close(fd)


@pytest.mark.parametrize("algo", digest.ALGORITHMS)
def test_progress_ends_at_the_size(files_by_size: dict[int, Path], algo: str) -> None:
    told: list[tuple[int, int]] = []
    digest.hash_file(
        files_by_size[SLICE + 1], algo, cache=False, progress=lambda done, total: told.append((done, total))
    )
    assert told[-1] == (SLICE + 1, SLICE + 1)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every real computation from now on."""
    computed: list[str] = []
    real = digest.hashing.hash_descriptor

    def count(fd: int, size_bytes: int, algo: str, **options: object) -> str:
        computed.append(algo)
        return real(fd, size_bytes, algo)

    monkeypatch.setattr(digest.hashing, "hash_descriptor", count)
    return computed


def test_the_cache_answers_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    computed = counted(monkeypatch)
    first = digest.hash_file(path, "md5")
    second = digest.hash_file(path, "md5")
    assert (first.cached, second.cached, second.hex) == (False, True, first.hex)
    assert digest.hash_file(path, "sha256").hex == hashlib.sha256(b"one").hexdigest()
    assert digest.hash_file(path, "md5").cached, "another algorithm beside it"
    assert computed == ["md5", "sha256"]
    os.utime(path)
    assert not digest.hash_file(path, "md5").cached, "touched"
    status = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest.hash_file(path, "md5").hex == hashlib.md5(b"two").hexdigest(), "same size and mtime, another ctime"
    other = tmp_path / "other"
    other.write_bytes(b"six")
    os.replace(other, path)
    assert digest.hash_file(path, "md5").hex == hashlib.md5(b"six").hexdigest(), "replaced"


def test_the_cache_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    computed = counted(monkeypatch)
    assert not digest.hash_file(path, cache=False).cached
    assert not digest.hash_file(path, cache=False).cached
    assert not digest.hash_file(path).cached, "what was not remembered is not known"
    assert len(computed) == 3
    assert digest.hash_file(path).cached


def entry(path: Path) -> Path:
    status = path.stat()
    return settings.cache_directory() / "digests" / f"{status.st_dev:x}-{status.st_ino:x}.json"


@pytest.mark.parametrize(
    "garbage", [b"", b"{", b"[]", b"3", b"{}", b'{"identity": 1}', b"\xff" * 100, b" " * 10_000, b"[" * 4000]
)
def test_garbage_in_the_cache_is_nothing(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    digest.hash_file(path, "md5")
    assert entry(path).exists()
    entry(path).write_bytes(garbage)
    found = digest.hash_file(path, "md5")
    assert (found.cached, found.hex) == (False, hashlib.md5(b"one").hexdigest())
    assert digest.hash_file(path, "md5").cached, "and it is mended"


@pytest.mark.parametrize("digests", [None, [], "md5", {"md5": None}, {"md5": 5}, {"md5": ["x"]}, {"md5": "nothex"}])
def test_garbage_for_a_digest_is_nothing(tmp_path: Path, digests: object) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    digest.hash_file(path, "sha256")
    record = json.loads(entry(path).read_bytes())
    entry(path).write_bytes(json.dumps({**record, "digests": digests}).encode())
    assert digest.hash_file(path, "md5").hex == hashlib.md5(b"one").hexdigest()


def test_a_cache_that_is_a_symlink_or_a_directory_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    digest.hash_file(path, "md5")
    lying = tmp_path / "lying"
    record = json.loads(entry(path).read_bytes())
    lying.write_text(json.dumps({**record, "digests": {"md5": "0" * 32}}))
    entry(path).unlink()
    entry(path).symlink_to(lying)
    assert digest.hash_file(path, "md5").hex == hashlib.md5(b"one").hexdigest()
    entry(path).unlink()
    entry(path).mkdir()
    assert digest.hash_file(path, "md5").hex == hashlib.md5(b"one").hexdigest()


def test_a_cache_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    path = tmp_path / "x"
    path.write_bytes(b"one")
    assert digest.hash_file(path, "md5").hex == hashlib.md5(b"one").hexdigest()


def test_the_cache_is_private_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MOST_ENTRIES", 10)
    for i in range(30):
        cache.remember(FileIdentity(1, i, 3, 4, 5), "md5", "0" * 32)
    directory = settings.cache_directory() / "digests"
    assert 5 <= len(list(directory.iterdir())) <= 10
    assert cache.look_up(FileIdentity(1, 29, 3, 4, 5)) == {"md5": "0" * 32}
    assert cache.look_up(FileIdentity(1, 29, 3, 4, 6)) == {}
    assert directory.stat().st_mode & 0o777 == 0o700
    assert all(one.stat().st_mode & 0o777 == 0o600 for one in directory.iterdir())


def test_a_file_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    real = digest.hashing.hash_descriptor

    def slow(fd: int, size_bytes: int, algo: str, **options: object) -> str:
        found = real(fd, size_bytes, algo)
        path.write_bytes(b"two")
        return found

    monkeypatch.setattr(digest.hashing, "hash_descriptor", slow)
    with pytest.raises(SourceChanged):
        digest.hash_file(path, "md5")
    assert cache.look_up(FileIdentity.of(path.stat())) == {}


def test_what_can_not_be_hashed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="crc32"):
        digest.hash_file(tmp_path / "x", "crc32")
    with pytest.raises(SourceMissing):
        digest.hash_file(tmp_path / "nope")
    with pytest.raises(SourceMissing):
        digest.hash_file(tmp_path / "x" / "below")
    with pytest.raises(BadSource, match="directory"):
        digest.hash_file(tmp_path)
    with pytest.raises(BadSource, match="regular"):
        digest.hash_file(tmp_path / "pipe")
    with pytest.raises(BadSource, match="regular"):
        digest.hash_file("/dev/null")


def test_many_threads_at_once(files_by_size: dict[int, Path]) -> None:
    path = files_by_size[SLICE + 1]
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(digest.hash_file(path).hex)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [reference_tree(path.read_bytes())] * 4
