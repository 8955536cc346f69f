"""
From pictures and a question to a stream of text.

The engine knows nothing of ROS, nor of which chip encodes a picture. One request runs at a time;
others wait for it. Read ``VLM._answer`` first: it is the whole flow.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
import hashlib
import logging
from pathlib import Path
import threading
from time import perf_counter
from types import TracebackType
from typing import Any
import weakref

import numpy as np

from . import catalogue
from .config import Config
from .encoders import EncoderOptions, open_encoder, VisionEncoder
from .errors import ConfigError, ModelMismatch, PictureError, PromptTooLong, VlmError
from .families import detect, Family
from .image import load_rgb
from .llama.model import Decoder
from .llama.sampling import Sampler
from .llama.session import flatten, Prompt, Session
from .prompt import CHATML, ChatTemplate, ends_in_thought, Part, PLAIN
from .text import AnswerText, Utf8Stream
from .values import ImageEmbedding, Images, ImageSource, Reply, Span, TextChunk, Timings, Tokens

logger = logging.getLogger('hobot_vlm')

#: pictures whose embeddings are kept; the oldest leave first
KEPT_PICTURES = 16

#: options that may differ from question to question
PER_REQUEST = ('n_predict', 'temperature', 'top_k', 'top_p', 'min_p', 'repeat_penalty', 'seed',
               'system_prompt', 'thinking', 'max_tiles', 'fit')


@dataclass
class _Turn:
    """A question as it stands in the prompt, and the tokens that answered it."""

    user: list[Part]
    pictures: list[Part]
    answer: Tokens = Tokens(())


@dataclass
class _Progress:
    """What is known of the running answer; becomes the ``Reply``."""

    began: float = field(default_factory=perf_counter)
    preprocess: float = 0.0                 # seconds
    encode: float = 0.0
    prefill: float = 0.0
    first: float = 0.0                      # when the first token was there
    last: float = 0.0
    prompt: Prompt = field(default_factory=Prompt)
    reused: int = 0
    tokens: list[int] = field(default_factory=list)
    chunks: list[TextChunk] = field(default_factory=list)
    finish_reason: str = 'cancelled'        # until it is known better

    def reply(self) -> Reply:
        """Sum up."""
        decode = self.last - self.first
        speed = (len(self.tokens) - 1) / decode if decode > 0 else 0.0
        return Reply(
            ''.join(c.text for c in self.chunks if not c.thinking), self.finish_reason,
            len(self.prompt.cells), self.prompt.image_tokens, len(self.tokens), self.reused,
            Timings(*(round(1000 * seconds, 3) for seconds in (
                self.preprocess, self.encode, self.prefill,
                self.first - self.began if self.first else 0.0, decode)), round(speed, 2)),
            ''.join(c.text for c in self.chunks if c.thinking))


class VLM:
    """
    A vision language model: ask it about pictures.

    .. code-block:: python

       with VLM.load('demo') as vlm:
           print(vlm.ask('Describe the picture.', images='dog.jpg').text)
    """

    def __init__(self, config: Config):
        """
        Load the encoder and the decoder.

        :raises VlmError: files are missing, damaged or do not belong together
        """
        began = perf_counter()
        self._on_close = ExitStack()
        self._requests = threading.Lock()       # held while an answer is made
        self._state = threading.Lock()          # guards the two below
        self._running = False
        self._cancelled = False
        self._unfinished = threading.local()    # .answer: this thread's newest, weakly
        self._embeddings: OrderedDict[bytes, ImageEmbedding] = OrderedDict()
        self.encoder: VisionEncoder | None = None
        self.family: Family | None = None
        files = catalogue.resolve(config)
        unset = {f.name for f in fields(Config) if getattr(config, f.name) == f.default}
        self.config = replace(config, **{k: v for k, v in files.options.items() if k in unset})
        try:
            self._load(files.encoder, files.decoder)
        except BaseException:
            self.close()
            raise
        logger.info('loaded %s and %s in %.0f ms', files.encoder, files.decoder,
                    1000 * (perf_counter() - began))

    @classmethod
    def load(cls, model: str = 'demo', **options: Any) -> VLM:
        """
        Load a model of the catalogue, or files given as ``model_file_name=``, ``llm_model_name=``.

        :param options: any option of :class:`hobot_vlm.config.Config`
        """
        return cls(Config.from_flat({'model': model, **options}))

    def _load(self, encoder: Path | None, decoder: Path) -> None:
        config = self.config
        self._decoder = Decoder(
            decoder, n_ctx=config.n_ctx, n_batch=config.n_batch,
            n_gpu_layers=config.n_gpu_layers, threads=config.llm_threads)
        self._on_close.callback(self._decoder.close)
        self._session = Session(self._decoder)
        if encoder is not None:
            self.encoder = open_encoder(encoder, EncoderOptions(
                config.encoder_threads, config.bpu_priority, config.cores()))
            self._on_close.callback(self.encoder.close)
            self._decoder.check_embedding_width(self.encoder.n_embd, encoder)
            self.family = detect(self._decoder.controls, config.model_type, decoder)
        # the family's template, or the file's own, or the plainest that fits
        source = (self.family and self.family.template) or self._decoder.chat_template() or (
            CHATML if '<|im_start|>' in self._decoder.controls else PLAIN)
        self._template = ChatTemplate(source, self._decoder.controls,
                                      *self._decoder.bos_and_eos(),
                                      self.family.image_mark if self.family else '')
        self.check(config)

    def check(self, config: Config) -> None:
        """:raises ConfigError: an option that this model does not have"""
        if config.thinking and not (self.family and self.family.thinking_text):
            raise ConfigError('thinking is true, but only InternVL models have a system prompt '
                              'for it: give one, or set thinking to false', 'thinking')

    # -- asking ------------------------------------------------------------------------------

    def ask(self, prompt: str, images: Images = None, *, labels: Sequence[str] = (),
            **options: Any) -> Reply:
        """
        Answer one question, in a conversation of its own.

        :param images: a path, the bytes of an image file, RGB uint8 (height, width, 3), or
            several of these
        :param labels: what to call each picture in the prompt; empty: as the family does
        :param options: any of ``PER_REQUEST``
        :raises PictureError: a picture cannot be read
        :raises PromptTooLong: the prompt does not fit ``n_ctx``
        """
        return self.stream(prompt, images, labels=labels, **options).finish()

    def stream(self, prompt: str, images: Images = None, *, labels: Sequence[str] = (),
               **options: Any) -> Answer:
        """Answer as ``ask`` does, piece by piece; closing the iterator stops the model."""
        return Conversation(self, overflow='refuse').stream(prompt, images, labels=labels,
                                                            **options)

    def conversation(self, system_prompt: str = '', overflow: str = 'drop_oldest') -> Conversation:
        """
        Begin a conversation of several turns.

        :param overflow: when the context is full: ``drop_oldest`` turns, or ``refuse``
        """
        return Conversation(self, system_prompt, overflow)

    def cancel(self) -> None:
        """Stop the running answer, within one token; callable from any thread."""
        with self._state:
            if self._running:
                self._cancelled = True
                self._decoder.stop()

    def prepare(self, image: ImageSource) -> None:
        """Encode a picture ahead of the question about it; the embedding is kept."""
        with self._requests:
            self._embed(image, self.config, _Progress())

    # -- the flow ----------------------------------------------------------------------------

    def _answer(self, chat: Conversation, prompt: str, images: Images, labels: Sequence[str],
                config: Config, progress: _Progress) -> Generator[TextChunk, None, None]:
        """
        Answer one question.

        1. Read the pictures, and encode those that are new.
        2. Lay out the prompt.
        3. Prefill: decode what the KV cache does not hold yet.
        4. Decode: sample a token, give its characters, decode it; until the model ends.
        """
        with self._requests, ExitStack() as cleanup:
            self._begin(cleanup)
            # 1. pictures
            shown = [self._embed(image, config, progress) for image in picture_list(images)]
            # 2. prompt
            turn = _Turn(*self._user_parts(prompt, shown, labels))
            spans, progress.prompt = chat.lay_out(turn, config)
            progress.reused = self._session.reusable(progress.prompt)
            # 3. prefill
            start = perf_counter()
            ready = self._session.prefill(progress.prompt, self._is_cancelled)
            progress.prefill = perf_counter() - start
            if not ready:
                return
            cleanup.callback(chat.remember, turn, progress)
            # 4. decode
            sampler = Sampler(self._decoder, config)
            cleanup.callback(sampler.close)
            characters, answer = Utf8Stream(), AnswerText(thinking=ends_in_thought(spans))
            for piece in self._decode(sampler, config.n_predict, progress):
                for chunk in answer.feed(characters.feed(piece)):
                    progress.chunks.append(chunk)
                    yield chunk
            for chunk in answer.feed(characters.finish()) + answer.finish():
                progress.chunks.append(chunk)
                yield chunk

    def _decode(self, sampler: Sampler, n_predict: int, progress: _Progress) -> Iterator[bytes]:
        """Give the bytes of each token until the model ends or is stopped."""
        decoder, session = self._decoder, self._session
        while not self._cancelled:
            token = sampler.sample()
            progress.last = perf_counter()
            progress.first = progress.first or progress.last
            if decoder.is_end(token):
                progress.finish_reason = 'stop'
                return
            progress.tokens.append(token)
            yield decoder.piece(token)
            if len(progress.tokens) >= n_predict or session.full:
                progress.finish_reason = 'length'
                return
            if not session.append(token):
                return

    def _begin(self, cleanup: ExitStack) -> None:
        """Note that a request runs, until ``cleanup`` ends it."""
        with self._state:
            self._running, self._cancelled = True, False
            self._decoder.allow()
        cleanup.callback(self._end)

    def _end(self) -> None:
        with self._state:
            self._running = False
            self._decoder.allow()

    def take_over(self, answer: Answer | None) -> None:
        """
        Close the answer that this thread left unfinished, and note the one that begins.

        It would otherwise hold the model for ever against its own thread.
        """
        before = getattr(self._unfinished, 'answer', lambda: None)()
        if before is not None:
            before.close()
        self._unfinished.answer = weakref.ref(answer) if answer else lambda: None

    def _is_cancelled(self) -> bool:
        return self._cancelled

    def _embed(self, source: ImageSource, config: Config, progress: _Progress) -> ImageEmbedding:
        """Give a picture's embedding, from the cache where it has been seen before."""
        if self.encoder is None or self.family is None:
            raise ModelMismatch('this model reads no pictures: give its vision encoder in '
                                'model_file_name, or ask without a picture')
        start = perf_counter()
        rgb = load_rgb(source)
        height, width = rgb.shape[:2]
        how = f'{width} {height} {config.max_tiles} {config.fit}'
        digest = hashlib.sha256(how.encode())
        digest.update(np.ascontiguousarray(rgb).data)
        key = digest.digest()[:16]
        found = self._embeddings.get(key)
        if found is not None:
            self._embeddings.move_to_end(key)
            progress.preprocess += perf_counter() - start
            return found
        tiles = self.family.tiles(rgb, self.encoder.side, config.max_tiles, config.fit)
        middle = perf_counter()
        data = self.encoder.encode(tiles)
        embedding = ImageEmbedding(data, tiles.rows, tiles.columns, tiles.overview, key,
                                   (width, height))
        self._embeddings[key] = embedding
        while len(self._embeddings) > KEPT_PICTURES:
            self._embeddings.popitem(last=False)
        progress.preprocess += middle - start
        progress.encode += perf_counter() - middle
        return embedding

    def _user_parts(self, prompt: str, shown: Sequence[ImageEmbedding],
                    labels: Sequence[str]) -> tuple[list[Part], list[Part]]:
        """Put pictures and question in the family's order: (all parts, those of pictures)."""
        if labels and len(labels) != len(shown):
            raise PictureError(f'{len(labels)} labels for {len(shown)} pictures: give one each')
        if self.family is None or not shown:
            return [prompt], []
        pictures = self.family.show(shown, labels, self._decoder.controls)
        return [*pictures, prompt], pictures

    def system_text(self, config: Config) -> str:
        """Give the system prompt of a request."""
        chosen = config.system_text()
        if chosen or self.family is None:
            return chosen
        return self.family.thinking_text if config.thinking else self.family.system_text

    # -- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """Stop a running answer and free the model; twice is harmless."""
        self.cancel()
        self.take_over(None)
        with self._requests:
            self._on_close.close()

    def __enter__(self) -> VLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()


