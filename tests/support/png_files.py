"""PNG files of every kind, chunk by chunk: what no common library writes."""

import struct
import zlib

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6


def png(
    values: np.ndarray, kind: int, bits: int, *, interlaced: bool = False, palette: bytes = b"", alpha: bytes = b""
) -> bytes:
    """A PNG of values (rows, columns[, channels]); interlaced ones must be 2 x 2. alpha: a palette's tRNS chunk."""
    rows = values.astype(">u2" if bits == 16 else "u1")
    parts = [rows[:1, :1], rows[:1, 1:], rows[1:]] if interlaced else [rows]  # Adam7's passes 1, 6 and 7 of 2 x 2
    data = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, kind, 0, 0, int(interlaced))
    chunks = [(b"IHDR", header), (b"PLTE", palette), (b"tRNS", alpha), (b"IDAT", zlib.compress(data))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks if chunk[1]) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
