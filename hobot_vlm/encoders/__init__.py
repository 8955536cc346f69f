"""
Vision encoders: tiles or pictures in, embeddings out.

An encoder knows one runtime. It knows nothing of prompts, of families or of the decoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError
from ..values import ImageTiles, Pixels, Placing, Tokens

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class EncoderOptions:
    """
    What the user may choose of an encoder.

    :param threads: CPU threads; 0 lets the runtime decide
    :param bpu_priority: 0 (lowest) to 255
    :param bpu_cores: BPU cores to use; empty lets the runtime decide
    :param device: the runtime, see `runtimes`; auto: the fastest
    :param gpu: whether libmtmd may use a GPU, where its build has one
    """

    threads: int = 0
    bpu_priority: int = 0
    bpu_cores: tuple[int, ...] = ()
    device: str = 'auto'
    gpu: bool = False


class Encoder(ABC):
    """
    The vision half of a model.

    ``n_embd`` is the width of its embeddings; ``elsewhere`` whether it leaves this CPU to others,
    who may work meanwhile; ``tile_size`` the width and height of a tile in pixels, 0 where it
    takes pictures of any size; ``usual_tiles`` how many tiles to cut unless the user says
    otherwise, 0 for as many as the family's makers do.
    """

    n_embd: int
    tile_size: int = 0
    usual_tiles: int = 0
    elsewhere: bool = False
    runtime: str

    def stop(self) -> None:  # noqa: B027  # not every runtime can
        """End a run that is on its way, from any thread, where the runtime can be stopped."""

    @abstractmethod
    def close(self) -> None:
        """Free what the encoder holds; twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class VisionEncoder(Encoder):
    """
    Turns tiles into the embeddings that the decoder reads.

    ``tokens`` is the number of embeddings per tile, or 0 where only running the model tells;
    ``routed`` whether it depends on all tiles of the picture.
    """

    tile_size: int
    tokens: int
    routed: bool = False

    @abstractmethod
    def encode(self, tiles: ImageTiles) -> npt.NDArray[np.float32]:
        """
        Encode all tiles of a picture.

        :return: float32 (tiles, tokens, n_embd), C order
        :raises InferenceError: the runtime failed
        """

    def encode_each(self, tiles: ImageTiles) -> list[npt.NDArray[np.float32]]:
        """
        Encode all tiles of a picture, which need not have equally many embeddings.

        :return: of each tile float32 (its tokens, n_embd), C order
        :raises InferenceError: the runtime failed
        """
        return list(self.encode(tiles))


@dataclass(frozen=True, eq=False)
class PicturePart:
    """
    A part of a picture that is encoded for itself.

    :param tokens: its embeddings
    :param placing: where they stand, if not one after the other
    :param encode: gives them, float32 (tokens, n_embd); raises InferenceError
    """

    tokens: int
    placing: Placing | None
    encode: Callable[[], npt.NDArray[np.float32]]


class PictureEncoder(Encoder):
    """
    Cuts pictures itself, and knows what stands around the parts.

    ``places`` says whether positions or attention of the parts are not those of text, ``whole``
    whether all embeddings of a part see each other, so that they must be decoded at once.
    """

    places: bool
    whole: bool

    @abstractmethod
    def cut(self, rgb: Pixels) -> list[Tokens | PicturePart]:
        """
        Cut a picture, without encoding it.

        :param rgb: uint8 (height, width, 3)
        :return: token ids and parts, in the order in which the decoder reads them
        :raises PictureError: it cannot be cut
        """


#: ``encoder_device``: whichever runtime is fastest
AUTO = 'auto'


def open_encoder(path: str | Path, options: EncoderOptions = EncoderOptions()) -> VisionEncoder:
    """
    Open an encoder file in the runtime that the options name, or in the fastest.

    :raises ModelFileError: missing, damaged or of an unknown kind
    :raises ModelMismatch: no encoder of a known family
    :raises BackendMissing: this machine lacks the runtime
    :raises ConfigError: ``options.device`` names a runtime that this file is not for
    """
    # Imported here, since the runtimes' own files import this one.
    from .choice import fastest
    from .runtimes import candidates, named, READERS

    path = Path(path)
    if path.suffix.lower() not in READERS:
        known = ', '.join(sorted(READERS))
        raise ModelFileError(
            path, f'no encoder is known for *{path.suffix}; expected one of {known}'
        )
    if not path.is_file():
        raise ModelFileError(
            path,
            'there is no such file; give the path of the vision encoder '
            'in model_file_name, or a name that `vlm models` lists in model',
        )
    found, unfit = candidates(path, options)
    if options.device == AUTO:
        return fastest(path, found, options.threads)
    return named(path, found, unfit, options.device).open()
