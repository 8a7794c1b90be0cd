"""An object's header read in windows: the same as parsed as a whole, and no header is believed that was not before."""

from __future__ import annotations

import json
import os
import random
import struct
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import zoo
from samples import settle

import dsmem
from dsmem.arrays import header, jsontext, tree
from dsmem.arrays.header import Tensor
from dsmem.arrays.summary import DatasetSummary, summarize
from dsmem.arrays.tree import Tree
from dsmem.errors import DamagedObject
from dsmem.pinning import untrusted
from dsmem.pinning.written import Written
from dsmem.store import objects
from dsmem.store.root import make_store

PROVENANCE = '{"source": "a\\"b"}'
TENSORS = {"x": Tensor("I64", (2, 1), 0, 16), "%C3%A9": Tensor("U8", (3,), 16, 19), "g/e": Tensor("F32", (0,), 19, 19)}
TREE = Tree(
    groups={"": ["x", "é", "g", "also", "soft"], "g": ["e"]},
    datasets={"x": {}, "é": {"dtype": {"string": "|S1", "encoding": "utf-8"}}, "g/e": {}},
    aliases={"also": "g"},
    soft_links={"soft": "nowhere"},
)
ATTRIBUTES = {"x": {"unit": {"str": "m"}}, "": {}}
METADATA = {
    "dsmem.provenance": PROVENANCE,
    "dsmem.data_bytes": "19",
    "dsmem.tree": "".join(TREE.dumped()),
    "dsmem.attributes": json.dumps(ATTRIBUTES),
}
TEXT = bytes(header.encode(TENSORS, METADATA, size_bytes=4096)[8:]).rstrip()


def whole(text: bytes, data_bytes: int = 19) -> bytes:
    return struct.pack("<Q", len(text)) + text + bytes(data_bytes)


def checked(content: bytes, provenance: str = PROVENANCE) -> Sequence[DatasetSummary]:
    """What is believed of an object; raises DamagedObject."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        return tuple(untrusted._checked_object(file.fileno(), provenance)[1])


def checked_as_a_whole(content: bytes) -> Sequence[DatasetSummary]:
    """The same of all of it as Python's objects."""
    parsed = header.parse(memoryview(content), len(content))
    assert list(parsed.metadata) == list(METADATA) and parsed.metadata["dsmem.provenance"] == PROVENANCE
    assert parsed.metadata["dsmem.data_bytes"] == str(parsed.data_bytes)
    end = 0
    for one in sorted((parsed.tensor(name) for name in parsed.names()), key=lambda one: (one.begin, one.end)):
        assert one.begin == end
        end = one.end
    assert end == parsed.data_bytes
    attributes = json.loads(parsed.metadata["dsmem.attributes"])
    assert all(isinstance(table, dict) for table in attributes.values())
    tree.load(parsed.metadata["dsmem.tree"])
    return summarize(parsed, "")


def test_what_dsmem_writes_is_believed() -> None:
    assert checked(whole(TEXT.replace(b',"g/e":{', SPARE + b',"g/e":{'))) == checked(whole(TEXT))
    found = checked(whole(TEXT))
    assert found == checked_as_a_whole(whole(TEXT)) and [one.path for one in found] == ["x", "é", "g/e"]
    assert checked(whole(TEXT + b" " * 500)) == found


