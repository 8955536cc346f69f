"""
Pictures at the places that a prompt gives them: ``<image>``, as the model cards write it.

A text has a mark for each picture, or a single one for all of them. A text without marks has its
pictures where the family puts them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..errors import PromptError
from ..families import Family
from ..values import ImageEmbedding, Part

MARK = '<image>'


def place(
    family: Family, controls: Collection[str], text: str, items: Sequence[Sequence[ImageEmbedding]]
) -> list[Part] | None:
    """
    Put pictures and videos at the marks of a text.

    :param items: a picture, or all frames of a video
    :return: text and pictures in order; None where the text has no mark
    :raises PromptError: there are as many marks neither as items nor as pictures and frames
    """
    texts = text.split(MARK)
    marks = len(texts) - 1
    if not marks:
        return None
    images = [image for item in items for image in item]
    if marks == len(items):
        shown = [_one(family, controls, item) for item in items]
    elif marks == len(images):
        shown = [[family.spans(image, controls)] for image in images]
    elif marks == 1:
        shown = [family.combined(images, controls)]
    else:
        raise PromptError(
            f'the prompt has {marks} marks {MARK}, and {len(images)} pictures are shown with it: '
            'write one mark for each, a single one for all of them, or none'
        )
    parts: list[Part] = [texts[0]]
    for pictures, after in zip(shown, texts[1:], strict=True):
        parts += [*pictures, after]
    return [part for part in parts if part]


def _one(family: Family, controls: Collection[str], item: Sequence[ImageEmbedding]) -> list[Part]:
    """Write a picture or a video."""
    if item[0].seconds is None:
        return [family.spans(item[0], controls)]
    times = [frame.seconds or 0.0 for frame in item]
    return family.video(item, times, item[0].duration, controls)
