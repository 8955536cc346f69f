"""
InternVL 2, 2.5, 3 and 3.5: the grid of tiles whose aspect ratio is closest to the picture's.

Knows the family's pixels and prompts; nothing of files or runtimes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from . import Family, TileFamily
from ..image.resize import BICUBIC, cut, place
from ..values import Control, ImageEmbedding, ImageTiles, Part, Pixels, Span, TileSpan

MAX_TILES = 12

#: Marks around a picture. The second pair serves plain Qwen2.5 files, whose vocabulary lacks the
#: first; hobot_llamacpp uses it too.
AROUND = (('<img>', '</img>'), ('<|vision_start|>', '<|vision_end|>'))

#: The system prompt that the makers of InternVL3.5 give for reasoning, word for word.
THINKING_TEXT = """
You are an AI assistant that rigorously follows this response protocol:

1. First, conduct a detailed analysis of the question. Consider different angles, potential \
solutions, and reason through the problem step-by-step. Enclose this entire thinking process \
within <think> and </think> tags.

2. After the thinking section, provide a clear, concise, and direct answer to the user's \
question. Separate the answer from the think section with a newline.

Ensure that the thinking process is thorough but remains focused on the query. The final answer \
should be standalone and not reference the thinking section.
""".strip()


#: Layouts of the makers for decoders whose own templates know no system prompt, or reason first:
#: phi3-chat of ``conversation.py`` and ``preprocess_internvl3_5_gpt_oss`` of their training code.
#: Phi-3's tokenizer drops the newlines that the former has behind its marks.
PHI3 = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    '{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}'
)
GPT_OSS = (
    "{% for message in messages %}<|start|>{{ message['role'] }}"
    "{% if message['role'] == 'assistant' %}<|channel|>final{% endif %}<|message|>"
    "{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
    '{% if add_generation_prompt %}<|start|>assistant<|channel|>final<|message|>{% endif %}'
)


class InternVL(TileFamily):
    """Tiles row by row, then the whole picture as a thumbnail if there is more than one tile."""

    name = 'internvl'
    model_type = 0
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    default_fit = 'fill'
    marks = ' or '.join(f'{opening} {closing}' for opening, closing in AROUND)
    system_text = (
        '你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及'
        '多家合作单位联合开发的多模态大语言模型。'
    )
    thinking_text = THINKING_TEXT

    def knows(self, controls: Collection[str]) -> bool:
        return any(opening in controls and closing in controls for opening, closing in AROUND)

    def suited(self, controls: Collection[str]) -> Family:
        kinds = (OnPhi3, OnGptOss)
        return next((kind() for kind in kinds if kind.turn_marks <= set(controls)), self)

    def spans(self, image: ImageEmbedding, controls: Collection[str]) -> list[Span]:
        opening, closing = next(pair for pair in AROUND if set(pair) <= set(controls))
        tiles = [TileSpan(image, index) for index in range(len(image.tiles))]
        return [Control(opening), *tiles, Control(closing)]

    def combined(self, images: Sequence[ImageEmbedding], controls: Collection[str]) -> list[Part]:
        """Put the tiles of all into one pair of marks."""
        inner = [self.spans(image, controls) for image in images]
        tiles = [span for spans in inner for span in spans[1:-1]]
        return [[inner[0][0], *tiles, inner[0][-1]]]

    def parts(
        self, images: Sequence[ImageEmbedding], labels: Sequence[str], controls: Collection[str]
    ) -> list[Part]:
        if not labels and len(images) > 1:
            labels = [f'Image-{i + 1}' for i in range(len(images))]
        parts: list[Part] = []
        for i, image in enumerate(images):
            parts += [f'{labels[i]}: '] if labels else []
            parts += [self.spans(image, controls), '\n']
        return parts

    def video(
        self,
        frames: Sequence[ImageEmbedding],
        times: Sequence[float],
        duration: float,
        controls: Collection[str],
    ) -> list[Part]:
        """Write a number before each frame."""
        return self.parts(frames, [f'Frame{i + 1}' for i in range(len(frames))], controls)

    def tiles(self, rgb: Pixels, tile_size: int, max_tiles: int, fit: str = '') -> ImageTiles:
        fit = fit or self.default_fit
        height, width = rgb.shape[:2]
        columns, rows = closest_grid(width, height, tile_size, max_tiles or MAX_TILES)
        overview = place(rgb, tile_size, tile_size, BICUBIC, fit)
        if rows * columns == 1:
            return ImageTiles(overview[None], 0, 0, True, self.mean, self.std)
        canvas = place(rgb, columns * tile_size, rows * tile_size, BICUBIC, fit)
        return ImageTiles(
            cut(canvas, tile_size, overview), rows, columns, True, self.mean, self.std
        )


class OnPhi3(InternVL):
    """InternVL2-4B, whose language model is Phi-3."""

    turn_marks = {'<|system|>', '<|user|>', '<|assistant|>', '<|end|>'}
    template = PHI3
    system_text = (
        '你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, '
        '是一个有用无害的人工智能助手。'
    )


class OnGptOss(InternVL):
    """InternVL3.5-20B-A4B, whose language model is gpt-oss."""

    turn_marks = {'<|start|>', '<|channel|>', '<|message|>', '<|return|>', '<|end|>'}
    template = GPT_OSS


def closest_grid(width: int, height: int, tile_size: int, most: int) -> tuple[int, int]:
    """
    Choose (columns, rows), at most ``most`` tiles, closest to the aspect ratio of a picture.

    Of grids equally close the larger one wins, unless its area is twice the picture's or more.
    """
    grids = [
        (columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)
    ]
    best, nearest = (1, 1), float('inf')
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - columns / rows)
        affordable = width * height > 0.5 * tile_size * tile_size * columns * rows
        if distance < nearest or (distance == nearest and affordable):
            best, nearest = (columns, rows), distance
    return best
