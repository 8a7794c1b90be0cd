"""Bytes, times and rates as people read and type them. IEC units out; IEC and SI in."""

from __future__ import annotations

import re

from dsmem.errors import UsageError

_IEC = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgtp])(i?)b?|b)?\s*", re.IGNORECASE)
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h|d|w)\s*", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def format_bytes(size_bytes: int) -> str:
    """1536 → '1.5 KiB'; whole numbers below 1 KiB."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in _IEC:
        if value < 999.95 or unit == _IEC[-1]:
            break
        value /= 1024
    return f"{value:.1f} {unit}"


def parse_bytes(text: str) -> int:
    """'40GiB' → 42949672960, '5GB' → 5000000000, '4k' → 4000; raises UsageError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a size; write 512MiB, 40GiB or 5GB")
    number, prefix, binary = match.groups()
    scale = 1 if prefix is None else (1024 if binary else 1000) ** ("kmgtp".index(prefix.lower()) + 1)
    return int(float(number) * scale)


def format_rate(size_bytes: int, elapsed_s: float) -> str:
    """GB/s (10^9), the unit in which memory and disks are sold; MB/s below a tenth of that."""
    bytes_per_s = size_bytes / max(elapsed_s, 1e-9)
    return f"{bytes_per_s / 1e9:.2f} GB/s" if bytes_per_s >= 1e8 else f"{bytes_per_s / 1e6:.3g} MB/s"


def format_duration(elapsed_s: float) -> str:
    """Three digits or so: '210 µs', '4.2 ms', '3.1 s', '2 min 05 s', '3 h 12 min', '2 d 4 h'."""
    if elapsed_s < 0.001:
        return f"{elapsed_s * 1e6:.0f} µs"
    if elapsed_s < 1:
        return f"{elapsed_s * 1e3:.3g} ms"
    if elapsed_s < 60:
        return f"{elapsed_s:.1f} s"
    minutes, seconds = divmod(round(elapsed_s), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def parse_duration(text: str) -> float:
    """'2d' → 172800.0 seconds; raises UsageError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a duration; write 30m, 12h or 2d")
    return float(match[1]) * _SECONDS[match[2].lower()]
