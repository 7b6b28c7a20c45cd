"""Values and bytes that readers tend to stumble over."""

from __future__ import annotations

import random

NUMBERS = (0, 1, -1, 2, 3, 255, 2**31 - 1, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e-320, 1e308)
WORDS = ("", " ", "null", "~", "true", "false", "yes", "nan", ".nan", "inf", ".inf", "-.inf",
         "1e999", "1e3", "0x10", "0o17", "0b1", "1_000", "1:30", "2024-01-01", "\u00b2", "\u0661",
         "9" * 5000, "a" * 100_000, "../../x", "/dev/zero", "\x00", "caf\u00e9", "\ud7ff", "\u2028",
         "{", "[", "*a", "&a x", "!!int abc", "!!python/name:os.system", "- 1", "? x", "|", ">",
         "'", '"', "%", "@", "`", "#", "<<", "resnest50", "resnest50_9999s1x64d",
         "resnest50_1s99x99d", "resnest269_fast_4s2x40d", "resnest" + "9" * 400)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut, doubled, put in or taken out."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        at = rng.randrange(len(content) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[at:at] = rng.choice(WORDS).encode("utf-8", "surrogatepass")
        elif kind == 2:
            del content[at:at + rng.choice((1, 4, 30))]
        elif kind == 3:
            content[at:at] = content[at:at + 200] * rng.choice((1, 2, 50))
        elif kind == 4 and rng.random() < 0.3:
            del content[at:]
        else:
            content[at:at] = bytes([rng.choice((0, 9, 10, 13, 32, 45, 58, 91, 123, 255))])
    return bytes(content)
