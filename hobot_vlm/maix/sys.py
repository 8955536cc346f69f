"""Memory of the machine, as MaixPy reports it."""

from __future__ import annotations

from ..machine import memory_bytes, resident_bytes


def memory_info() -> dict[str, int]:
    """Give bytes: ``total`` and ``used`` of the machine, ``process`` of this program."""
    total, free = memory_bytes()
    return {'total': total, 'used': total - free, 'process': resident_bytes()}


def bytes_to_human(size: float) -> str:
    """Give a number of bytes with a unit."""
    for unit in ('B', 'KB', 'MB', 'GB'):
        if size < 1024:
            return f'{size:.2f} {unit}'
        size /= 1024
    return f'{size:.2f} TB'
