"""Where tensors lie: one after the other without a gap, each aligned, whole pages on pages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dsmem.arrays import dtypes
from dsmem.arrays.header import ITEM_BYTES, PAGE_BYTES, shape_bytes
from dsmem.arrays.layout import UNKNOWN, Planned, place, placed

ALIGNED = {code: ITEM_BYTES[code] for code in ("BOOL", "U8", "I16", "F16", "F32", "U32", "F64", "I64", "C64")}


@st.composite
def planned(draw: st.DrawFn) -> list[Planned]:
    found: list[Planned] = []
    for i in range(draw(st.integers(0, 12))):
        if draw(st.booleans()):
            code = draw(st.sampled_from(sorted(ALIGNED)))
            item: tuple[int, ...] = ()
            align = ALIGNED[code]
        else:
            code, item = "U8", (draw(st.integers(1, 48)),)
            align = min(item[0] & -item[0], 16)
        unknown = draw(st.integers(0, 5)) == 0
        side = st.one_of(st.integers(0, 9), st.sampled_from([512, 1024, 4096, 4097]))
        shape = tuple(draw(st.lists(side, max_size=2)))
        found.append(Planned(f"t{i}", code, None if unknown else (*shape, *item), align))
    return found


@given(planned())
def test_no_gaps_and_all_aligned(tensors: list[Planned]) -> None:
    found = place(tensors)
    order = found.order.tolist()
    assert sorted(order) == list(range(len(tensors)))
    offset = 0
    for number in order[: found.known]:
        want, begin, size_bytes = tensors[number], int(found.begins[number]), int(found.sizes[number])
        assert begin == offset
        assert want.shape is not None and size_bytes == shape_bytes(want.dtype, want.shape)
        assert begin % want.align == 0
        if size_bytes and size_bytes % PAGE_BYTES == 0:
            assert begin % PAGE_BYTES == 0
        offset += size_bytes
    assert offset == found.end
    unknown = [tensors[number] for number in order[found.known :]]
    assert all(one.shape is None for one in unknown)
    assert (found.begins[order[found.known :]] == UNKNOWN).all() and (
        found.sizes[order[found.known :]] == UNKNOWN
    ).all()
    assert [one.align for one in unknown] == sorted((one.align for one in unknown), reverse=True)
    named = placed([one for one in tensors if one.shape is not None])
    assert [(one.begin, one.end) for one in named.values()] == [
        (int(found.begins[number]), int(found.begins[number] + found.sizes[number])) for number in order[: found.known]
    ]
    assert list(named) == [tensors[number].name for number in order[: found.known]]


def test_variable_length_values_start_aligned_too() -> None:
    """They follow the offsets (int64) and each other, in falling alignment: but what varies has to end aligned."""
    known = [Planned("offsets", "I64", (3,), 8), Planned("bytes", "U8", (8,), 1)]
    values = [Planned("text", "U8", None, 1), Planned("f8", "F64", None, 8), Planned("i2", "I16", None, 2)]
    tensors = [*values, *known]
    found = place(tensors)
    assert [tensors[number].name for number in found.order] == ["offsets", "bytes", "f8", "i2", "text"]
    assert found.known == 2 and found.end == 32


def test_the_carrier_gives_the_alignment() -> None:
    import numpy as np

    assert dtypes.carrier(np.dtype("<c16")).align == 8
    assert dtypes.carrier(np.dtype("V48")).align == 16
    assert dtypes.carrier(np.dtype("V12")).align == 4
