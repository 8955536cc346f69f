"""
Pictures to embeddings, tile by tile, on a thread of its own; what is known comes from memory.

Knows families and encoders; nothing of prompts, of the decoder or of who asks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
import os
import threading
from time import perf_counter
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from .encoded_images import check_fits, NOT_ENCODED, to_embedding
from .pieces import cut, hash_pixels
from ..config import Config
from ..encoded import EncodedImage
from ..encoders import Encoder
from ..encoders.selection import kept, select
from ..errors import InferenceError, ModelMismatch
from ..families import Family
from ..futures import when_all
from ..image.load import is_address, load_rgb
from ..image.video import is_video, read_frames
from ..values import Clip, ImageEmbedding, ImageSource, Pixels, Progress, Tile, Video

#: bytes of embeddings that are kept; the oldest pictures leave first. 128 MB are 140 tiles of
#: InternVL3-1B, and a thirtieth of the memory of the smallest board that these models run on.
KEPT_BYTES = 128 << 20

#: threads that read and cut pictures, so that a slow file does not hold up the next picture
PREPARERS = 2

#: threads for requests with pictures from the network, which may wait for half a minute each
FETCHERS = 8


@dataclass(eq=False)
class ImageJob:
    """
    The pictures of one request.

    :param images: what the prompt is made of; their tiles may still be encoding
    :param preprocess: seconds spent on reading and cutting
    """

    images: Future[list[ImageEmbedding]] = field(default_factory=Future)
    preprocess: float = 0.0
    abandoned: bool = False
    tasks: list[_Task] = field(default_factory=list)
    number: int = field(default_factory=count().__next__)  # as they came; many are read at once

    def encode_seconds(self) -> float:
        """Give the seconds that its tiles were in the encoder; 0 where all were known."""
        return sum(task.seconds for task in self.tasks)


@dataclass(eq=False)
class _Task:
    """A tile that waits for the encoder; ``jobs`` want it."""

    tile: Tile
    encode: Callable[[], npt.NDArray[np.float32]] | None  # until it is encoded
    image_key: bytes
    jobs: list[ImageJob]
    priority: int
    share: float  # of its embeddings that are kept
    seconds: float = 0.0


class ImageEncoder:
    """The vision half of a model; all methods are safe from any thread."""

    def __init__(self, encoder: Encoder | None, family: Family | None, n_embd: int = 0):
        """:param n_embd: width of the embeddings of pictures that come encoded"""
        self._encoder, self._family, self._n_embd = encoder, family, n_embd
        self.hits = self.misses = 0  # pictures that were known, and that were not
        self._lock = threading.RLock()  # guards all below
        self._images: OrderedDict[bytes, ImageEmbedding] = OrderedDict()
        self._tiles: WeakValueDictionary[bytes, Tile] = WeakValueDictionary()
        self._tasks: list[_Task] = []
        self._task: _Task | None = None  # whose tile is in the encoder
        self._began = 0.0  # when the tile that is in the encoder went there; 0: there is none
        self._seconds = 0.0  # that the last tile was there
        self._closed = False
        self._preparers = ThreadPoolExecutor(PREPARERS, 'prepare') if family is not None else None
        self._fetchers = ThreadPoolExecutor(FETCHERS, 'fetch')
        self._thread: threading.Thread | None = None  # while there are tiles to encode

    def submit(self, sources: Sequence[ImageSource], config: Config, priority: int) -> ImageJob:
        """Have pictures encoded; returns at once."""
        job = ImageJob()
        if not sources:
            job.images.set_result([])
        elif self._preparers is None:
            job.images.set_exception(
                ModelMismatch(
                    'this model reads no pictures: give its vision encoder in '
                    'model_file_name, or ask without a picture'
                )
            )
        else:
            try:
                pool = self._fetchers if any(map(is_address, sources)) else self._preparers
                pool.submit(self._prepare_all, job, list(sources), config, priority)
            except RuntimeError:  # closed meanwhile
                job.images.set_exception(InferenceError('the model is closed'))
        return job

    def abandon(self, job: ImageJob) -> None:
        """
        Encode nothing more for a job; what others want too goes on.

        The tile that is in the encoder is left where the encoder can do that; else it is encoded
        to its end, as the encoder does nothing that lasts longer.
        """
        job.abandoned = True
        with self._lock:
            for task in list(self._tasks):
                if job in task.jobs:
                    task.jobs.remove(job)
                    if not task.jobs:
                        self._forget(task)

    def _forget(self, task: _Task) -> None:
        """Take a tile that nobody wants out of the queue and out of memory."""
        self._tasks.remove(task)
        self._tiles.pop(task.tile.key, None)
        self._images.pop(task.image_key, None)
        if task is self._task and self._encoder is not None:
            self._encoder.stop()  # no other one: the next tile goes there after this lock

    @property
    def encoding(self) -> int:
        """Count the tiles that wait for the encoder."""
        return len(self._tasks)

    def progress(self, job: ImageJob) -> Progress:
        """Say how far a job is."""
        with self._lock:
            total = len(job.tasks)
            left = sum(task.encode is not None for task in job.tasks)
            return Progress(total - left, total, self._estimate(left))

    @property
    def seconds_left(self) -> float:
        """Estimate the seconds until all tiles that wait are encoded; 0: not known yet."""
        with self._lock:
            return self._estimate(len(self._tasks))

    def _estimate(self, tiles: int) -> float:
        """Estimate the seconds that tiles take, by the last one and how long one is in there."""
        if not tiles or not self._seconds:
            return 0.0
        spent = perf_counter() - self._began if self._began else 0.0
        return max(tiles * self._seconds - spent, 0.0)

    # -- 1. reading and cutting ----------------------------------------------------------------

    def _prepare_all(
        self, job: ImageJob, sources: list[ImageSource], config: Config, priority: int
    ) -> None:
        began = perf_counter()
        try:
            images = []
            for source in sources:
                if job.abandoned:
                    raise InferenceError('the request was cancelled')
                if isinstance(source, EncodedImage):
                    images.append(self._encoded(source, config))
                    continue
                if self._encoder is None:
                    raise ModelMismatch(NOT_ENCODED)
                if isinstance(source, Clip):
                    images += self._prepare_clip(source, job, config, priority)
                    continue
                if isinstance(source, Video) or is_video(source):
                    images += self._prepare_video(source, job, config, priority)
                    continue
                rgb = load_rgb(source, cancelled=partial(self._unwanted, job))
                images.append(self._prepare(rgb, job, config, priority))
            job.preprocess = perf_counter() - began
            self._give(job, images)
        except BaseException as exc:
            job.images.set_exception(exc)

    def _give(self, job: ImageJob, images: list[ImageEmbedding]) -> None:
        """
        Let a prompt be made of pictures: once they are cut, or once they are encoded.

        The latter where only the encoder tells how many tokens a tile has; and where it runs on
        this CPU. There a prefill at the same time has as many threads as there are cores, too,
        and both wait for each other at every step: six times on two busy cores, together they
        took 1.2 to 3.9 times as long as each alone.
        """
        elsewhere = self._encoder is None or self._encoder.elsewhere
        tiles = [tile for image in images for tile in image.tiles]
        waits = [tile.encoded for tile in tiles if not (tile.tokens and elsewhere)]

        def give() -> None:
            try:
                for future in waits:
                    future.result()
                job.images.set_result(images)
            except BaseException as exc:
                job.images.set_exception(exc)

        when_all(waits, give)

    def _unwanted(self, job: ImageJob) -> bool:
        return job.abandoned or self._closed

    def _prepare_video(
        self, source: Any, job: ImageJob, config: Config, priority: int
    ) -> list[ImageEmbedding]:
        """Take frames from a video; each is one tile, as all families have it."""
        video = source if isinstance(source, Video) else Video(os.fsdecode(source))
        frames = read_frames(
            video.path,
            video.frames,
            video.start,
            video.end,
            cancelled=partial(self._unwanted, job),
        )
        return [
            replace(
                self._prepare(frame.rgb, job, replace(config, max_tiles=1), priority),
                seconds=frame.seconds,
                duration=frame.duration,
            )
            for frame in frames
        ]

    def _prepare_clip(
        self, clip: Clip, job: ImageJob, config: Config, priority: int
    ) -> list[ImageEmbedding]:
        """Read the pictures of a clip; each is one tile, as those of a video."""
        made = []
        for source, seconds in zip(clip.images, clip.seconds, strict=True):
            rgb = load_rgb(source, cancelled=partial(self._unwanted, job))
            image = self._prepare(rgb, job, replace(config, max_tiles=1), priority)
            made.append(replace(image, seconds=seconds, duration=clip.duration))
        return made

    def _encoded(self, given: EncodedImage, config: Config) -> ImageEmbedding:
        """Take in a picture that was encoded elsewhere, as if it had been here."""
        assert self._family is not None
        check_fits(given, self._family, self._n_embd)
        share = config.keep_image_tokens
        key = hash_pixels(f'encoded {share}'.encode(), np.frombuffer(given.digest, np.uint8))
        with self._lock:
            image = self._images.pop(key, None)
            self.hits, self.misses = self.hits + bool(image), self.misses + (not image)
            image = self._images[key] = image or to_embedding(given, key, share)
        self._trim()
        return image

    def _prepare(
        self, rgb: Pixels, job: ImageJob, config: Config, priority: int
    ) -> ImageEmbedding:
        """Cut a picture, unless it is known, and queue those of its tiles that are not."""
        assert self._family is not None and self._encoder is not None
        height, width = rgb.shape[:2]
        share = config.keep_image_tokens
        wanted = f'{width} {height} {config.max_tiles} {config.fit} {share}'.encode()
        key = hash_pixels(wanted, rgb)
        with self._lock:
            image = self._images.get(key)
            if image is not None and not any(map(_failed, image.tiles)):
                self._images.move_to_end(key)
                self.hits += 1
                self._want(image, job)
                return image
            self.misses += 1
        parts = cut(rgb, key, self._encoder, self._family, config)
        with self._lock:
            made = []
            for piece in parts.pieces:
                tile = self._tiles.get(piece.key)
                if tile is None:
                    tile = self._tiles[piece.key] = Tile(piece.key, piece.tokens, piece.placing)
                    self._tasks.append(_Task(tile, piece.encode, key, [], priority, share))
                made.append(tile)
            image = parts.image(made, key, (width, height))
            self._want(image, job)
            self._images[key] = image
            self._work()
        return image

    def _want(self, image: ImageEmbedding, job: ImageJob) -> None:
        for task in self._tasks:
            if task.tile in image.tiles:
                task.jobs.append(job)
                job.tasks.append(task)

    # -- 2. encoding ---------------------------------------------------------------------------

    def _work(self) -> None:
        """
        See that somebody encodes; called with the lock.

        The thread ends when there is nothing left. libmtmd computes with OpenMP, which keeps
        threads for each thread that it is called from, and lets all of them wait less eagerly once
        there are more than cores: an idle one would make every decoded token slower.
        """
        if self._thread is None and self._tasks and not self._closed:
            self._thread = threading.Thread(target=self._run, name='encode', daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (task := self._next()) is not None:
            try:
                assert task.encode is not None
                data = task.encode()
                if not np.isfinite(data).all():
                    raise InferenceError(
                        'the vision encoder gave numbers that are not finite: fetch its file again'
                    )
                data = select(data, kept(len(data), task.share))
            except BaseException as exc:
                self._done(task, whole=False)
                with self._lock:
                    self._tiles.pop(task.tile.key, None)
                    self._images.pop(task.image_key, None)
                with suppress(InvalidStateError):  # cancelled, as nobody waits any more
                    task.tile.encoded.set_exception(exc)
                continue
            self._done(task)
            task.tile.tokens = len(data)
            with suppress(InvalidStateError):
                task.tile.encoded.set_result(data)
            self._trim()

    def _next(self) -> _Task | None:
        """Give the next tile: of the oldest job of the highest priority. None ends the thread."""
        with self._lock:
            if self._closed or not self._tasks:
                self._thread = None
                return None
            self._began = perf_counter()
            self._task = min(
                self._tasks, key=lambda t: (-t.priority, min(job.number for job in t.jobs))
            )
            return self._task

    def _done(self, task: _Task, whole: bool = True) -> None:
        with self._lock:
            task.seconds = perf_counter() - self._began
            self._seconds = task.seconds if whole else self._seconds
            self._task, self._began, task.encode = None, 0.0, None
            if task in self._tasks:
                self._tasks.remove(task)

    def _trim(self) -> None:
        """Forget the oldest pictures beyond ``KEPT_BYTES``."""
        with self._lock:
            sizes = {
                id(tile): tile.data.nbytes
                for image in self._images.values()
                for tile in image.tiles
                if tile.encoded.done() and not _failed(tile)
            }
            kept = sum(sizes.values())
            while kept > KEPT_BYTES and len(self._images) > 1:
                _, image = self._images.popitem(last=False)
                kept -= sum(sizes.pop(id(tile), 0) for tile in image.tiles)

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """End the threads; the encoder leaves its tile where it can. Twice is harmless."""
        if self._preparers is None:
            return
        with self._lock:  # first, or the thread would go on with the next tile
            self._closed = True
            left, self._tasks = self._tasks, []
            thread = self._thread
        if self._encoder is not None:
            self._encoder.stop()
        for task in left:
            task.tile.encoded.cancel()
        if thread is not None:
            thread.join()
        self._preparers.shutdown(cancel_futures=True)
        self._fetchers.shutdown(cancel_futures=True)


def _failed(tile: Tile) -> bool:
    return tile.encoded.done() and bool(tile.encoded.cancelled() or tile.encoded.exception())