@pytest.mark.parametrize("kind", zoo.HELD)
def test_is_what_the_whole_header_says(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", **zoo.OPTIONS[kind]) as file:
        zoo.HELD[kind](file)
    name = dsmem.pin(settle(path)).name
    there = dsmem.pin(path)
    assert there.already
    assert there.datasets == summarize(objects.read_header(make_store(), name), name)


def in_tree(old: str, new: str) -> tuple[bytes, bytes]:
    return (json.dumps(old)[1:-1].encode(), json.dumps(new)[1:-1].encode())


SPARE = b',"g/f":{"dtype":"F32","shape":[0],"data_offsets":[19,19]}'
HOSTILE = {
    "a tensor twice that is no dataset's": (b',"g/e":{', SPARE + SPARE + b',"g/e":{'),
    "a tensor twice": (b',"%C3%A9":', b',"x":'),
    "a tensor's key twice": (b'"dtype":"I64"', b'"dtype":"U8","dtype":"I64"'),
    "more of a tensor": (b'"dtype":"I64"', b'"dtype":"I64","more":1'),
    "a tensor with spaces": (b'"dtype":"I64"', b'"dtype": "I64"'),
    "a tensor's name escaped": (b'"x":{"dtype', b'"\\u0078":{"dtype'),
    "a tensor's name not in ASCII": (b'"%C3%A9":{', b'"\xc3\xa9":{'),
    "another dtype": (b'"I64"', b'"I65"'),
    "a number that is none": (b"[2,1]", b"[2,true]"),
    "a negative number": (b"[2,1]", b"[-2,-1]"),
    "another shape": (b"[2,1]", b"[3,1]"),
    "a very wide empty shape": (b'"shape":[0]', b'"shape":[0,%d]' % 2**70),
    "a gap": (b"[19,19]", b"[20,20]"),
    "an overlap": (b"[16,19]", b"[15,18]"),
    "a tensor that is no table": (b',"g/e":{', b',"h":5,"g/e":{'),
    "metadata twice": (b',"x":{"dtype"', b',"__metadata__":{},"x":{"dtype"'),
    "a key of the metadata twice": (b'"dsmem.data_bytes":', b'"dsmem.data_bytes":"19","dsmem.data_bytes":'),
    "more metadata": (b'"dsmem.data_bytes":', b'"more":"","dsmem.data_bytes":'),
    "very much metadata": (
        b'"dsmem.data_bytes":',
        b"".join(b'"%d":"",' % n for n in range(99)) + b'"dsmem.data_bytes":',
    ),
    "metadata that is no text": (b'"dsmem.data_bytes":"19"', b'"dsmem.data_bytes":19'),
    "another size": (b'"dsmem.data_bytes":"19"', b'"dsmem.data_bytes":"20"'),
    "the size written otherwise": (b'"dsmem.data_bytes":"19"', b'"dsmem.data_bytes":"\\u0031\\u0039"'),
    "no tree": (b'"dsmem.tree"', b'"dsmem.three"'),
    "the provenance escaped otherwise": (b"source", b"\\u0073ource"),
    "something behind the header": (b'"data_offsets":[19,19]}}', b'"data_offsets":[19,19]}},'),
    "no end": (b'"data_offsets":[19,19]}}', b'"data_offsets":[19,19]}'),
    "a dataset that is no table": in_tree('"x":{}', '"x":[]'),
    "a dataset without a tensor": in_tree('"x":{}', '"y":{}'),
    "a dtype that is none": in_tree('"|S1"', '"O"'),
    "a shape that is none": in_tree('"x":{}', '"x":{"shape":5}'),
    "texts without offsets": in_tree('"x":{}', '"x":{"shape":[5]}'),
    "a part twice": in_tree('"aliases":', '"datasets":{},"aliases":'),
    "a part that is no table": in_tree('"types":{}', '"types":[]'),
    "an alias that leads nowhere": in_tree('"also":"g"', '"also":"h"'),
    "an alias that leads to a link": in_tree('"also":"g"', '"also":"soft"'),
    "an alias that is no text": in_tree('"also":"g"', '"also":{}'),
    "a soft link that is no text": in_tree('"soft":"nowhere"', '"soft":5'),
    "a tree that is no table": in_tree('{"groups"', '[]{"groups"'),
    "more than a tree": in_tree('"soft":"nowhere"}}', '"soft":"nowhere"}}}'),
    "too deep": in_tree('"x":{}', '"x":{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "attributes that are no table": in_tree('"x": {"unit": {"str": "m"}}', '"x": 5'),
    "attributes that are no JSON": in_tree('"x": {"unit": {"str": "m"}}', '"x": {"unit": {"str": m}}'),
    "attributes that are a list": in_tree('{"x": {"unit": {"str": "m"}}, "": {}}', "[]"),
}


@pytest.mark.parametrize("piece_bytes", [17, jsontext.PIECE_BYTES])
@pytest.mark.parametrize("kind", HOSTILE)
def test_what_dsmem_does_not_write_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, kind: str, piece_bytes: int
) -> None:
    """Whether an entry is read by itself or with many."""
    monkeypatch.setattr(jsontext, "PIECE_BYTES", piece_bytes)
    old, new = HOSTILE[kind]
    text = TEXT if old in TEXT else TEXT.replace(*in_tree('"soft_links":', '"types":{},"soft_links":'))
    assert text.count(old) == 1 and checked(whole(text))
    with pytest.raises(DamagedObject):
        checked(whole(text.replace(old, new)))


def test_sizes_that_cannot_be() -> None:
    for content in (b"", b"\1\0\0", struct.pack("<Q", 2**63) + TEXT, whole(TEXT)[:-1], whole(TEXT) + b"\0", whole(b"")):
        with pytest.raises(DamagedObject):
            checked(content)


def test_no_mutation_is_believed_that_was_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that are, the datasets are the same; pieces are so short that every place is a cut."""
    random_ = random.Random(0)
    believed = 0
    for number in range(4000):
        monkeypatch.setattr(jsontext, "PIECE_BYTES", random_.choice([1, 3, 17, 4096]))
        text = bytearray(TEXT)
        for _ in range(random_.choice([0, 1, 1, 2])):
            at, length = random_.randrange(len(text)), random_.randrange(4)
            other = random_.randrange(len(text))
            instead = random_.choice(
                [text[other : other + length], bytes(random_.choices(b' "\\{}[],:019-eu', k=length))]
            )
            text[at : at + random_.choice([length, 1, 0])] = instead
        try:
            found = checked(whole(bytes(text)))
        except DamagedObject:
            continue
        believed += 1
        assert found == checked_as_a_whole(whole(bytes(text))), (number, text)
    assert believed > 500


def test_little_is_held(tmp_path: Path) -> None:
    """Of 20,000 datasets no more than 150 bytes each; as Python's objects they are 1 to 2 KB."""
    count = 20_000
    names = [f"group{number // 100}/dataset{number}" for number in range(count)]
    held = Tree(datasets={name: {"maxshape": [None, number]} for number, name in enumerate(names)})
    tensors = {name: Tensor("U8", (1, 1), number, number + 1) for number, name in enumerate(names)}
    path = tmp_path / "object"
    metadata = {**METADATA, "dsmem.tree": "".join(held.dumped()), "dsmem.data_bytes": str(count)}
    size_bytes = header.reserve(tensors, metadata, spare_bytes=0)
    path.write_bytes(header.encode(tensors, metadata, size_bytes=size_bytes) + bytes(count))
    with path.open("rb") as file:
        tracemalloc.start()
        datasets = Written(file.fileno(), exactly=True).datasets()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len(datasets) == count and datasets[-1] == DatasetSummary(names[-1], (1, 1), "uint8", 1)
    assert peak < 3 * jsontext.PIECE_BYTES * 2 + 150 * count


@pytest.mark.parametrize("algo", ["xxh3-tree", "sha256", "md5"])
def test_the_provenance_is_put_in_its_place(tmp_path: Path, store_root: Path, algo: str) -> None:
    """It is what a ref says of it, and no other byte of the header than those around it is another."""
    path = tmp_path / "\udcff \\ x.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(5)
    pinned = dsmem.pin(settle(path), untrusted=True, algo=algo, hash_cache=False)
    parsed = objects.read_header(make_store(), pinned.name)
    told = json.loads(parsed.metadata["dsmem.provenance"])
    assert told["source"] == os.fspath(path) and told["digest"] == f"{pinned.algo}:{pinned.digest}"
    (object_file,) = (store_root / "objects").iterdir()
    text = object_file.read_bytes()[8 : parsed.data_start].decode("ascii")
    assert json.loads(text)["__metadata__"] == parsed.metadata
    assert dsmem.pin(path, hash_cache=False).datasets == pinned.datasets