class Answer(Iterator[TextChunk]):
    """
    An answer as it is made.

    ``reply`` is there once the last chunk has been given, or the answer was closed.
    """

    def __init__(self, vlm: VLM, chunks: Generator[TextChunk, None, None], progress: _Progress):
        self._vlm = vlm
        self._chunks = chunks
        self._progress = progress
        self._started = False

    def __next__(self) -> TextChunk:
        if not self._started:
            self._started = True
            self._vlm.take_over(self)
        return next(self._chunks)

    def close(self) -> None:
        """Stop the model; the tokens until here stay in the conversation."""
        self._chunks.close()

    def finish(self) -> Reply:
        """Run to the end."""
        for _ in self:
            pass
        return self.reply

    @property
    def reply(self) -> Reply:
        """Sum up the answer as far as it goes."""
        return self._progress.reply()


class Conversation:
    """
    Several turns with one model.

    History and pictures stay in the KV cache: a turn decodes only its own text.
    """

    def __init__(self, vlm: VLM, system_prompt: str = '', overflow: str = 'drop_oldest'):
        if overflow not in ('drop_oldest', 'refuse'):
            raise ConfigError(f'overflow is {overflow!r}: expected drop_oldest or refuse',
                              'overflow')
        self._vlm = vlm
        self._system_prompt = system_prompt
        self._overflow = overflow
        self._turns: list[_Turn] = []

    def ask(self, prompt: str, images: Images = None, *, labels: Sequence[str] = (),
            **options: Any) -> Reply:
        """Ask the next question; as :meth:`VLM.ask`."""
        return self.stream(prompt, images, labels=labels, **options).finish()

    def stream(self, prompt: str, images: Images = None, *, labels: Sequence[str] = (),
               **options: Any) -> Answer:
        """Ask the next question; as :meth:`VLM.stream`."""
        for name in options:
            if name not in PER_REQUEST:
                raise ConfigError(f'{name} cannot differ from question to question; expected one '
                                  f"of {', '.join(PER_REQUEST)}", name)
        if self._system_prompt:
            options = {'system_prompt': self._system_prompt, **options}
        config = replace(self._vlm.config, **options)
        self._vlm.check(config)
        if config.thinking and 'temperature' not in options and config.temperature == 0:
            config = replace(config, temperature=0.6)       # as InternVL3.5's makers advise
        progress = _Progress()
        chunks = self._vlm._answer(self, prompt, images, labels, config, progress)
        return Answer(self._vlm, chunks, progress)

    def reset(self) -> None:
        """Forget all turns."""
        self._turns.clear()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.reset()

    def lay_out(self, turn: _Turn, config: Config) -> tuple[list[Span], Prompt]:
        """Put the new turn after the earlier ones, which may have to leave."""
        vlm = self._vlm
        room = vlm._decoder.n_ctx - min(config.n_predict, vlm._decoder.n_ctx // 4)
        while True:
            spans: list[Span] = []
            for earlier in [*self._turns, turn]:
                spans += (vlm._template.following(earlier.user) if spans else
                          vlm._template.opening(vlm.system_text(config), earlier.user))
                spans.append(earlier.answer)
            prompt = flatten(vlm._decoder, spans)
            if not self._turns or self._overflow == 'refuse' or len(prompt.cells) <= room:
                break
            self._drop_oldest(turn)
        if len(prompt.cells) > vlm._decoder.n_ctx:
            raise PromptTooLong(len(prompt.cells), vlm._decoder.n_ctx)
        return spans[:-1], prompt

    def _drop_oldest(self, newest: _Turn) -> None:
        """Forget the oldest turn; the newest picture stays."""
        gone = self._turns.pop(0)
        rest = [*self._turns, newest]
        if gone.pictures and not any(t.pictures for t in rest):
            rest[0].user[:0] = gone.pictures
            rest[0].pictures = gone.pictures

    def remember(self, turn: _Turn, progress: _Progress) -> None:
        """Add a finished turn to the history."""
        turn.answer = Tokens(tuple(progress.tokens))
        self._turns.append(turn)


def picture_list(images: Images) -> list[ImageSource]:
    """Give one picture, several or none as a list."""
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return list(images)
    return [images]
