"""`arrange` against the plainest code that does the same: lists of documents, joined, split, shuffled and cut."""

from __future__ import annotations

import errno
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenfiles import make_manifest, make_part, make_tokens, random_documents

from dsmem import files
from dsmem.digest import hash_file
from dsmem.errors import OutputFull, SourceChanged, UsageError
from dsmem.progress import ignore
from dsmem.tokens import arrange as arranging
from dsmem.tokens import index, joining, manifest, streams
from dsmem.tokens.arrange import Arranged, arrange, cuts_by_size, even_cuts
from dsmem.tokens.layout import Beside, TokenDtype
from dsmem.tokens.options import Arrangement
from dsmem.tokens.parts import Part
from dsmem.tokens.permutation import Permutation


@pytest.fixture
def work(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loop over blocks goes round several times; nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for module in (index, streams, arranging):
        monkeypatch.setattr(module, "BLOCK", 3)
    monkeypatch.setattr(arranging, "_MASKED_TOKENS", 7)
    monkeypatch.setattr(joining, "SLICE_BYTES", 20)
    monkeypatch.setattr(joining, "_BLOCK_BYTES", 8)
    monkeypatch.setattr(joining, "_GATHER_BYTES", 32)


def read(path: str, dtype: TokenDtype) -> list[list[int]]:
    """The documents of a complete token file, which is checked on the way."""
    beside = Beside.of(path)
    tokens = np.fromfile(path, np.dtype(dtype).newbyteorder("<")).tolist()
    ends = np.load(beside.docs)
    assert ends.dtype == np.uint64
    assert not len(ends) or ends[-1] == len(tokens)
    told = manifest.load(Path(beside.manifest).read_bytes())
    assert (told.tokens, told.documents, told.dtype) == (len(tokens), len(ends), dtype)
    return [tokens[start:end] for start, end in pairwise([0, *ends.tolist()])]


def run(parts: Sequence[Part], out: Path, dtype: TokenDtype, how: Arrangement, work: Path) -> tuple[Arranged, ...]:
    return arrange(parts, str(out), dtype, how, staging=str(work), manifest=make_manifest(dtype), progress=ignore)


Dtypes = st.sampled_from(["uint16", "uint32"])
Texts = st.lists(st.lists(st.lists(st.integers(0, 65535), max_size=12), max_size=9), max_size=4)


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=Texts,
    dtype=Dtypes,
    fraction=st.sampled_from([0.0, 0.0, 0.3, 0.9]),
    seed=st.sampled_from([None, None, 0, 7]),
    shards=st.sampled_from([None, None, 1, 2, 3]),
    shard_tokens=st.sampled_from([None, 1, 5, 30]),
    data=st.data(),
)
def test_as_the_plainest_code_does_it(
    tmp_path: Path,
    texts: list[list[list[int]]],
    dtype: TokenDtype,
    fraction: float,
    seed: int | None,
    shards: int | None,
    shard_tokens: int | None,
    data: st.DataObject,
) -> None:
    how = Arrangement(shards, None if shards else shard_tokens, fraction, seed)
    work = Path(tempfile.mkdtemp(dir=tmp_path))
    keys = [[data.draw(st.integers(0, 2**64 - 1)) for _ in part] for part in texts]
    parts = [make_part(work, n, part, dtype, of) for n, (part, of) in enumerate(zip(texts, keys, strict=True))]
    documents = [(key, one) for part, of in zip(texts, keys, strict=True) for one, key in zip(part, of, strict=True)]
    splits = {"all": [one for _, one in documents]}
    if fraction:
        threshold = int(fraction * 2**64)
        splits = {
            "train": [one for key, one in documents if key >= threshold],
            "val": [one for key, one in documents if key < threshold],
        }
    if seed is not None:
        splits = {split: [found[place] for place in shuffled(len(found), seed)] for split, found in splits.items()}
    if shards is not None and shards > len(splits.get("all", splits.get("train", []))):
        with pytest.raises(UsageError, match="can't be spread"):
            run(parts, tmp_path / "out.bin", dtype, how, work)
        return
    done = run(parts, tmp_path / "out.bin", dtype, how, work)
    for split, expected in splits.items():
        of_split = [one for one in done if one.manifest.split == split]
        assert [document for one in of_split for document in read(one.path, dtype)] == expected
        for number, one in enumerate(of_split):
            assert one.manifest.digest == f"xxh3-tree:{tree_of_20_bytes(one.path)}"
            assert (one.manifest.shard, one.manifest.shards) == (number, len(of_split))
    assert len({one.path for one in done}) == len(done)
    assert sorted(os.listdir(work)) == sorted(name for part in parts for name in names_of(part))


