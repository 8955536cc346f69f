"""
Image files without the notes in them: texts, colour profiles, thumbnails.

Pillow refuses a PNG for a long text or profile, and a JPEG for some broken ones, although the
picture is whole. Knows the outer form of PNG and JPEG and no pixels; what it does not understand
it leaves as it is.
"""

from __future__ import annotations

PNG = b'\x89PNG\r\n\x1a\n'
#: What the picture itself is made of, and the orientation.
PNG_KEPT = (b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND', b'eXIf')

JPEG = b'\xff\xd8'
START_OF_SCAN, APP0, APP1, APP14, APP15, COMMENT = 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
#: Segments without a length.
BARE = (0x01, *range(0xD0, 0xD9))


def without_notes(data: bytes) -> bytes:
    """Leave out what is no part of the picture; only orientation and colour transform stay."""
    if data.startswith(PNG):
        return _png(data)
    if data.startswith(JPEG):
        return _jpeg(data)
    return data


def _png(data: bytes) -> bytes:
    kept, start, at, seen = [PNG], len(PNG), len(PNG), 0
    while at + 12 <= len(data):
        size, name = int.from_bytes(data[at : at + 4], 'big'), data[at + 4 : at + 8]
        end = at + 12 + size
        if name not in PNG_KEPT:
            if not name.isalpha() or name[0:1].isupper() or end > len(data):
                break  # a chunk that a reader must understand, or damage: for Pillow to judge
            kept.append(data[start:at])
            start, seen = end, seen + 1
        at = end
    return b''.join([*kept, data[start:]]) if seen else data


def _jpeg(data: bytes) -> bytes:
    kept, start, at, seen = [JPEG], 2, 2, 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in BARE:
            at += 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
        if marker == START_OF_SCAN or end > len(data):
            break
        exif = marker == APP1 and data[at + 4 : at + 8] == b'Exif'
        note = APP0 < marker <= APP15 and marker != APP14 or marker == COMMENT
        if note and not exif:
            kept.append(data[start:at])
            start, seen = end, seen + 1
        at = end
    return b''.join([*kept, data[start:]]) if seen else data
