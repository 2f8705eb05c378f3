"""A writer of tiny EER movies: electrons run-length coded in the pages of a TIFF."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FLIP = 0b1010
"""The upper bit of each sub-pixel coordinate is stored inverted."""


def encode(electrons: NDArray[np.int64], shape: tuple[int, int], run_bits: int) -> bytes:
    """One frame. `electrons` (n, 2): row and column in quarters of a pixel of `shape`, no two in one pixel.

    `run_bits` 7 (TIFF compression 65001) or 8 (65000, where the sub-pixel bits follow a full run as well).
    """
    row, column = electrons[:, 0], electrons[:, 1]
    position = (row // 4) * shape[1] + column // 4
    sub = ((row % 4) << 2 | column % 4) ^ FLIP
    order = np.argsort(position)
    full, bits, at = (1 << run_bits) - 1, [], 0

    def put(value: int, count: int) -> None:
        bits.extend((value >> i) & 1 for i in range(count))

    ends = [*zip(position[order], sub[order], strict=True), (shape[0] * shape[1], 0)]
    for place, code in ends:
        run = int(place) - at
        while run >= full:
            put(full, run_bits)
            if run_bits == 8:
                put(0, 4)
            run -= full
        put(run, run_bits)
        put(int(code), 4)
        at = int(place) + 1
    data = np.packbits(np.array(bits, dtype=np.uint8), bitorder="little").tobytes()
    return data + bytes(-len(data) % 3 + 9)


def write_eer(
    path: str | Path,
    frames: list[NDArray[np.int64]],
    shape: tuple[int, int],
    run_bits: int = 7,
    promised: int | None = None,
) -> None:
    """Write frames of electrons as EER, a BigTIFF of one strip a page; `promised` frames in its header."""
    out = bytearray(b"II" + struct.pack("<HHHQ", 43, 8, 0, 0))
    link = 8
    xml = f'<metadata><item name="numberOfFrames">{promised}</item></metadata>'.encode() if promised else b""
    xml_at = len(out)
    out += xml + bytes(len(xml) % 2)
    for number, electrons in enumerate(frames):
        data = encode(electrons, shape, run_bits)
        data_at = len(out)
        out += data + bytes(len(data) % 2)
        tags = [(256, 4, 1, shape[1]), (257, 4, 1, shape[0]), (258, 3, 1, 1)]
        tags += [(259, 3, 1, 65001 if run_bits == 7 else 65000), (262, 3, 1, 1), (273, 4, 1, data_at), (277, 3, 1, 1)]
        tags += [(278, 4, 1, shape[0]), (279, 4, 1, len(data))]
        if xml and number == 0:
            tags.append((65001, 7, len(xml), xml_at))
        out[link : link + 8] = struct.pack("<Q", len(out))
        out += struct.pack("<Q", len(tags)) + b"".join(struct.pack("<HHQQ", *tag) for tag in tags)
        link = len(out)
        out += struct.pack("<Q", 0)
    Path(path).write_bytes(bytes(out))
