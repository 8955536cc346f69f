"""
SmolVLM and SmolVLM2: the picture enlarged to a grid of tiles, and the global picture.

Knows the family's pixels and prompts; nothing of files or runtimes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
import math

from . import TileFamily
from ..image.resize import cut, LANCZOS, place, resize
from ..values import Control, ImageEmbedding, ImageTiles, Part, Pixels, Span, Text, TileSpan

#: The longest edge is brought to this many tiles.
TILES_PER_EDGE = 4

#: What the makers write around the frames of a video, word for word: the model was trained on it.
VIDEO_INTRO = (
    'You are provided the following series of {frames} frames from a {duration} [H:MM:SS] video.\n'
)
FRAME_INTRO = '\nFrame from {minutes:02d}:{seconds:02d}:'
VIDEO_OUTRO = '\n\n'

ONES = (
    'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen '
    'fifteen sixteen seventeen eighteen nineteen'
).split()
TENS = 'twenty thirty forty fifty sixty seventy eighty ninety'.split()

AROUND, GLOBAL = '<fake_token_around_image>', '<global-img>'


class SmolVLM(TileFamily):
    """Tiles row by row, then the global picture; or the global picture alone."""

    name = 'smolvlm'
    model_type = 1
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)
    default_fit = 'fill'
    marks = f'{AROUND} {GLOBAL}'
    image_mark = '<image>'
    # no space after "User:" where a picture comes first
    template = (
        "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
        "{{ '' if message['content'][0]['type'] == 'image' else ' ' }}"
        "{% for part in message['content'] %}"
        "{{ part['text'] if part['type'] == 'text' else '<image>' }}{% endfor %}"
        "<end_of_utterance>{{ '\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:"
        '{% endif %}'
    )

    def knows(self, controls: Collection[str]) -> bool:
        return AROUND in controls and GLOBAL in controls

    def spans(self, image: ImageEmbedding, controls: Collection[str]) -> list[Span]:
        spans: list[Span] = []
        for row in range(image.rows):
            for column in range(image.columns):
                spans += [
                    Control(AROUND),
                    Control(f'<row_{row + 1}_col_{column + 1}>'),
                    TileSpan(image, row * image.columns + column),
                ]
            spans.append(Text('\n'))
        if image.rows:
            spans.append(Text('\n'))
        return [*spans, *self._global(image)]

    def video(
        self,
        frames: Sequence[ImageEmbedding],
        times: Sequence[float],
        duration: float,
        controls: Collection[str],
    ) -> list[Part]:
        """Write an introduction, and each frame as a global picture after its time."""
        parts: list[Part] = [
            VIDEO_INTRO.format(
                frames=in_words(len(frames)), duration=timedelta(seconds=int(duration))
            )
        ]
        for frame, seconds in zip(frames, times, strict=True):
            minutes, rest = divmod(int(seconds), 60)
            parts += [FRAME_INTRO.format(minutes=minutes, seconds=rest), self._global(frame)]
        return [*parts, VIDEO_OUTRO]

    @staticmethod
    def _global(image: ImageEmbedding) -> list[Span]:
        """Write the global picture, which is the last tile."""
        last = len(image.tiles) - 1
        return [Control(AROUND), Control(GLOBAL), TileSpan(image, last), Control(AROUND)]

    def tiles(self, rgb: Pixels, tile_size: int, max_tiles: int, fit: str = '') -> ImageTiles:
        fit = fit or self.default_fit
        height, width = rgb.shape[:2]
        refined, columns, rows = layout(width, height, tile_size, max_tiles or TILES_PER_EDGE**2)
        # The makers stretch step by step: each picture below is made from the one before.
        step = resize(rgb, *refined, LANCZOS) if fit == 'fill' else rgb
        if rows * columns == 1:
            overview = place(step, tile_size, tile_size, LANCZOS, fit)
            return ImageTiles(overview[None], 0, 0, True, self.mean, self.std)
        canvas = place(step, columns * tile_size, rows * tile_size, LANCZOS, fit)
        overview = place(canvas if fit == 'fill' else rgb, tile_size, tile_size, LANCZOS, fit)
        return ImageTiles(
            cut(canvas, tile_size, overview), rows, columns, True, self.mean, self.std
        )


def layout(width: int, height: int, tile_size: int, most: int) -> tuple[tuple[int, int], int, int]:
    """
    Choose the size that a picture is first brought to, and the columns and rows of tiles.

    The longest edge is as many whole tiles, up to four, as leave ``most`` tiles or fewer. One
    column and one row stand for the global picture alone, which is made at full length.
    """
    for edge in range(TILES_PER_EDGE, 1, -1):
        refined = refined_size(width, height, edge * tile_size)
        columns, rows = (math.ceil(length / tile_size) for length in refined)
        if columns * rows <= most:
            return refined, columns, rows
    return refined_size(width, height, TILES_PER_EDGE * tile_size), 1, 1


def refined_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Bring the longest edge to a length, and the other to an even one."""
    if width >= height:
        return longest, _even(int(longest / (width / height)))
    return _even(int(longest * (width / height))), longest


def _even(length: int) -> int:
    return max(1, length + length % 2)


def in_words(number: int) -> str:
    """Write a number below 1000 in English words; a larger one in digits."""
    if number < 20:
        return ONES[number]
    if number < 100:
        ten, one = divmod(number, 10)
        return TENS[ten - 2] + (f'-{ONES[one]}' if one else '')
    if number < 1000:
        hundred, rest = divmod(number, 100)
        return f'{ONES[hundred]} hundred' + (f' and {in_words(rest)}' if rest else '')
    return str(number)
