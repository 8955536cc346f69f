"""Changes to bytes, as damage and malice make them."""

from __future__ import annotations

from random import Random

#: numbers at which readers stumble
ODD = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


def one_value(data: bytes, random: Random, stop: int = 0) -> bytes:
    """
    Change one number.

    :param stop: byte before which it lies; 0: the end
    """
    changed = bytearray(data)
    width = random.choice((1, 2, 4, 8))
    at = random.randrange(max(1, (stop or len(data)) - width))
    number = random.choice((random.choice(ODD), random.randrange(2**64)))
    if random.random() < 0.3:  # a little more or less than it was
        number = int.from_bytes(data[at : at + width], 'little') + random.randint(-3, 3)
    changed[at : at + width] = (number % 2**64).to_bytes(8, 'little')[:width]
    return bytes(changed)


def mutated(data: bytes, random: Random, stop: int = 0) -> bytes:
    """Change numbers, or cut out, double, insert or cut off a piece."""
    for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
        what = random.random()
        a, b = sorted(random.randrange(len(data) + 1) for _ in range(2))
        if what < 0.7 or not data:
            data = one_value(data, random, stop) if data else b'?'
        elif what < 0.76:
            data = data[:a] + data[b:]
        elif what < 0.82:
            data = data[:b] + data[a : min(b, a + 4096)] + data[b:]
        elif what < 0.9:
            data = data[:a] + random.randbytes(random.randrange(64)) + data[a:]
        else:
            data = data[:b]
    return data


def text(random: Random, longest: int = 200) -> str:
    """Write text of many kinds: words, marks of templates and models, odd characters."""
    pieces = (
        *(
            'What is on the left? ',
            '你好，这是什么？',
            '🐶',
            'e\u0301\u0323',
            '\0',
            '\ufffd',
            '\u202e',
        ),
        *('<|im_start|>', '<|im_end|>', '<image>', '<img>', '</s>', '{{ x }}', '{% for %}', '"\\'),
        *("'", ' ', '\n', 'a' * 50, '\t' * 20),
    )
    return ''.join(random.choice(pieces) for _ in range(random.randrange(longest // 10)))
