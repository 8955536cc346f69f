"""
The values that travel between the parts: tiles, embeddings, spans, chunks of text, replies.

Nothing here knows how a value is made. All but ``Tile`` are immutable; arrays must not be written
to.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from html import escape
from itertools import pairwise
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import PictureError


@dataclass(frozen=True, eq=False)
class ImageTiles:
    """
    One picture, cut for the encoder.

    :param pixels: RGB uint8 (tiles, height, width, 3), not yet normalised
    :param rows: rows of the grid of tiles; 0 where the overview is the only tile
    :param columns: columns of the grid
    :param overview: whether the last tile shows the whole picture
    :param mean: per channel, of pixels scaled to 0..1
    :param std: per channel
    """

    pixels: npt.NDArray[np.uint8]
    rows: int
    columns: int
    overview: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Placing:
    """
    How the embeddings of a tile stand among what the decoder reads; such a tile stays whole.

    :param parts: int32 (3 or 4, tokens): the parts of each position as llama.cpp has them (time,
        row, column, perhaps one more), counted from where the tile begins; None: one after the
        other
    :param length: positions from where it begins to what follows it
    :param causal: whether each embedding sees only those before it; if not, all see all
    """

    parts: npt.NDArray[np.int32] | None
    length: int
    causal: bool


@dataclass(eq=False)
class Tile:
    """
    One tile of a picture, and its embeddings once they are made.

    :param key: hash of what the embeddings depend on; equal keys mean equal embeddings
    :param tokens: embeddings of the tile; 0 until the encoder has run where only that tells
    :param placing: where they stand, if not one after the other, each seeing those before it
    :param encoded: float32 (tokens, n_embd), C order, or why there is none
    """

    key: bytes
    tokens: int
    placing: Placing | None = None
    encoded: Future[npt.NDArray[np.float32]] = field(default_factory=Future)

    @property
    def data(self) -> npt.NDArray[np.float32]:
        """Give the embeddings, waiting for the encoder."""
        return self.encoded.result()


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """
    What the decoder reads in place of a picture.

    :param tiles: in the order in which the family lays them out, the overview last
    :param rows: rows of the grid of tiles; 0 where the overview is the only tile
    :param columns: columns of the grid
    :param overview: whether the last tile shows the whole picture
    :param key: hash of the picture and of how it is cut
    :param size: (width, height) of the picture in pixels, before it was cut
    :param seconds: when it is shown, for a frame of a video; None: a picture
    :param duration: of that video in seconds
    :param layout: tokens, and places in ``tiles``, in the order in which they are read, where the
        encoder has said so; empty: the family knows
    :param made_by: (tile size in pixels, fit) of the encoder elsewhere that made it; None: it was
        encoded here
    """

    tiles: tuple[Tile, ...]
    rows: int
    columns: int
    overview: bool
    key: bytes
    size: tuple[int, int]
    seconds: float | None = None
    duration: float = 0.0
    layout: tuple[Tokens | int, ...] = ()
    made_by: tuple[int, str] | None = None

    @property
    def tokens(self) -> int:
        """Number of cells that the picture takes in the KV cache."""
        return sum(tile.tokens for tile in self.tiles)


@dataclass(frozen=True)
class Text:
    """Plain characters, of the template or of the user; never a control token."""

    text: str


@dataclass(frozen=True)
class Control:
    """One control token of the chat template, by its text."""

    token: str


@dataclass(frozen=True)
class Tokens:
    """Token ids as they were generated: an earlier answer in the history."""

    ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class TileSpan:
    """The embeddings of one tile of a picture."""

    image: ImageEmbedding
    index: int

    @property
    def tile(self) -> Tile:
        """Give the tile."""
        return self.image.tiles[self.index]


Span = Text | Control | Tokens | TileSpan

#: What a turn is made of: text, or the spans of a picture.
Part = str | list[Span]


@dataclass(frozen=True)
class Timings:
    """
    Where the time went, in milliseconds.

    :param queued_ms: waiting, for other requests and for room, and for nothing of its own
    :param preprocess_ms: picture files and arrays -> tiles
    :param encode_ms: tiles -> embeddings; 0 where they were known
    :param prefill_ms: decoding what was new in the prompt
    :param ttft_ms: from the question to the first token. Text is prefilled while pictures are
        encoded elsewhere than on the CPU, so this may be less than the sum of the above
    :param decode_ms: from the first token to the last
    :param tokens_per_second: of the decode phase
    """

    queued_ms: float = 0.0
    preprocess_ms: float = 0.0
    encode_ms: float = 0.0
    prefill_ms: float = 0.0
    ttft_ms: float = 0.0
    decode_ms: float = 0.0
    tokens_per_second: float = 0.0


@dataclass(frozen=True)
class TextChunk:
    """
    A piece of an answer: whole characters only.

    :param thinking: whether the piece belongs to the model's reasoning, not to its answer
    :param logprobs: of the tokens since the piece before, where they were asked for
    """

    text: str
    thinking: bool = False
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Box:
    """
    A region that the answer names.

    Its corners are in pixels of the original picture, from its upper left corner: 0 <= x1 < x2 <=
    width and 0 <= y1 < y2 <= height.

    :param label: what it holds, in the model's words; else the thing that was asked for
    """

    label: str
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True)
class Point:
    """
    A place that the answer names, in pixels of the original picture, from its upper left corner.

    :param label: what is there, in the model's words; else the thing that was asked for
    """

    label: str
    x: float
    y: float


@dataclass(frozen=True)
class TokenLogprob:
    """
    How likely a token of the answer was.

    :param logprob: natural logarithm of its probability, before temperature and filters
    :param top: (text, logprob) of the likeliest tokens in its place
    """

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Reply:
    """
    A whole answer.

    :param finish_reason: ``stop`` (the model ended), ``length``, ``cancelled``, ``timeout``
        or, from the ROS node only, ``error``
    :param prompt_tokens: cells that the prompt takes in the KV cache, pictures included
    :param image_tokens: how many of them are embeddings of pictures
    :param completion_tokens: tokens of the answer
    :param reused_tokens: how many prompt tokens were in the KV cache already
    :param thinking: the model's reasoning, where there was any
    :param boxes: regions of the first picture that the answer names
    :param points: places in it that the answer names
    :param logprobs: one entry per token, where they were asked for
    :param choices: choice -> its share, where there was something to choose; all add up to 1
    :param model: which model answered, where ``model`` is an address: NAME@ADDRESS, or the name
        of the fallback
    """

    text: str
    finish_reason: str = 'stop'
    prompt_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0
    reused_tokens: int = 0
    timings: Timings = field(default_factory=Timings)
    thinking: str = ''
    boxes: tuple[Box, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    choices: dict[str, float] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    model: str = ''

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """Show the answer in a notebook; what the model wrote stays text."""
        notes = (
            f'{self.finish_reason}; {self.prompt_tokens} tokens asked, {self.completion_tokens} '
            f'answered; {self.timings.ttft_ms:.0f} ms to the first, '
            f'{self.timings.tokens_per_second:.1f} a second'
        )
        return (
            f'<div style="white-space: pre-wrap">{escape(self.text)}</div>'
            f'<div style="opacity: 0.6; font-size: 85%">{escape(notes)}</div>'
        )

    def as_dict(self) -> dict[str, Any]:
        """Give the fields by name, for JSON; of the last six only those that hold something."""
        fields = asdict(self)
        for name in ('thinking', 'boxes', 'logprobs', 'choices', 'points', 'model'):
            if not fields[name]:
                del fields[name]
        return fields


@dataclass(frozen=True)
class Status:
    """
    What a model is doing.

    :param waiting: requests without a place in the KV cache
    :param running: requests that are prefilled or decoded
    :param encoding: tiles that wait for the encoder or are in it
    :param image_hits: pictures that were known, since the start
    :param image_misses: pictures that had to be encoded, since the start
    :param encoding_s: seconds until these tiles are encoded, by the time of the last one
    """

    waiting: int
    running: int
    encoding: int
    image_hits: int
    image_misses: int
    encoding_s: float = 0.0


@dataclass(frozen=True)
class Progress:
    """
    How far the pictures of a request are.

    :param done: tiles that are encoded
    :param total: tiles to encode; those that were known do not count. 0 until pictures are cut
    :param seconds_left: until all are encoded, by the time of the last one; 0: not known yet
    """

    done: int = 0
    total: int = 0
    seconds_left: float = 0.0


@dataclass(frozen=True)
class Video:
    """
    A video file, of which some frames are shown.

    :param frames: how many, spread evenly
    :param start: seconds at which they begin
    :param end: seconds at which they end; None: the end of the video
    """

    path: str
    frames: int = 8
    start: float = 0.0
    end: float | None = None


@dataclass(frozen=True, eq=False)
class Clip:
    """
    Pictures of one camera in the order of time, which are shown as a video.

    :param images: RGB uint8 (height, width, 3), or whatever else a picture may be given as
    :param seconds: when each was taken, from the first: 0, and going on
    """

    images: Sequence[ImageSource]
    seconds: Sequence[float]

    def __post_init__(self) -> None:
        times = list(self.seconds)
        if not times or len(times) != len(self.images) or times[0] != 0:
            raise PictureError(
                f'a clip of {len(self.images)} pictures and {len(times)} times: expected as many '
                'of both, at least one, and 0 as the first time'
            )
        if any(not one < other < math.inf for one, other in pairwise(times)):
            raise PictureError('the times of a clip do not go on: give pictures in their order')

    @property
    def duration(self) -> float:
        """Give its length in seconds; the last picture is shown as long as the one before it."""
        return 2 * self.seconds[-1] - self.seconds[-2] if len(self.seconds) > 1 else 0.0


#: RGB uint8 (height, width, 3)
Pixels = npt.NDArray[np.uint8]

#: What may be shown: a path, the bytes of an image file, RGB uint8 (height, width, 3), or an
#: ``encoded.EncodedImage``.
ImageSource = str | bytes | npt.NDArray[np.uint8] | Any
Images = ImageSource | Sequence[ImageSource] | None
