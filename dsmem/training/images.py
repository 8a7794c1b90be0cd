"""Encoded frames, as episodes hold them, decoded with imagecodecs; it releases the GIL."""

from __future__ import annotations

from typing import Any

import imagecodecs
import numpy as np

from dsmem.errors import BadSource

Array = np.ndarray[Any, np.dtype[Any]]
_codecs: Any = imagecodecs
_MAGIC = ((b"\xff\xd8\xff", "jpeg8"), (b"\x89PNG\r\n\x1a\n", "png"), (b"RIFF", "webp"))
"""First bytes → codec: ITU T.81 B.1.1.3, RFC 2083 3.1, RFC 9649 2.4."""


def decoded(data: Array, label: str) -> Array:
    """A frame [height, width, channels] of uint8, red first, as the encoded picture says; grey ones have one channel.

    `data`: uint8, the picture, zeros after it allowed. Raises BadSource, which names `label`.
    """
    raw = data.tobytes()
    codec = next((codec for magic, codec in _MAGIC if raw.startswith(magic)), None)
    if codec is None:
        raise BadSource(f"{label}: neither JPEG, PNG nor WebP: it begins with {raw[:8].hex() or 'nothing'}")
    try:
        image: Array = getattr(_codecs, f"{codec}_decode")(raw)
    except (RuntimeError, ValueError) as exc:  # every codec of imagecodecs has an error of its own below RuntimeError
        raise BadSource(f"{label}: a damaged {codec.rstrip('8').upper()}: {exc}") from exc
    return image if image.ndim == 3 else image[:, :, None]
