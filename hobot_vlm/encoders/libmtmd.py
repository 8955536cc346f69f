"""
libmtmd, the library of llama.cpp for pictures, or a message of how to get it.

Knows nothing of what is done with it.
"""

from __future__ import annotations

from ..errors import BackendMissing

try:
    from llama_cpp import mtmd_cpp as mtmd
except (ImportError, OSError) as exc:
    raise BackendMissing(
        'this llama-cpp-python has no libmtmd',
        'install llama-cpp-python 0.3.36 '
        'or later with its default settings, or use an ONNX encoder',
    ) from exc

__all__ = ['mtmd']
