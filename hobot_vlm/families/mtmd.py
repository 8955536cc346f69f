"""
Any other model: libmtmd cuts its pictures, and says what stands around them.

Knows nothing of a maker; what the encoder says is put in order. There is no system prompt but the
one that the chat template writes.
"""

from __future__ import annotations

from collections.abc import Collection

from . import Family
from ..values import ImageEmbedding, Span, TileSpan


class Libmtmd(Family):
    """Pictures as libmtmd lays them out, one after the other before the question."""

    name = 'mtmd'
    model_type = 2
    default_fit = 'fill'
    marks = 'none: known by its encoder'

    def knows(self, controls: Collection[str]) -> bool:
        """Any vocabulary may be of such a model, and none tells."""
        return False

    def spans(self, image: ImageEmbedding, controls: Collection[str]) -> list[Span]:
        return [TileSpan(image, part) if isinstance(part, int) else part for part in image.layout]
