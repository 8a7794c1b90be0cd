"""The filters of a dataset: their names, whether HDF5 can decode them here, and which package makes it so.

HDF5 itself loads plugins from where HDF5_PLUGIN_PATH says, else from system directories. What it does not find there is
looked for in the package hdf5plugin, which registers its filters when it is imported, and nowhere else.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from functools import cache
from typing import Any

from h5py import h5z

from dsmem.arrays.dtypes import UnsupportedType
from dsmem.hdf5.codecs import Filter

_NAMES = {
    1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset", 305: "lzo", 307: "bzip2",
    32000: "lzf", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32012: "jpegxr", 32013: "zfp", 32015: "zstd",
    32017: "sz", 32018: "fcidecomp", 32019: "jpeg", 32024: "sz3", 32026: "blosc2", 32028: "sperr", 32033: "htj2k",
}  # fmt: skip
_BUILT_IN = frozenset({1, 2, 3, 4, 5, 6, 32000})
_PACKAGE = "hdf5plugin"
_IN_PACKAGE = frozenset({307, 32001, 32004, 32008, 32013, 32015, 32017, 32018, 32024, 32026, 32028, 32033})
_log = logging.getLogger(__name__)


def filters_of(plist: Any) -> tuple[Filter, ...]:
    """The filters that a chunked dataset's creation properties list, in the order in which they were applied."""
    listed = (plist.get_filter(index) for index in range(plist.get_nfilters()))
    return tuple(Filter(code, tuple(values), _name(code, name)) for code, _, values, name in listed)


def check_installed(filters: tuple[Filter, ...]) -> None:
    """Raise UnsupportedType for the first filter that HDF5 can't decode here, with the package that has it."""
    for one in filters:
        if not _is_available(one.code):
            raise UnsupportedType(f"filter {one.code} ({one.name}) is not installed: {_help(one.code)}")


def _help(code: int) -> str:
    if code not in _IN_PACKAGE:
        return f"{_PACKAGE} lacks it, too; HDF5 takes a plugin of its own from HDF5_PLUGIN_PATH"
    if importlib.util.find_spec(_PACKAGE) is None:
        return f"pip install {_PACKAGE}"
    return f"{_PACKAGE} is there, but can't be imported, or is too old"


def origin(code: int) -> str | None:
    """Where the code of an available filter comes from: None = HDF5 itself, 'hdf5plugin', or 'a plugin of HDF5's'."""
    if code in _BUILT_IN:
        return None
    package = sys.modules.get(_PACKAGE)
    if package is not None:
        config = package.get_config()
        if code in {package.FILTERS[name] for name in config.registered_filters}:
            return _PACKAGE
    return "a plugin of HDF5's"


def package_is_loaded() -> bool:
    """Whether this process has the filters of hdf5plugin, so that one that helps it needs them too."""
    return _PACKAGE in sys.modules


def load_package() -> bool:
    """Register the filters of hdf5plugin; False where it is not installed, or can't be imported."""
    if importlib.util.find_spec(_PACKAGE) is None:
        return False
    try:
        importlib.import_module(_PACKAGE)
    except (ImportError, OSError, RuntimeError) as exc:
        _warn(str(exc))
        return False
    return True


@cache
def _warn(error: str) -> None:
    """Once, however many datasets need it."""
    _log.warning("%s is installed but can't be imported: %s", _PACKAGE, error)


def _is_available(code: int) -> bool:
    if h5z.filter_avail(code):
        return True
    if code not in _IN_PACKAGE or package_is_loaded():
        return False
    return load_package() and bool(h5z.filter_avail(code))


def _name(code: int, name: bytes) -> str:
    """A filter's usual name, else what the file calls it."""
    return _NAMES.get(code) or name.decode("utf-8", "replace") or "unknown"