def names_of(part: Part) -> list[str]:
    return [os.path.basename(path) for path in (part.tokens_path, part.lengths_path, part.keys_path or "")]


def shuffled(count: int, seed: int) -> list[int]:
    order: list[int] = Permutation(count, seed, name="documents")(np.arange(count)).tolist()
    return order


def tree_of_20_bytes(path: str) -> str:
    import xxhash

    data = Path(path).read_bytes()
    return xxhash.xxh3_128(
        b"".join(xxhash.xxh3_128_digest(data[at : at + 20]) for at in range(0, len(data), 20))
    ).hexdigest()


@pytest.mark.parametrize("how", [Arrangement(), Arrangement(shuffle_seed=1), Arrangement(val_fraction=0.5)])
def test_larger_than_a_slice(tmp_path: Path, how: Arrangement) -> None:
    """Real block sizes: 70 MB of tokens, one document of them above a slice."""
    random = np.random.default_rng(0)
    work = tmp_path / "work"
    work.mkdir()
    lengths = np.concatenate((random.integers(0, 2000, 9000), [17 << 20], random.integers(0, 2000, 9000))).astype("<u8")
    tokens = random.integers(0, 65536, int(lengths.sum()), dtype="<u2")
    keys = random.integers(0, 2**64 - 1, len(lengths), dtype="<u8")
    parts, at, first = [], 0, 0
    for number, count in enumerate((5000, 8000, len(lengths) - 13000)):
        here = lengths[first : first + count]
        stem = f"{work}/part-{number}"
        tokens[at : at + int(here.sum())].tofile(f"{stem}.bin")
        here.tofile(f"{stem}.lengths")
        keys[first : first + count].tofile(f"{stem}.keys")
        parts.append(Part(f"{stem}.bin", f"{stem}.lengths", f"{stem}.keys", count, int(here.sum()), 0))
        at, first = at + int(here.sum()), first + count
    done = run(parts, tmp_path / "out.bin", "uint16", how, work)
    starts = np.cumsum(lengths) - lengths
    order = np.arange(len(lengths), dtype=np.uint64)
    wanted = [order] if not how.val_fraction else [order[keys >= 2**63], order[keys < 2**63]]
    for one, chosen in zip(done, wanted, strict=True):
        if how.shuffle_seed is not None:
            chosen = chosen[shuffled(len(chosen), how.shuffle_seed)]
        expected = np.concatenate([tokens[int(starts[n]) : int(starts[n] + lengths[n])] for n in chosen])
        assert np.array_equal(np.fromfile(one.path, "<u2"), expected)
        assert np.array_equal(np.diff(np.load(Beside.of(one.path).docs), prepend=np.uint64(0)), lengths[chosen])
        assert one.manifest.digest == f"xxh3-tree:{hash_file(one.path, cache=False).hex}"


def test_names(tmp_path: Path) -> None:
    documents = random_documents(30, seed=3)
    how = Arrangement(shards=2, val_fraction=0.4)
    made = make_tokens(tmp_path / "owt.bin", documents, arrangement=how)
    assert [os.path.basename(one.path) for one in made] == [
        "owt-00000-of-00002.bin",
        "owt-00001-of-00002.bin",
        "owt.val.bin",
    ]
    assert {one.manifest.split for one in made} == {"train", "val"}
    beside = {"bin", "idx", "docs.npy", "json"}
    for one in made:
        stem = one.path.removesuffix(".bin")
        assert beside <= {name[len(stem) + 1 :] for name in map(str, tmp_path.iterdir()) if name.startswith(f"{stem}.")}


