"""PNG files written chunk by chunk, for those that no library would write."""

import struct
import zlib

import numpy as np

#: PNG's colour types by the number of channels.
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def chunk(name: bytes, data: bytes) -> bytes:
    """One chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(pixels: np.ndarray, *extra: bytes, palette: bytes = b"") -> bytes:
    """Pixels (rows, columns[, channels]) uint8 or uint16 as a PNG file; `extra` are chunks before the pixels.

    palette: RGB triples; then the pixels are places in it.
    """
    rows, columns = pixels.shape[:2]
    depth = 8 * pixels.dtype.itemsize
    kind = 3 if palette else COLOUR_TYPES[pixels.shape[2] if pixels.ndim == 3 else 1]
    lines = pixels.astype(f">u{depth // 8}").reshape(rows, -1)
    data = b"".join(b"\0" + line.tobytes() for line in lines)  # 0: no filter
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, depth, kind, 0, 0, 0))
    parts = [chunk(b"PLTE", palette)] if palette else []
    parts += [*extra, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(parts)
