"""The seed contract of docs/api.md, one value at a time in Python's own integers: what numpy's arrays must equal."""

import math


def uniforms(seed: int, purpose: int, *, row: int, draw: int, block: int) -> tuple[float, float]:
    """u and v of a block."""
    words = _philox([block, draw, row, purpose], [seed % 2**32, seed // 2**32])
    u = ((words[0] * 2**32 + words[1]) // 2**11 + 1) / 2**53
    v = ((words[2] * 2**32 + words[3]) // 2**11) / 2**53
    return u, v


def normal(seed: int, purpose: int, *, row: int, draw: int, element: int) -> float:
    """A normal before it is rounded to float32."""
    u, v = uniforms(seed, purpose, row=row, draw=draw, block=element // 2)
    turn = math.cos if element % 2 == 0 else math.sin
    return math.sqrt(-2 * math.log(u)) * turn(2 * math.pi * v)


def _philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 as the paper writes it: a round multiplies two words and swaps in the others' high halves."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c
