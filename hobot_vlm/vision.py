"""
The vision half of a model alone: pictures become what the language half reads on another machine.

Knows encoders and families; no decoder, no ROS and no network.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
import os
from pathlib import Path
from typing import Any, Protocol, TYPE_CHECKING

from . import catalogue
from .config import Config, ELSEWHERE, FAMILIES, PER_REQUEST
from .encoded import EncodedImage
from .encoders import Encoder, EncoderOptions, open_encoder, PictureEncoder
from .encoders.onnx_weights import weights_beside
from .engine.image_encoder import ImageEncoder, ImageJob
from .errors import ConfigError, ModelMismatch
from .families import Family, family
from .families.pairing import family_of
from .llama import gguf
from .llama.probe import check_encoder_loads
from .option import unknown_option
from .values import ImageEmbedding, ImageSource

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .option_types import LoadOptions


class HasEncoder(Protocol):
    """What is known of the vision half of a loaded model."""

    @property
    def encoder(self) -> Encoder | None:
        """Give what encodes; None: nothing here does."""

    @property
    def encoder_path(self) -> Path | None:
        """Give its file."""

    @property
    def family(self) -> Family | None:
        """Give the family of the model."""


@dataclass(frozen=True)
class VisionParts:
    """
    A loaded encoder.

    :param config: with what the catalogue says where the user said nothing
    """

    config: Config
    encoder: Encoder
    encoder_path: Path
    family: Family


class Vision:
    """
    Encodes pictures for a language model elsewhere; all methods are safe from any thread.

    .. code-block:: python

       with Vision.load('demo') as vision:
           encoded = vision.encode_image('dog.jpg')
    """

    def __init__(self, config: Config):
        """
        Load the encoder.

        :raises VlmError: its file is missing or damaged, or of no known family
        """
        with ExitStack() as undo:
            self.parts = _load(config, undo)
            self._images = ImageEncoder(self.parts.encoder, self.parts.family)
            undo.callback(self._images.close)
            self._on_close = undo.pop_all()

    @classmethod
    def load(cls, model: str = 'demo', **options: Unpack[LoadOptions]) -> Vision:
        """
        Load the encoder of a model of the catalogue, or that in ``model_file_name=``.

        :param options: any option of :class:`hobot_vlm.config.Config` that is about pictures
        """
        return cls(Config.from_flat({'model': model, **options}))

    @property
    def config(self) -> Config:
        """Give the options that the encoder runs with."""
        return self.parts.config

    @property
    def family(self) -> str:
        """Give the name of the model's family."""
        return self.parts.family.name

    @property
    def runtime(self) -> str:
        """Give the name of what runs the encoder."""
        return self.parts.encoder.runtime

    def encode_image(self, picture: ImageSource, **options: Any) -> EncodedImage:
        """
        Encode a picture, and wait for it; one that is known costs nothing.

        :param options: any of ``config.PER_REQUEST`` that is about pictures
        :raises PictureError: it cannot be read
        """
        for name in options:
            if name not in PER_REQUEST:
                raise unknown_option(name, PER_REQUEST)
        config = replace(self.parts.config, **options)
        return encoded(self.parts, self._images.submit([picture], config, 0), config)

    def stop(self) -> None:
        """Leave the picture that is being encoded, where the encoder can: that is an error."""
        self.parts.encoder.stop()

    def close(self) -> None:
        """Free the encoder; twice is harmless."""
        self._on_close.close()

    def __enter__(self) -> Vision:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def wait(job: ImageJob) -> list[ImageEmbedding]:
    """Wait until pictures are encoded."""
    images = job.images.result()
    for image in images:
        for tile in image.tiles:
            tile.encoded.result()
    return images


def encoded(parts: HasEncoder, job: ImageJob, config: Config) -> EncodedImage:
    """
    Give a picture as it goes to another machine, once it is encoded.

    :param job: of that picture alone
    :raises ModelMismatch: there is nothing here that encodes
    """
    images = wait(job)
    if isinstance(parts.encoder, PictureEncoder):
        raise ModelMismatch(
            f'{parts.encoder_path} is cut by libmtmd, which needs the language model beside it: '
            'pictures of such a model cannot be encoded for another machine'
        )
    if parts.encoder is None or parts.encoder_path is None or parts.family is None:
        raise ModelMismatch('the vision encoder of this model is elsewhere: encode pictures there')
    if len(images) != 1:
        raise ConfigError('a video is several pictures: encode its frames one by one')
    (image,) = images
    mark = gguf.identity(parts.encoder_path, weights_beside(parts.encoder_path))
    return EncodedImage(
        parts.family.name,
        f'{parts.encoder_path.name[-100:]} {mark[:16]}',
        tuple(tile.data for tile in image.tiles),
        image.rows,
        image.columns,
        image.overview,
        parts.encoder.tile_size,
        config.fit or parts.family.default_fit,
        image.size,
        image.key,
    )


def _load(config: Config, undo: ExitStack) -> VisionParts:
    """Open the encoder that a configuration asks for, and find its family."""
    if config.encoder_device == ELSEWHERE:
        raise ConfigError(
            f'encoder_device is {ELSEWHERE}, and this is what encodes: set another one there',
            'encoder_device',
        )
    path, options = _file(config)
    unset = {f.name for f in fields(Config) if getattr(config, f.name) == f.default}
    config = replace(config, **{k: v for k, v in options.items() if k in unset})
    check_encoder_loads(path)
    encoder = open_encoder(
        path,
        EncoderOptions(
            config.encoder_threads, config.bpu_priority, config.cores(), config.encoder_device
        ),
    )
    undo.callback(encoder.close)
    if not config.max_tiles:
        config = replace(config, max_tiles=encoder.usual_tiles)
    return VisionParts(config, encoder, path, _family(config, path))


def _file(config: Config) -> tuple[Path, dict[str, Any]]:
    """Give the encoder's file, and the options that the catalogue has for it."""
    named = Path(os.path.expanduser(config.model_file_name)) if config.model_file_name else None
    if named and config.model == catalogue.DEFAULT:
        return named, {}
    model = catalogue.find(config.model)
    variant = model.variant()
    if variant.encoder is None:
        raise ConfigError(f'the model {model.name} reads no pictures: choose another', 'model')
    path = named or catalogue.obtain(model, variant.encoder, config.auto_download)
    return path, catalogue.options_of(model, variant)


def _family(config: Config, path: Path) -> Family:
    """
    Find the family of an encoder: an mmproj says it, any other file does not.

    :raises ConfigError: nobody says it
    :raises ModelMismatch: the file says another one than the user
    """
    families = [family(name) for name in FAMILIES]
    chosen = next((each for each in families if each.model_type == config.model_type), None)
    says = family_of(path)
    if says is None and chosen is None:
        raise ConfigError(
            f'model_type is {config.model_type}, and {path} does not say of which family it is: '
            'set model_type to '
            + ' or '.join(f'{each.model_type} ({each.name})' for each in families),
            'model_type',
        )
    if says is not None and chosen is not None and says.name != chosen.name:
        raise ModelMismatch(
            f'model_type is {config.model_type} ({chosen.name}), and {path} is of the family '
            f'{says.name}: set model_type to {says.model_type} or -1'
        )
    found = says or chosen
    assert found is not None
    return found
