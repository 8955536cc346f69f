"""
What is true of a model family, whatever its size, its files and the runtime.

A family knows how its makers cut pictures and lay out prompts; it opens no file and runs no
model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from importlib import import_module
from pathlib import Path

from ..config import FAMILIES
from ..errors import ModelMismatch
from ..values import ImageEmbedding, ImageTiles, Part, Pixels, Span


class Family(ABC):
    """
    One model family.

    :cvar name: as it stands in messages and in the catalogue
    :cvar model_type: its number among the options
    :cvar default_fit: how its makers bring a picture to the shape that coordinates count in
    :cvar marks: the control tokens by which it is known, for messages
    :cvar template: its Jinja chat template; empty: the one of the model file
    :cvar image_mark: what the template writes for a picture, if it wants turns as lists of parts
    :cvar system_text: the makers' system prompt
    :cvar thinking_text: the makers' system prompt for reasoning before the answer; empty: none
    """

    name: str
    model_type: int
    default_fit: str
    marks: str
    template: str = ''
    image_mark: str = ''
    system_text: str = ''
    thinking_text: str = ''

    @abstractmethod
    def knows(self, controls: Collection[str]) -> bool:
        """Say whether a vocabulary with these control tokens is one of the family's."""

    def suited(self, controls: Collection[str]) -> Family:
        """Give what is true of the family's models with this vocabulary; usually itself."""
        return self

    @abstractmethod
    def spans(self, image: ImageEmbedding, controls: Collection[str]) -> list[Span]:
        """Give one picture with the marks around it, as it stands within a text."""

    def combined(self, images: Sequence[ImageEmbedding], controls: Collection[str]) -> list[Part]:
        """Give several pictures that stand in one place within a text."""
        return [self.spans(image, controls) for image in images]

    def parts(
        self, images: Sequence[ImageEmbedding], labels: Sequence[str], controls: Collection[str]
    ) -> list[Part]:
        """
        Give pictures as they stand before the question; usually one after the other.

        :param labels: what to call each; empty: as the makers do
        :param controls: control tokens of the model
        """
        parts: list[Part] = []
        for i, image in enumerate(images):
            spans = self.spans(image, controls)
            parts += [f'{labels[i]}: ', spans, '\n'] if labels else [spans]
        return parts

    def video(
        self,
        frames: Sequence[ImageEmbedding],
        times: Sequence[float],
        duration: float,
        controls: Collection[str],
    ) -> list[Part]:
        """
        Write the frames of a video as they stand before the question; usually as any pictures.

        :param times: when each frame is shown, in seconds from the first of the video
        :param duration: of the video, in seconds
        :param controls: control tokens of the model
        """
        return self.parts(frames, (), controls)


class TileFamily(Family):
    """
    A family whose pictures are cut here.

    :cvar mean: per channel, of pixels scaled to 0..1
    :cvar std: per channel
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @abstractmethod
    def tiles(self, rgb: Pixels, tile_size: int, max_tiles: int, fit: str = '') -> ImageTiles:
        """
        Cut a picture as the makers' image processor does.

        :param rgb: uint8 (height, width, 3)
        :param tile_size: width and height of a tile in pixels
        :param max_tiles: most tiles, the overview not counted; 0: as many as the makers use
        :param fit: how the picture fills a tile, or the grid of tiles; empty: ``default_fit``
        """


def family(name: str) -> Family:
    """Make the family of a name in ``FAMILIES``."""
    module, cls = FAMILIES[name].split(':')
    made: Family = getattr(import_module(module), cls)()
    return made


def detect(controls: Collection[str], model_type: int, path: Path) -> Family:
    """
    Find the family of a language model by its vocabulary, which any but those of libmtmd have.

    :param controls: the model's control tokens
    :param model_type: the number that the user gave, or -1
    :param path: of the model file, for messages
    :raises ModelMismatch: it has the marks of no family, or not those of the one asked for
    """
    families = [family(name) for name in FAMILIES if name != 'mtmd']
    wanted = [f for f in families if model_type in (-1, f.model_type)]
    # SmolVLM's marks are its own, while InternVL's stand in other vocabularies too
    for candidate in reversed(wanted):
        if candidate.knows(controls):
            return candidate.suited(controls)
    looked = '; '.join(f'{f.name}: {f.marks}' for f in wanted)
    raise ModelMismatch(
        f'{path} is no language model of a known family. Looked for these control '
        f'tokens in its vocabulary: {looked}. Give the decoder that belongs to '
        'the encoder, or only llm_model_name to chat without pictures'
    )
