"""Everything an HDF5 file can hold, as small builders: `HELD` is pinned exactly, `REFUSED` is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5p, h5s, h5t

Builder = Callable[[Any], None]
HELD: dict[str, Builder] = {}
REFUSED: dict[str, tuple[Builder, dict[str, str]]] = {}
OPTIONS: dict[str, dict[str, Any]] = {}
"""Arguments of h5py.File for the cases that need some."""

TEXT = h5py.string_dtype()
ASCII = h5py.string_dtype("ascii")
PADDINGS = {"null_term": h5t.STR_NULLTERM, "null_pad": h5t.STR_NULLPAD, "space": h5t.STR_SPACEPAD}
COLOUR = h5py.enum_dtype({"red": 0, "green": 1, "blü": 200}, basetype="u1")
WEEKDAY = h5py.enum_dtype({"mon": -3, "tue": 2**40}, basetype=">i8")
PAIR = np.dtype([("x", "u1"), ("z", "<c8")])
NESTED = np.dtype([("a", "<i4"), ("b", ">f8"), ("s", "S3"), ("sub", "<i2", (2, 3)), ("in", PAIR), ("c", COLOUR)])
PADDED = np.dtype({"names": ["x", "y"], "formats": ["u1", "<f8"], "offsets": [3, 16], "itemsize": 40})
SHUFFLED = np.dtype({"names": ["late", "early"], "formats": ["<f4", "<i8"], "offsets": [8, 0], "itemsize": 16})
BITS = {
    "nan_payload": (np.array([0x7FF8_0000_DEAD_BEEF, 0xFFF0_0000_0000_0001, 0x8000_0000_0000_0000], "u8"), "<f8"),
    "nan_payload_f4": (np.array([0x7FC0_1234, 0xFF80_0001, 0x8000_0000], "u4"), "<f4"),
}


def held(**options: Any) -> Callable[[Builder], Builder]:
    def register(builder: Builder) -> Builder:
        HELD[builder.__name__] = builder
        OPTIONS[builder.__name__] = options
        return builder

    return register


def refused(paths: dict[str, str], **options: Any) -> Callable[[Builder], Builder]:
    def register(builder: Builder) -> Builder:
        REFUSED[builder.__name__] = (builder, paths)
        OPTIONS[builder.__name__] = options
        return builder

    return register


def sample(dtype: np.dtype[Any], count: int = 12) -> np.ndarray[Any, Any]:
    """Items whose bytes all differ, of any fixed-size dtype."""
    raw = np.random.default_rng(7).integers(0, 256, count * dtype.itemsize, np.uint8)
    return raw.view(dtype)


def _numbers(file: Any, prefix: str, *codes: str) -> None:
    for code in codes:
        data = sample(np.dtype(code)).reshape(3, 4)
        file[f"{prefix}{code.strip('<>|')}"] = data
        file[f"{prefix}{code.strip('<>|')}_scalar"] = np.array(data[0, 0], code)
        file[f"{prefix}{code.strip('<>|')}"].attrs["array"] = data
        file[f"{prefix}{code.strip('<>|')}"].attrs["scalar"] = data[0, 0]


@held()
def little_endian(file: Any) -> None:
    _numbers(file, "", "<i1", "<i2", "<i4", "<i8", "<u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8")


@held()
def big_endian(file: Any) -> None:
    _numbers(file, "", ">i2", ">i4", ">i8", ">u2", ">u4", ">u8", ">f2", ">f4", ">f8")


@held()
def complex_numbers(file: Any) -> None:
    for code in ("<c8", ">c8", "<c16", ">c16"):
        name = {"<": "little", ">": "big"}[code[0]] + code[1:]
        file[name] = sample(np.dtype(code)).reshape(4, 3)
        file[f"{name}_scalar"] = np.array(sample(np.dtype(code))[0], code)
        file.attrs[name] = sample(np.dtype(code))
        file.attrs[f"{name}_scalar"] = sample(np.dtype(code))[1]


@held()
def long_double(file: Any) -> None:
    data = np.array([1 / np.longdouble(3), np.inf, np.nan, -0.0, np.longdouble(10) ** 4000], np.longdouble)
    file["x"] = data
    file["scalar"] = data[0]
    file["chunked"] = file["x"][()]
    file.create_dataset("packed", data=data, chunks=(2,), compression="gzip")
    file.attrs["x"] = data
    file.attrs["scalar"] = data[4]


@held()
def complex_long_double(file: Any) -> None:
    file["x"] = np.array([1 + 2j, np.longdouble(1) / 3], np.clongdouble)
    file.attrs["x"] = np.clongdouble(1 - 2j)


@held()
def exact_bits(file: Any) -> None:
    for name, (bits, code) in BITS.items():
        file[name] = bits.view(code)
        file.attrs[name] = bits.view(code)
        file.create_dataset(f"{name}_packed", data=bits.view(code), chunks=(2,), compression="gzip", shuffle=True)


def float_type(size: int, sign: int, exponent: tuple[int, int], mantissa: tuple[int, int], bias: int) -> Any:
    """An HDF5 float with its own fields: (position, bits) of exponent and mantissa."""
    kind = h5t.IEEE_F64LE.copy()
    kind.set_fields(sign, *exponent, *mantissa)
    kind.set_ebias(bias)
    kind.set_precision(sign + 1)
    kind.set_size(size)
    return kind


def create(file: Any, name: str, kind: Any, shape: tuple[int, ...] | None, data: Any = None, memory: Any = None) -> Any:
    """A dataset of any HDF5 type, written through a memory type."""
    space = h5s.create(h5s.NULL) if shape is None else h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)
    made = h5d.create(file.id, name.encode(), kind, space)
    if data is not None:
        made.write(h5s.ALL, h5s.ALL, data, memory)
    return made


@held()
def bfloat16(file: Any) -> None:
    kind = float_type(2, 15, (7, 8), (0, 7), 127)
    values = np.array([1.5, -2.0, np.inf, 3e38, 1e-40, 0.1], "<f4")
    create(file, "x", kind, (6,), values)
    create(file, "scalar", kind, (), values[:1].reshape(()))
    made = h5a.create(file.id, b"x", kind, h5s.create_simple((6,)))
    made.write(values)


@held()
def odd_floats(file: Any) -> None:
    values = np.array([1.5, -2.0, 0.25, 3.0], "<f8")
    create(file, "f24", float_type(3, 23, (16, 7), (0, 16), 63), (4,), values)
    create(file, "f8e4m3", float_type(1, 7, (3, 4), (0, 3), 7), (4,), values)
    create(file, "f8e5m2", float_type(1, 7, (2, 5), (0, 2), 15), (2, 2), values)


@held()
def odd_integers(file: Any) -> None:
    kind = h5t.STD_I32LE.copy()
    kind.set_precision(12)
    kind.set_offset(4)
    create(file, "i12_in_32", kind, (5,), np.array([1, -2, 2047, -2048, 0], "<i4"))
    create(file, "bitfield", h5t.STD_B8LE, (4,), np.array([1, 0, 255, 3], "u1"), h5t.STD_B8LE)
    create(file, "bitfield16", h5t.STD_B16BE, (3,), np.array([1, 0, 513], "<u2"), h5t.STD_B16LE)


@held()
def booleans(file: Any) -> None:
    file["x"] = np.array([[True, False], [False, True]])
    file["scalar"] = np.bool_(True)
    file["empty"] = np.zeros((0, 3), bool)
    file.attrs["x"] = np.array([True, False])
    file.attrs["scalar"] = True
    file.create_dataset("packed", data=np.arange(100) % 3 == 0, chunks=(7,), compression="lzf")


@held()
def enums(file: Any) -> None:
    file.create_dataset("colour", data=np.array([0, 1, 200, 7], "u1"), dtype=COLOUR)
    file.create_dataset("colour_scalar", data=np.uint8(1), dtype=COLOUR)
    file.create_dataset("big", data=np.array([[-3, 2**40]]), dtype=WEEKDAY)
    file.create_dataset("packed", data=np.arange(10) % 3, dtype=COLOUR, chunks=(4,), compression="gzip")
    file.create_dataset("none", shape=(0,), dtype=COLOUR)
    file.attrs.create("colour", np.array([0, 200]), dtype=COLOUR)
    file.attrs.create("one", 1, dtype=WEEKDAY)


@held()
def compounds(file: Any) -> None:
    for name, dtype in {"nested": NESTED, "padded": PADDED, "shuffled": SHUFFLED}.items():
        data = np.zeros(6, dtype)
        for field in dtype.names or ():
            part = data[field]
            part[...] = np.arange(part.size).reshape(part.shape) if part.dtype.names is None else part
        file[name] = data
        file[f"{name}_2d"] = data.reshape(2, 3)
        file[f"{name}_scalar"] = data[1]
        file[f"{name}_none"] = data[:0]
        file.create_dataset(f"{name}_packed", data=data, chunks=(4,), compression="gzip")
        file.attrs[name] = data
        file.attrs[f"{name}_scalar"] = data[2]


@held()
def arrays_of_arrays(file: Any) -> None:
    inner = h5t.array_create(h5t.STD_I16BE, (2,))
    for name, kind in {"one": inner, "two": h5t.array_create(inner, (3,))}.items():
        data = np.arange(6 * kind.get_size(), dtype="u1").view(">i2")
        create(file, name, kind, (6,), data, kind)
        create(file, f"{name}_scalar", kind, (), data[: kind.get_size() // 2], kind)
    file.create_dataset("in a compound", data=np.zeros(3, [("a", (np.dtype(("<f4", (2,))), (3,)))]))


@held()
def compound_with_padding_bytes(file: Any) -> None:
    file["x"] = sample(PADDED)
    file.create_dataset("packed", data=sample(PADDED), chunks=(5,), compression="gzip")
    file.attrs["x"] = sample(PADDED)


@held()
def compound_of_odd_parts(file: Any) -> None:
    when = h5py.opaque_dtype("<M8[s]")
    data = np.zeros(3, [("on", "?"), ("z", "<c16"), ("raw", "V5"), ("ld", np.longdouble), ("when", when)])
    data["on"], data["z"], data["when"] = True, 1 + 2j, np.datetime64(5, "s")
    file.create_dataset("x", data=data)
    file.create_dataset("utf8", data=np.zeros(2, [("name", h5py.string_dtype("utf-8", 8))]))
    file["single"] = np.zeros(4, [("only", "<f4")])
    file["odd names"] = np.zeros(2, [("r", "<f8"), ("ü x", "<f8"), ("a/b", "u1")])


@held()
def fixed_strings(file: Any) -> None:
    file["s"] = np.array([b"", b"a", b"abcd\xff", b"in\0er"], "S5")
    file["scalar"] = np.bytes_(b"one")
    file.create_dataset("utf8", data=["é".encode(), "日本".encode()], dtype=h5py.string_dtype("utf-8", 6))
    file.create_dataset("ascii", data=[b"x", b"yz"], dtype=h5py.string_dtype("ascii", 4))
    file.create_dataset("none", shape=(0, 2), dtype="S4")
    file.create_dataset("packed", data=np.array([b"abc"] * 50, "S7"), chunks=(8,), compression="gzip", shuffle=True)
    file.attrs["s"] = np.array([b"abc", b"d"], "S3")
    file.attrs["scalar"] = np.bytes_(b"one")
    file.attrs.create("utf8", np.array("é".encode()), dtype=h5py.string_dtype("utf-8", 6))


@held()
def fixed_strings_by_padding(file: Any) -> None:
    for name, padding in PADDINGS.items():
        kind = h5t.C_S1.copy()
        kind.set_size(6)
        kind.set_strpad(padding)
        raw = np.array([b"abc   ", b"abcdef", b"a\0bcde", b"      ", b"\0\0\0\0\0\0"], "S6")
        create(file, name, kind, (5,), raw, kind)
        utf8 = kind.copy()
        utf8.set_cset(h5t.CSET_UTF8)
        create(file, f"{name}_utf8", utf8, (5,), raw, utf8)
        create(file, f"{name}_scalar", kind, (), raw[:1].reshape(()), kind)
        made = h5a.create(file.id, name.encode(), kind, h5s.create_simple((5,)))
        made.write(raw, kind)


@held()
def variable_strings(file: Any) -> None:
    file["x"] = np.array(["", "a", "é日本", "long " * 2000], TEXT)
    file["grid"] = np.array([["a", "bb"], ["", "cccc"], ["x", "y"]], TEXT)
    file["scalar"] = "one"
    file.create_dataset("ascii", data=[b"a", b"bc"], dtype=ASCII)
    file.create_dataset("not_utf8", data=np.array([b"\xff\xfe", b"ok\x80"], object), dtype=TEXT)
    file.create_dataset("never_written", shape=(3, 2), dtype=TEXT)
    file.create_dataset("none", shape=(0, 4), dtype=TEXT)
    file.create_dataset("one", shape=(1,), dtype=TEXT)
    file.create_dataset("deep", data=np.array(list("abcdefghijkl"), TEXT).reshape(2, 3, 2), dtype=TEXT)
    file.create_dataset("packed", data=["abc"] * 70, dtype=TEXT, chunks=(8,), compression="gzip")
    file.create_dataset("filled", shape=(4,), dtype=TEXT, fillvalue="nothing", chunks=(2,))
    file.attrs["one"] = "é"
    file.attrs["none"] = ""
    file.attrs["many"] = np.array(["a", "", "é"], TEXT)
    file.attrs["grid"] = np.array([["a", "b"]], TEXT)
    file.attrs.create("ascii", "abc", dtype=ASCII)
    file.attrs.create("not_utf8", np.array(b"\xff\xfe", object), dtype=TEXT)
    file.attrs.create("empty_array", np.array([], object), dtype=TEXT)


@held()
def variable_strings_many(file: Any) -> None:
    words = [f"word{i}" * (i % 5) for i in range(500)]
    file["x"] = np.array(words, TEXT)
    file["grid"] = np.array(words, TEXT).reshape(5, 4, 25)
    file["narrow"] = np.array(words, TEXT).reshape(250, 2)


@held()
def variable_lengths(file: Any) -> None:
    for code in ("<i4", "<f8", "<f2", "|u1", "<c8", "?", "S3", "V3"):
        dtype = h5py.vlen_dtype(np.dtype(code))
        made = file.create_dataset("v" + code.strip("<>|?"), shape=(4,), dtype=dtype)
        for i in range(3):
            made[i] = np.arange(i * 2).astype(code)
    file["odd"] = np.zeros(3, "u1")  # what comes after it is not aligned
    scalar = file.create_dataset("scalar", shape=(), dtype=h5py.vlen_dtype("<i8"))
    scalar[()] = np.arange(3)
    file.create_dataset("never", shape=(2, 2), dtype=h5py.vlen_dtype("<i4"))
    file.create_dataset("none", shape=(2, 0), dtype=h5py.vlen_dtype("<i4"))
    grid = file.create_dataset("grid", shape=(2, 3), dtype=h5py.vlen_dtype("<u2"), chunks=(1, 2), compression="gzip")
    for i in range(2):
        for j in range(3):
            grid[i, j] = np.arange(i + j)


@held()
def variable_lengths_of_compounds(file: Any) -> None:
    pair = np.dtype([("a", "<i4"), ("b", ">f8")])
    made = file.create_dataset("x", shape=(3,), dtype=h5py.vlen_dtype(pair))
    made[0] = np.array([(1, 2.0), (3, 4.0)], pair)
    made[2] = np.array([(5, 6.0)], pair)


@held()
def variable_lengths_of_enums(file: Any) -> None:
    made = file.create_dataset("x", shape=(2,), dtype=h5py.vlen_dtype(COLOUR))
    made[1] = np.array([0, 1, 200], "u1")


@held()
def variable_length_attributes(file: Any) -> None:
    many = np.empty(3, object)
    for i in range(3):
        many[i] = np.arange(i, dtype="<i4")
    file.attrs.create("many", many, dtype=h5py.vlen_dtype("<i4"))
    one = np.empty((), object)
    one[()] = np.arange(3, dtype="<i4")
    file.attrs.create("one", one, shape=(), dtype=h5py.vlen_dtype("<i4"))


@held()
def array_items(file: Any) -> None:
    for name, code in {"f4": "<f4", "big": ">i2", "c16": "<c16", "s": "S3"}.items():
        base: np.dtype[Any] = np.dtype(code)
        dtype = np.dtype((base, (2, 3)))
        made = file.create_dataset(name, shape=(4,), dtype=dtype)
        made[...] = sample(base, 24).reshape(4, 2, 3)
        scalar = file.create_dataset(f"{name}_scalar", shape=(), dtype=dtype)
        scalar[()] = sample(base, 6).reshape(2, 3)
        file.create_dataset(f"{name}_never", shape=(2, 2), dtype=dtype)
        packed = file.create_dataset(f"{name}_packed", shape=(5,), dtype=dtype, chunks=(2,), compression="gzip")
        packed[...] = sample(base, 30).reshape(5, 2, 3)


@held()
def array_items_of_compounds(file: Any) -> None:
    dtype = np.dtype((np.dtype([("a", "<i4"), ("b", ">f8")]), (2,)))
    made = file.create_dataset("x", shape=(3,), dtype=dtype)
    data = np.zeros((3, 2), dtype.subdtype[0] if dtype.subdtype else None)
    data["a"] = np.arange(6).reshape(3, 2)
    made[...] = data


@held()
def array_items_none(file: Any) -> None:
    file.create_dataset("x", shape=(0,), dtype=np.dtype(("<f4", (2,))))
    file.create_dataset("y", shape=(3, 0), dtype=np.dtype((">f4", (2,))))


@held()
def array_attributes(file: Any) -> None:
    file.attrs.create("x", np.arange(6, dtype="<f4").reshape(3, 2), shape=(3, 2), dtype=np.dtype(("<f4", (2,))))
    file.attrs.create("y", np.arange(2, dtype=">i4"), shape=(2,), dtype=np.dtype((">i4", (2,))))


@held()
def opaques(file: Any) -> None:
    file["raw"] = sample(np.dtype("V7"))
    file["raw_scalar"] = np.void(b"abc\0")
    file.attrs["raw"] = np.void(b"abc\0")
    file.attrs["raws"] = sample(np.dtype("V3"))
    for unit in ("Y", "D", "s", "ns", "25us"):
        when = np.array([0, 1, -5, 2**40], "<i8").view(f"<M8[{unit}]")
        span = np.array([0, 1, -5, 2**40], "<i8").view(f"<m8[{unit}]")
        file[f"when_{unit}"] = when.astype(h5py.opaque_dtype(when.dtype))
        file[f"span_{unit}"] = span.astype(h5py.opaque_dtype(span.dtype))
        file.attrs[f"when_{unit}"] = when.astype(h5py.opaque_dtype(when.dtype))
    file.create_dataset("scalar", data=np.array(7, "<M8[s]").astype(h5py.opaque_dtype("<M8[s]")))
    file.create_dataset("none", shape=(0,), dtype=h5py.opaque_dtype("<M8[s]"))
    file.create_dataset("packed", shape=(9,), dtype=h5py.opaque_dtype("<M8[s]"), chunks=(4,), compression="gzip")
    file.create_dataset("big", data=np.arange(3).astype(">M8[s]").astype(h5py.opaque_dtype(">M8[s]")))


@held()
def empty_shapes(file: Any) -> None:
    for shape in ((0,), (0, 3), (3, 0), (2, 0, 3), (0, 0)):
        name = "x".join(map(str, shape))
        file.create_dataset(f"f{name}", shape=shape, dtype="<f4")
        file.create_dataset(f"big{name}", shape=shape, dtype=">f4")
        file.create_dataset(f"c{name}", shape=shape, dtype=NESTED)
        file.attrs.create(f"f{name}", np.zeros(shape, "<f4")) if 0 not in shape else None
    file.create_dataset("grown", shape=(0, 3), maxshape=(None, 3), dtype="u1", compression="gzip")


@held(libver="latest")
def empty_shape_attributes(file: Any) -> None:
    file.attrs["f"] = np.zeros((0,), "<f4")
    file.attrs["g"] = np.zeros((2, 0), "S3")
    file.attrs["h"] = np.zeros((0, 3), NESTED)


@held()
def null_dataspaces(file: Any) -> None:
    for name, dtype in {
        "f4": "<f4", "big": ">i8", "s": "S5", "b": "?", "c": "<c16", "nested": NESTED, "text": TEXT, "enum": COLOUR,
        "vlen": h5py.vlen_dtype("<i4"), "when": h5py.opaque_dtype("<M8[s]"), "fixed": h5py.string_dtype("utf-8", 4),
    }.items():  # fmt: skip
        file[name] = h5py.Empty(dtype)
        file.attrs[name] = h5py.Empty(dtype)
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_fill_value(np.array(7, "<i4"))
    h5d.create(file.id, b"filled", h5t.STD_I32LE, h5s.create(h5s.NULL), plist)


@held()
def only_groups(file: Any) -> None:
    file.create_group("a/b/c")
    file.create_group("z")


@held()
def nothing(file: Any) -> None:
    del file


@held()
def hard_links(file: Any) -> None:
    file["a/x"] = np.arange(10)
    file["b"] = file["a/x"]
    file["c/d"] = file["a"]
    file["a/loop"] = file["a"]
    file["a/up"] = file["/"]
    file["Z"] = file["c"]


@held()
def soft_links(file: Any) -> None:
    file["data/x"] = np.arange(6).reshape(2, 3)
    file["absolute"] = h5py.SoftLink("/data/x")
    file["relative"] = h5py.SoftLink("data/x")
    file["data/sibling"] = h5py.SoftLink("x")
    file["data/dotted"] = h5py.SoftLink("./x")
    file["group"] = h5py.SoftLink("data")
    file["through"] = h5py.SoftLink("group/sibling")
    file["dangling"] = h5py.SoftLink("/nowhere/at/all")
    file["data/dangling"] = h5py.SoftLink("gone")
    file["self"] = h5py.SoftLink("self")
    file["one"] = h5py.SoftLink("two")
    file["two"] = h5py.SoftLink("/one")
    file["data/root"] = h5py.SoftLink("/")
    file["odd"] = h5py.SoftLink("data//x/")
    file["parent"] = h5py.SoftLink("data/../data/x")
    for i in range(20):
        file[f"chain/{i}"] = h5py.SoftLink(f"/chain/{i + 1}" if i < 15 else "/data/x")


@held()
def named_types(file: Any) -> None:
    file["t/f4"] = np.dtype("<f4")
    file["t/big"] = np.dtype(">i4")
    file["t/nested"] = NESTED
    file["t/colour"] = COLOUR
    file["t/text"] = TEXT
    file["t/vlen"] = h5py.vlen_dtype("<i4")
    file["t/when"] = h5py.opaque_dtype("<M8[s]")
    file["t/array"] = np.dtype(("<f4", (3,)))
    file["t/flag"] = np.dtype("?")
    file.create_dataset("x", data=np.zeros(3, NESTED), dtype=file["t/nested"])
    file["again"] = file["t/colour"]
    file["t/f4"].attrs["unit"] = "metre"


@held()
def fill_values(file: Any) -> None:
    file.create_dataset("never", shape=(5, 3), dtype="<i4", fillvalue=7)
    file.create_dataset("never_big", shape=(5,), dtype=">i4", fillvalue=7)
    file.create_dataset("never_zero", shape=(5,), dtype="<f8")
    file.create_dataset("chunked_never", shape=(5, 3), dtype="<f4", fillvalue=np.nan, chunks=(2, 2))
    sparse = file.create_dataset("sparse", shape=(10, 10), dtype="<i2", fillvalue=-1, chunks=(3, 4))
    sparse[3, 4] = 9
    file.create_dataset("resized", shape=(3,), maxshape=(None,), dtype="u1", fillvalue=5)[...] = 1
    file["resized"].resize((9,))
    file.create_dataset("text", shape=(2,), dtype="S4", fillvalue=b"ab")
    pair = np.dtype([("a", "<i4"), ("b", "<f4")])
    file.create_dataset("compound", shape=(2,), dtype=pair, fillvalue=np.array((1, 2.5), pair))
    file.create_dataset("enum", shape=(2,), dtype=COLOUR, fillvalue=np.array(200, COLOUR))
    file.create_dataset("bool", shape=(2,), dtype="?", fillvalue=True)
    file.create_dataset("scalar", shape=(), dtype="<i4", fillvalue=3)
    file.create_dataset("big_scalar", shape=(), dtype=">i4", fillvalue=3)
    file.create_dataset("zero_given", shape=(2,), dtype="<i4", fillvalue=0)
    file.create_dataset("written", data=np.arange(4.0), fillvalue=9.0)
    file.create_dataset("complex", shape=(2,), dtype="<c8", fillvalue=1 + 2j)


@held()
def filters(file: Any) -> None:
    data = np.arange(7 * 11 * 3, dtype="<u2").reshape(7, 11, 3)
    grown: dict[str, Any] = {"chunks": (2, 5, 2), "maxshape": (None, 20, 3)}
    chosen: dict[str, dict[str, Any]] = {
        "gzip": {"compression": "gzip"}, "gzip9": {"compression": 9}, "lzf": {"compression": "lzf"},
        "shuffle": {"shuffle": True}, "fletcher32": {"fletcher32": True}, "scaleoffset": {"scaleoffset": 0},
        "all": {"compression": "gzip", "shuffle": True, "fletcher32": True},
        "szip": {"compression": "szip", "compression_opts": ("nn", 8)}, "plain": {"chunks": (3, 4, 2)},
        "one": {"chunks": (7, 11, 3), "compression": "lzf", "shuffle": True},
    }  # fmt: skip
    for name, options in chosen.items():
        if name == "szip" and not h5py.h5z.filter_avail(h5py.h5z.FILTER_SZIP):
            continue
        file.create_dataset(name, data=data, **(grown | options))
        file.create_dataset(f"big_{name}", data=data.astype(">u2"), **({"chunks": (2, 5, 2)} | options))
    floats = np.linspace(0, 1, 50, dtype="<f4")
    file.create_dataset("scaled", data=floats, scaleoffset=2, chunks=(8,))
    file.create_dataset("auto", data=floats, chunks=True, compression="gzip")


@held()
def nbit(file: Any) -> None:
    kind = h5t.STD_I32LE.copy()
    kind.set_precision(17)
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk((4,))
    plist.set_filter(h5py.h5z.FILTER_NBIT)
    made = h5d.create(file.id, b"x", kind, h5s.create_simple((10,)), plist)
    made.write(h5s.ALL, h5s.ALL, np.arange(-5, 5, dtype="<i4"))


@held()
def skipped_filter_on_a_chunk(file: Any) -> None:
    made = file.create_dataset("x", shape=(8,), dtype="<i4", chunks=(4,), compression="gzip")
    made.id.write_direct_chunk((0,), np.arange(4, dtype="<i4").tobytes(), filter_mask=1)
    made[4:] = 5


@held()
def allocation(file: Any) -> None:
    for when, name in {h5d.ALLOC_TIME_EARLY: "early", h5d.ALLOC_TIME_LATE: "late", h5d.ALLOC_TIME_INCR: "incr"}.items():
        for layout in (h5d.CONTIGUOUS, h5d.CHUNKED):
            if when == h5d.ALLOC_TIME_INCR and layout == h5d.CONTIGUOUS:
                continue
            for fill in (h5d.FILL_TIME_ALLOC, h5d.FILL_TIME_NEVER, h5d.FILL_TIME_IFSET):
                plist = h5p.create(h5p.DATASET_CREATE)
                plist.set_layout(layout)
                if layout == h5d.CHUNKED:
                    plist.set_chunk((4,))
                plist.set_alloc_time(when)
                plist.set_fill_time(fill)
                if fill != h5d.FILL_TIME_NEVER:
                    plist.set_fill_value(np.array(3, "<i4"))
                path = f"{name}{layout}{fill}".encode()
                made = h5d.create(file.id, path, h5t.STD_I32LE, h5s.create_simple((10,)), plist)
                if fill == h5d.FILL_TIME_NEVER:
                    made.write(h5s.ALL, h5s.ALL, np.arange(10, dtype="<i4"))


@held()
def compact(file: Any) -> None:
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_layout(h5d.COMPACT)
    made = h5d.create(file.id, b"x", h5t.STD_I32LE, h5s.create_simple((5,)), plist)
    made.write(h5s.ALL, h5s.ALL, np.arange(5, dtype="<i4"))
    h5d.create(file.id, b"never", h5t.IEEE_F32BE, h5s.create_simple((5,)), plist)
    scalar = h5d.create(file.id, b"big_scalar", h5t.IEEE_F32BE, h5s.create(h5s.SCALAR), plist)
    scalar.write(h5s.ALL, h5s.ALL, np.array(2.5, ">f4"))


def _user_block(file: Any) -> None:
    file["x"] = np.arange(100, dtype="<f4")
    file["scalar"] = 5
    file["g/y"] = np.arange(7, dtype=">i2")
    file.create_dataset("never", shape=(4,), dtype="<i4", fillvalue=2)
    file.create_dataset("never_byte", shape=(1,), dtype="u1")
    file.create_dataset("packed", data=np.arange(9), chunks=(2,), compression="gzip")
    file["text"] = np.array(["a", "bc"], TEXT)


@held(userblock_size=512)
def user_block_512(file: Any) -> None:
    _user_block(file)


@held(userblock_size=1024)
def user_block_1024(file: Any) -> None:
    _user_block(file)


@held(userblock_size=4096, libver="latest")
def user_block_4096_contiguous(file: Any) -> None:
    file["x"] = np.arange(100, dtype="<f4")
    file["g/y"] = np.arange(7, dtype=">i2")


@held(track_order=True)
def tracked_order(file: Any) -> None:
    for name in ("z", "a", "m", "Z", "10", "9"):
        group = file.create_group(name, track_order=True)
        for child in ("zz", "b", "aa"):
            group[child] = np.arange(2)
        for key in ("zeta", "alpha", "mid"):
            group.attrs[key] = key
            file.attrs[name + key] = 1
    plain = file.create_group("plain", track_order=False)
    for child in ("zz", "b", "aa"):
        plain[child] = 1


def _ordinary(file: Any) -> None:
    for name in ("zebra", "apple", "mango"):
        file[f"{name}/data"] = np.arange(5, dtype="<f8")
        file[f"{name}/data"].attrs["unit"] = "m"
        file[name].attrs["n"] = 1
    file.create_dataset("packed", data=np.arange(100), chunks=(7,), compression="gzip", maxshape=(None,))


@held(libver="latest")
def latest(file: Any) -> None:
    _ordinary(file)


@held(libver="earliest")
def earliest(file: Any) -> None:
    _ordinary(file)


@held(libver=("v108", "v112"))
def middle(file: Any) -> None:
    _ordinary(file)


@held(fs_strategy="page", fs_persist=True)
def paged(file: Any) -> None:
    _ordinary(file)


@held(libver="latest")
def chunk_indexes(file: Any) -> None:
    file.create_dataset("single", data=np.arange(6), chunks=(6,))
    file.create_dataset("fixed", data=np.arange(60), chunks=(6,))
    file.create_dataset("extensible", data=np.arange(60), chunks=(6,), maxshape=(None,))
    file.create_dataset("tree", data=np.arange(60).reshape(6, 10), chunks=(2, 3), maxshape=(None, None))
    file.create_dataset("implicit", shape=(9,), chunks=(2,), dtype="<i4")


@held()
def virtual_inside(file: Any) -> None:
    file["a"] = np.arange(4, dtype="<i4")
    file["b"] = np.arange(4, 8, dtype="<i4")
    layout = h5py.VirtualLayout(shape=(3, 4), dtype="<i4")
    layout[0] = h5py.VirtualSource(".", "a", shape=(4,))
    layout[1] = h5py.VirtualSource(".", "b", shape=(4,))
    file.create_virtual_dataset("v", layout, fillvalue=-5)


@held()
def attributes_of_all(file: Any) -> None:
    group = file.create_group("g")
    group["x"] = np.arange(3)
    for node in (file, group, group["x"]):
        node.attrs["int"] = 5
        node.attrs["float"] = 2.5
        node.attrs["text"] = "é"
        node.attrs["list"] = [1, 2, 3]
        node.attrs["texts"] = ["a", "b"]
        node.attrs["bytes"] = b"abc"
        node.attrs["none"] = h5py.Empty("f")
        node.attrs["big"] = np.arange(4, dtype=">i2").reshape(2, 2)
        node.attrs["compound"] = np.array([(1, 2.0)], [("a", "<i4"), ("b", "<f4")])
        node.attrs["one_by_one"] = np.array([[1]])
        node.attrs["name with / and ü"] = 1


@held(libver="latest")
def dense_attributes(file: Any) -> None:
    for i in range(60):
        file.attrs[f"a{i:03}"] = np.arange(i)
    file.attrs["large"] = np.arange(20_000)


NAMES = (
    "with space", "ünï", "日本", "per%cent", "%41", "A", "a.b", "..dots", "__metadata__", "__dsmem__", "__x", "%5F_x",
    "new\nline", "tab\t", "quote\"'", "back\\slash", "n" * 300, "*", "[a]", "%25", "%", "%2541", "\x7f", "\x01",
    "\U0001f600",     "%5F_metadata__", "%5F_dsmem__", "e\u0301", "\u00e9", "-x", "~", "+", "a b",
)  # fmt: skip


@held()
def names(file: Any) -> None:
    for i, name in enumerate(NAMES):
        file[name] = np.full(2, i)
        file.create_group(f"group/{name}x").attrs[name] = i
        file[f"sub/{name}/y"] = i
    file["text/__dsmem__/offsets/x"] = np.array(["a"], TEXT)
    file["__dsmem__ "] = 1
    file["deep/__metadata__"] = 1


@held()
def names_of_helpers(file: Any) -> None:
    file["__dsmem__/offsets/text"] = np.arange(3)
    file["__dsmem__/offsets/x"] = np.arange(3)
    file["text"] = np.array(["a", "bc"], TEXT)
    file["x"] = np.array(["d", "ef"], TEXT)
    file["%5F_dsmem__/offsets/x"] = np.arange(4)


@held()
def names_not_utf8(file: Any) -> None:
    for i, name in enumerate((b"\xff\xfe", b"a\x80", b"\xc3", b"\xc3\xa9", b"%FF", b"\xed\xa0\x80", b"z\xff/\xfe")):
        if b"/" in name:
            file.create_group(name.partition(b"/")[0])
        file[name] = np.full(2, i)
    file[b"g\xff"] = h5py.SoftLink("a")
    file.attrs["x"] = 1
    made = h5a.create(file.id, b"at\xfft", h5t.STD_I32LE, h5s.create(h5s.SCALAR))
    made.write(np.array(5, "<i4"))


@held()
def many_small(file: Any) -> None:
    for i in range(150):
        file[f"g{i % 7}/d{i}"] = np.full(i % 5, i, "<i2")


@held()
def whole_pages(file: Any) -> None:
    file["odd"] = np.zeros(3, "u1")
    file["page"] = np.arange(4096, dtype="u1")
    file["pages"] = np.arange(8192, dtype="<f4").reshape(64, 128)
    file["f8"] = np.arange(5.0)
    file["u2"] = np.arange(5, dtype="<u2")
    file["c16"] = np.arange(3, dtype="<c16")
    file["big"] = np.arange(4096, dtype=">f8")
    file["text"] = np.array(["abc", "d"], TEXT)


@held()
def scales(file: Any) -> None:
    file["x"] = np.arange(3.0)
    file["x"].make_scale("x axis")


# What is refused: the absolute path (of an attribute: path@name), and a part of the reason.


@refused({"/x": "variable-length", "/g/y": "variable-length", "/@attr": "variable-length"})
def compound_with_text(file: Any) -> None:
    dtype = np.dtype([("a", "<i4"), ("t", TEXT)])
    file["x"] = np.array([(1, "a")], dtype)
    file["g/y"] = np.array([(1, "a")], dtype)
    file["ok"] = np.arange(3)
    file.attrs["attr"] = np.array([(1, "a")], dtype)


@refused({"/x": "variable-length"})
def compound_with_lists(file: Any) -> None:
    file.create_dataset("x", shape=(2,), dtype=np.dtype([("v", h5py.vlen_dtype("<i4"))]))
    file["ok"] = 1


@refused({"/x": "variable-length"})
def array_of_text(file: Any) -> None:
    file.create_dataset("x", shape=(2,), dtype=np.dtype((TEXT, (3,))))
    file["ok"] = np.arange(3)


@refused({"/refs": "eference", "/regions": "eference", "/@ref": "eference", "/ok@ref": "eference", "/null": "eference"})
def references(file: Any) -> None:
    file["ok"] = np.arange(5)
    refs = file.create_dataset("refs", shape=(2,), dtype=h5py.ref_dtype)
    refs[0] = file["ok"].ref
    regions = file.create_dataset("regions", shape=(1,), dtype=h5py.regionref_dtype)
    regions[0] = file["ok"].regionref[1:3]
    file.attrs["ref"] = file["ok"].ref
    file["ok"].attrs["ref"] = file["ok"].ref
    file["ok"].attrs["fine"] = 1
    file["null"] = h5py.Empty(h5py.ref_dtype)


@refused({"/x": "eference"})
def compound_with_reference(file: Any) -> None:
    file.create_dataset("x", shape=(2,), dtype=np.dtype([("r", h5py.ref_dtype), ("a", "<i4")]))
    file["ok"] = 1


@refused({"/y@DIMENSION_LIST": "eference", "/x@REFERENCE_LIST": "eference|variable"})
def attached_scales(file: Any) -> None:
    file["x"] = np.arange(3.0)
    file["y"] = np.arange(3.0)
    file["x"].make_scale("x axis")
    file["y"].dims[0].attach_scale(file["x"])


@refused({"/nested": "variable-length"})
def lists_of_lists(file: Any) -> None:
    file.create_dataset("nested", shape=(2,), dtype=h5py.vlen_dtype(h5py.vlen_dtype("<i4")))
    file["ok"] = 1


@refused({"/lists": "variable-length"})
def lists_of_text(file: Any) -> None:
    file.create_dataset("lists", shape=(2,), dtype=h5py.vlen_dtype(TEXT))
    file["ok"] = 1


@refused({"/away": "external link", "/g/away": "external link"})
def external_links(file: Any) -> None:
    file["away"] = h5py.ExternalLink("other.h5", "/x")
    file["g/away"] = h5py.ExternalLink("other.h5", "/x")
    file["g/ok"] = np.arange(3)


@refused({"/x": "external"})
def external_storage(file: Any) -> None:
    file.create_dataset("x", shape=(4,), dtype="<i4", external=[("raw.bin", 0, 16)])
    file["ok"] = 1


@refused({"/v": "virtual dataset over other files"})
def virtual_outside(file: Any) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="<i4")
    layout[:] = h5py.VirtualSource("other.h5", "a", shape=(4,))
    file.create_virtual_dataset("v", layout)
    file["ok"] = 1


@refused({"/t": "eference"})
def named_reference_type(file: Any) -> None:
    h5t.STD_REF_OBJ.copy().commit(file.id, b"t")
    file["ok"] = 1


@refused({"/x": "filter 305"})
def unknown_filter(file: Any) -> None:
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk((4,))
    plist.set_filter(305, h5py.h5z.FLAG_OPTIONAL, (1, 2))
    h5d.create(file.id, b"x", h5t.STD_I32LE, h5s.create_simple((8,)), plist)
    file["ok"] = 1


@refused({"/u24": "numpy lacks"})
def integers_of_three_bytes(file: Any) -> None:
    kind = h5t.STD_U32LE.copy()
    kind.set_precision(24)
    kind.set_size(3)
    create(file, "u24", kind, (3,), np.array([1, 2**24 - 1, 77], "<u4"))


@refused({"/tagged": "h5py can't read", "/@tagged": "h5py can't read"})
def tagged_opaque(file: Any) -> None:
    kind = h5t.create(h5t.OPAQUE, 5)
    kind.set_tag(b"my own tag")
    create(file, "tagged", kind, (3,), sample(np.dtype("V5"), 3), kind)
    made = h5a.create(file.id, b"tagged", kind, h5s.create_simple((3,)))
    made.write(sample(np.dtype("V5"), 3), kind)
    file["ok"] = 1


@refused({"/f8": "big-endian", "/@f8": "big-endian", "/null": "big-endian"})
def lists_of_big_endian(file: Any) -> None:
    made = file.create_dataset("f8", shape=(2,), dtype=h5py.vlen_dtype(">f8"))
    made[0] = np.ones(2, ">f8")
    file["null"] = h5py.Empty(h5py.vlen_dtype(">f8"))
    many = np.empty(1, object)
    many[0] = np.ones(2, ">f8")
    file.attrs.create("f8", many, dtype=h5py.vlen_dtype(">f8"))
    file["ok"] = 1


@refused({"/x": "numpy lacks", "/@x": "can't read|numpy"})
def time_type(file: Any) -> None:
    create(file, "x", h5t.UNIX_D32LE, (3,))
    h5a.create(file.id, b"x", h5t.UNIX_D32LE, h5s.create_simple((3,)))
    file["ok"] = 1