def test_an_error_of_the_disk_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "pwrite_full", full)
    with pytest.raises(OSError, match="No space"):
        make_tokens(tmp_path / "out.bin", random_documents(5))
    assert not (tmp_path / "out.bin").exists()


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs(tmp_path)
    little = os.statvfs_result((found.f_bsize, found.f_frsize, found.f_blocks, 0, 0, *tuple(found)[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: little)
    with pytest.raises(OutputFull, match="0 B are free") as caught:
        make_tokens(tmp_path / "out.bin", [[1, 2, 3]])
    assert caught.value.need_bytes == 6 + 36
    assert not (tmp_path / "out.bin").exists()


def test_an_older_file_is_replaced_whole(tmp_path: Path) -> None:
    make_tokens(tmp_path / "out.bin", [[1, 2], [3]])
    too_large = make_manifest("uint32", largest_id=2**31)
    make_tokens(tmp_path / "out.bin", [[4, 2**31]], "uint32", manifest=too_large)
    assert read(str(tmp_path / "out.bin"), "uint32") == [[4, 2**31]]
    assert not (tmp_path / "out.idx").exists()  # the older one would be about other tokens


def test_killed_while_publishing_no_bin_lies_beside_files_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tokens(tmp_path / "out.bin", [[1, 2], [3]])
    right = os.replace
    renamed: list[str] = []
    dies_at = 0

    def dies(here: str, there: str) -> None:
        if there.startswith(str(tmp_path / "out")):
            renamed.append(there)
            if len(renamed) == dies_at:
                raise KeyboardInterrupt
        right(here, there)

    monkeypatch.setattr(os, "replace", dies)
    for at in (1, 2, 3, 4):
        dies_at = at
        renamed.clear()
        with pytest.raises(KeyboardInterrupt):
            make_tokens(tmp_path / "out.bin", [[9, 9, 9]])
        assert not (tmp_path / "out.bin").exists()
    monkeypatch.undo()
    make_tokens(tmp_path / "out.bin", [[9, 9, 9]])
    assert read(str(tmp_path / "out.bin"), "uint16") == [[9, 9, 9]]


def test_what_gets_its_name_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    earlier: dict[str, str] = {}
    right = os.replace

    def sync(fd: int) -> None:
        done.append(("sync", os.readlink(f"/proc/self/fd/{fd}")))

    def replace(here: str, there: str) -> None:
        done.append(("rename", here))
        earlier[there] = here
        right(here, there)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    for how in (Arrangement(), Arrangement(val_fraction=0.5, shuffle_seed=1), Arrangement(shards=2)):
        done.clear()
        earlier.clear()
        make_tokens(tmp_path / "out.bin", random_documents(9), arrangement=how)
        renamed = [path for what, path in done if what == "rename" and os.path.basename(path).startswith("out")]
        assert len(renamed) == (4 if how == Arrangement() else 8)
        for path in renamed:
            written = earlier.get(path, path)
            assert done.index(("sync", written)) < done.index(("rename", written)) <= done.index(("rename", path))
        assert done[-1] == ("sync", str(tmp_path))


def test_an_error_of_the_sync_that_goes_on_meanwhile_is_raised(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = make_part(work, 0, [[1, 2], [3]], "uint16", None)
    synced = os.fsync

    def full(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".bin"):
            raise OSError(errno.ENOSPC, "full")
        synced(fd)

    monkeypatch.setattr(os, "fsync", full)

    def made() -> None:
        how, about = Arrangement(), make_manifest("uint16")
        out = str(tmp_path / "out.bin")
        arrange([part], out, "uint16", how, staging=str(work), manifest=about, progress=ignore, take_over=True)

    with pytest.raises(OSError, match="full"):
        made()
    assert not (tmp_path / "out.bin").exists()
    monkeypatch.undo()
    made()
    assert read(str(tmp_path / "out.bin"), "uint16") == [[1, 2], [3]]


def test_no_idx_where_megatron_has_no_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(index, "LONGEST_IDX_DOCUMENT", 3)
    with caplog.at_level(logging.WARNING, "dsmem"):
        make_tokens(tmp_path / "long.bin", [[1, 2, 3, 4]])
        make_tokens(tmp_path / "fits.bin", [[1, 2, 3]])
    assert not (tmp_path / "long.idx").exists() and (tmp_path / "fits.idx").exists()
    (told,) = caplog.messages
    assert "long.bin gets no .idx: a document of 4 tokens" in told
    assert read(str(tmp_path / "long.bin"), "uint16") == [[1, 2, 3, 4]]


def test_a_document_larger_than_a_shard_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dsmem"):
        made = make_tokens(tmp_path / "o.bin", [[1], [2] * 9, [3, 3], [4] * 8], arrangement=Arrangement(shard_tokens=4))
    assert [one.manifest.tokens for one in made] == [1, 9, 2, 8]
    (told,) = caplog.messages  # one for all of them
    assert told.startswith("2 of 4 shards hold more than 4 tokens, each a single document")
    assert told.endswith("o-00001-of-00004.bin of 9")


def test_no_documents(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (one,) = make_tokens(tmp_path / "none.bin", [])
    assert (one.manifest.tokens, one.manifest.documents) == (0, 0)
    assert read(one.path, "uint16") == []
    with caplog.at_level(logging.WARNING, "dsmem"):
        _, val = make_tokens(tmp_path / "o.bin", [[1, 2]], arrangement=Arrangement(val_fraction=1e-15, shuffle_seed=3))
    assert caplog.messages == ["no document fell to val: the file is empty"]
    assert read(val.path, "uint16") == []


def test_a_split_is_stable_when_documents_are_added(tmp_path: Path) -> None:
    documents = random_documents(200, seed=5)
    how = Arrangement(val_fraction=0.2)
    _, few = make_tokens(tmp_path / "few.bin", documents[:120], arrangement=how)
    _, many = make_tokens(tmp_path / "many.bin", documents, arrangement=how)
    before, after = read(few.path, "uint16"), read(many.path, "uint16")
    assert 5 < len(before) < 60
    assert after[: len(before)] == before


@pytest.mark.parametrize("suffix", [".bin", ".lengths", ".keys"])
@pytest.mark.parametrize("how", [Arrangement(), Arrangement(shuffle_seed=1), Arrangement(val_fraction=0.5)])
def test_a_part_that_became_shorter(tmp_path: Path, work: Path, how: Arrangement, suffix: str) -> None:
    parts = [
        make_part(work, n, random_documents(20, seed=n), "uint16", list(range(0, 2**64, 2**60))[:16] + [0] * 4)
        for n in (0, 1)
    ]
    short = work / f"part-1{suffix}"
    os.truncate(short, short.stat().st_size - 8)
    if suffix == ".keys" and not how.val_fraction:
        parts = [Part(one.tokens_path, one.lengths_path, None, one.documents, one.tokens, 0) for one in parts]
        run(parts, tmp_path / "out.bin", "uint16", how, work)
        return
    with pytest.raises(SourceChanged):
        run(parts, tmp_path / "out.bin", "uint16", how, work)
    assert not (tmp_path / "out.bin").exists()


def test_progress_reaches_the_end(tmp_path: Path, work: Path) -> None:
    parts = [make_part(work, 0, random_documents(3000), "uint16", list(range(3000)))]
    for how in (Arrangement(), Arrangement(shuffle_seed=1), Arrangement(val_fraction=0.5)):
        told: list[tuple[int, int]] = []
        arrange(
            parts,
            str(tmp_path / "out.bin"),
            "uint16",
            how,
            staging=str(work),
            manifest=make_manifest("uint16"),
            progress=lambda done, total, told=told: told.append((done, total)),
        )
        assert told[-1] == (parts[0].tokens * 2, parts[0].tokens * 2)
        assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_misuse(tmp_path: Path, work: Path) -> None:
    for how in (
        Arrangement(shards=2, shard_tokens=5),
        Arrangement(shards=0),
        Arrangement(shard_tokens=0),
        Arrangement(val_fraction=1.0),
        Arrangement(val_fraction=-0.1),
        Arrangement(val_fraction=float("nan")),
    ):
        with pytest.raises(UsageError):
            how.check()
    part = make_part(work, 0, [[1]], "uint16", None)
    with pytest.raises(UsageError, match="keys"):
        run([part], tmp_path / "out.bin", "uint16", Arrangement(val_fraction=0.1), work)


@given(lengths=st.lists(st.integers(0, 50), min_size=1, max_size=40), data=st.data())
def test_shards_are_even(lengths: list[int], data: st.DataObject) -> None:
    shards = data.draw(st.integers(1, len(lengths)))
    ends = np.cumsum(lengths, dtype=np.uint64)
    cuts = even_cuts(ends, shards)
    assert len(cuts) == shards and cuts[-1] == len(lengths)
    assert all(first < last for first, last in pairwise([0, *cuts]))
    if shards * 2 <= len(lengths) and min(lengths) == max(lengths):
        sizes = [last - first for first, last in pairwise([0, *cuts])]
        assert max(sizes) - min(sizes) <= 1


@given(lengths=st.lists(st.integers(0, 50), max_size=40), limit=st.integers(1, 60))
def test_shards_of_a_size(lengths: list[int], limit: int) -> None:
    ends = np.array(list(accumulate(lengths)), np.uint64)
    cuts = cuts_by_size(ends, limit)
    assert cuts[-1] == len(lengths)
    for first, last in pairwise([0, *cuts]):
        assert sum(lengths[first:last]) <= limit or last - first == 1
    for first, middle, last in zip([0, *cuts], cuts, cuts[1:], strict=False):
        assert sum(lengths[first : middle + 1]) > limit or middle == last


def test_the_manifest_says_how(tmp_path: Path) -> None:
    (one,) = make_tokens(tmp_path / "o.bin", [[1, 2], [3]], arrangement=Arrangement(shuffle_seed=5))
    told = json.loads((tmp_path / "o.json").read_text())
    assert (told["shuffle_seed"], told["split"], told["shards"], told["tokens"]) == (5, "all", 1, 3)
    assert manifest.load((tmp_path / "o.json").read_bytes()) == one.manifest
