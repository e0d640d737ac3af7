"""Change bytes: repair CRCs, and mutate without libFuzzer."""

from __future__ import annotations

import random
import zlib

from pillow_sdz import container

# Values at which encodings change, as in libFuzzer and AFL.
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]
MAX_MUTATIONS = 8  # at once; chosen: files with many mutations are mostly refused early


def repaired(data: bytes) -> bytes:
    """Repair the CRC of every whole chunk, so that the code behind the CRC check runs."""
    out = bytearray(data)
    at = len(container.SIGNATURE)
    while at < len(out):
        length = shift = 0
        while at < len(out):
            byte = out[at]
            length |= (byte & 0x7F) << shift
            shift += 7
            at += 1
            if byte < 0x80:
                break
        end = at + 4 + length
        if end + 4 > len(out):
            break
        out[end : end + 4] = zlib.crc32(out[at:end]).to_bytes(4, "big")
        at = end + 4
    return bytes(out)


def mutated(rng: random.Random, corpus: list[bytes]) -> bytes:
    """Take an input of the corpus and change, remove, repeat or replace a few of its bytes."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.randint(1, MAX_MUTATIONS)):
        at = rng.randrange(len(data) + 1)
        length = rng.randint(1, 1 << rng.randint(0, 6))
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            number, width = rng.choice(INTERESTING), rng.choice((1, 2, 4))
            data[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, "big")
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length] * rng.randint(1, 4)
        elif kind == 5:
            other = rng.choice(corpus)
            start = rng.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + length]
        elif kind == 6 and rng.random() < 0.1:
            del data[at:]
    return bytes(data)
