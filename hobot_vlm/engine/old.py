"""
From pictures and a question to a stream of text.

The engine knows nothing of ROS, nor of which chip encodes a picture. Read ``_Lane`` first: it is
one question on its way to an answer. ``VLM._serve`` runs one lane, or several side by side.
"""

from __future__ import annotations

from collections import deque, OrderedDict
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
import hashlib
import logging
import os
from pathlib import Path
import threading
from time import perf_counter
from typing import Any
import weakref

import numpy as np

from . import catalogue, saved
from .config import Config, LIVE
from .encoders import EncoderOptions, open_encoder, VisionEncoder
from .errors import (
    ConfigError,
    InferenceError,
    ModelMismatch,
    PictureError,
    PromptTooLong,
    StateError,
)
from .families import detect, Family
from .image import load_rgb
from .llama.model import Decoder, MAX_SEQUENCES
from .llama.sampling import Sampler
from .llama.session import Cache, common, flatten, Prompt, Session
from .prompt import CHATML, ChatTemplate, ends_in_thought, Part, PLAIN, Turn
from .text import AnswerText, StopTexts, Utf8Stream
from .values import ImageEmbedding, Images, ImageSource, Reply, Span, TextChunk, Timings, Tokens

logger = logging.getLogger('hobot_vlm')

#: pictures whose embeddings are kept; the oldest leave first
KEPT_PICTURES = 16

#: seconds that the first of many answers waits for others to begin with it
GATHER = 0.05

#: questions whose pictures are encoded before it is their turn
LOOK_AHEAD = 3

#: options that may differ from question to question
PER_REQUEST = (*LIVE, 'thinking', 'max_tiles', 'fit')


@dataclass(frozen=True)
class Request:
    """
    A question and what goes with it.

    :param prompt: the question: text, or the spans of one
    :param images: a path, the bytes of an image file, RGB uint8 (height, width, 3), or several
        of these
    :param labels: what to call each picture in the prompt; empty: as the family does
    :param stop: texts that end the answer; they are not part of it
    :param logit_bias: token id -> what is added to its logit
    :param logprobs: likeliest tokens to report for each token of the answer
    :param options: any of ``PER_REQUEST``
    """

    prompt: Part
    images: Images = None
    labels: Sequence[str] = ()
    stop: Sequence[str] = ()
    logit_bias: Mapping[int, float] | None = None
    logprobs: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


class _Lane:
    """
    One question on its way to an answer.

    1. ``look``: read the pictures, and encode those that are new.
    2. ``lay_out``: put the spans of the prompt in order.
    3. ``start``: prefill, that is decode what the KV cache does not hold yet, but for the last
       tokens, which the engine decodes together with those of other lanes.
    4. ``take``: choose a token and give its characters; the engine decodes it, and so on until
       the model ends.
    """

    def __init__(self, vlm: VLM, chat: Conversation, request: Request):
        self._vlm = vlm
        self._chat: Conversation | None = chat  # until closed
        self.request = request
        self.config = chat.config_of(request)
        self.cancelled = False
        self.pending: list[int] = []  # tokens to decode in the next step; none: it has ended
        self._shown: list[ImageEmbedding] | None = None
        self.prompt = Prompt()
        self._prompt_tokens = self._image_tokens = 0
        self.tokens: list[int] = []
        self.chunks: list[TextChunk] = []
        self.finish_reason = 'cancelled'  # until it is known better
        self._reused = 0
        self._began = perf_counter()
        self._preprocess = self._encode = self._prefill = 0.0
        self._started = self._first = self._last = 0.0
        self._sampler: Sampler | None = None

    # -- 1. pictures -------------------------------------------------------------------------

    def look(self) -> None:
        """Have the embeddings of all pictures of the request; again is harmless."""
        if self._shown is not None:
            return
        self._began = perf_counter()
        sources = picture_list(self.request.images)
        self._shown, self._preprocess, self._encode = self._vlm.embed(sources, self.config)

    # -- 2. prompt ---------------------------------------------------------------------------

    def lay_out(self) -> None:
        """Put the prompt together, after the earlier turns of the conversation; once."""
        if self.prompt.cells:
            return
        assert self._shown is not None and self._chat is not None
        turn = Turn(*self._vlm.user_parts(self.request, self._shown))
        self._turns, spans, self.prompt = self._chat.lay_out(turn, self.config)
        self._prompt_tokens, self._image_tokens = len(self.prompt.cells), self.prompt.image_tokens
        self._thinking = ends_in_thought(spans)

    # -- 3. prefill --------------------------------------------------------------------------

    def start(self, cache: Cache, beside: Sequence[_Lane], most: int) -> None:
        """
        Prefill all but the last tokens, which are ``pending`` then; none are if it was cancelled.

        :param beside: lanes that have started; what this one has in common with them is decoded
            once
        :param most: tokens to leave
        """
        assert self._chat is not None
        self._sampler = Sampler(
            cache.decoder, self.config, self.request.logit_bias, self.request.logprobs
        )
        self._characters = Utf8Stream()
        self._stop = StopTexts(self.request.stop)
        self._text = AnswerText(self._thinking)
        for other in beside:
            other.decode_until(common(other.prompt.cells, self.prompt.cells))
        self.session = cache.session(self._chat.owner, self.prompt)
        self.session.held = True
        self._started = perf_counter()
        self._reused = self.session.reusable(self.prompt)
        total = len(self.prompt.cells)
        self.decode_until(max(total - most, self.prompt.end_of_pictures, self._reused))

    def decode_until(self, cells: int) -> None:
        """Prefill at least so many cells of the prompt, but not the last one."""
        cells = min(cells, len(self.prompt.cells) - 1)
        if self.pending and len(self.session.cells) >= cells:
            return
        while not (ready := self.session.prefill(self.prompt, lambda: self.cancelled, cells)):
            if self.cancelled:
                break
            self._vlm.decoder.allow()  # it was another lane that was to stop
        self.pending = self.prompt.cells[len(self.session.cells) :] if ready else []

    # -- 4. decode ---------------------------------------------------------------------------

    def take(self) -> list[TextChunk]:
        """Choose a token by the logits of the last cell; give the characters that are whole."""
        assert self._sampler is not None and self._chat is not None
        decoder = self._vlm.decoder
        self.pending = []
        if not self._first:
            self._prefill = perf_counter() - self._started
            self._chat.remember(self._turns)
        token = self._sampler.sample(self.session.row)
        self._last = perf_counter()
        self._first = self._first or self._last
        if decoder.is_end(token):
            return self._end('stop')
        self.tokens.append(token)
        chunks = self._text.feed(self._stop.feed(self._characters.feed(decoder.piece(token))))
        if self._stop.met:
            return self._end('stop', chunks)
        if len(self.tokens) >= self.config.n_predict or self.session.full:
            return self._end('length', chunks)
        self.pending = [token]
        return self._given(chunks)

    def _end(self, reason: str, chunks: Sequence[TextChunk] = ()) -> list[TextChunk]:
        self.finish_reason = reason
        rest = (
            ''
            if self._stop.met
            else (self._stop.feed(self._characters.finish()) + self._stop.finish())
        )
        return self._given([*chunks, *self._text.feed(rest), *self._text.finish()])

    def _given(self, chunks: list[TextChunk]) -> list[TextChunk]:
        self.chunks += chunks
        return chunks

    # -- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """Keep the answer in the conversation, and free all that is large; twice is harmless."""
        self.pending = []
        if self._started:
            self.session.held = False
            if not self._first:
                self._prefill = perf_counter() - self._started
            self._started = 0.0
        if self._sampler is not None:
            self._sampler.close()
        if self.tokens:
            self._turns[-1].answer = Tokens(tuple(self.tokens))
        self._chat, self._shown, self.prompt = None, [], Prompt()

    def reply(self) -> Reply:
        """Sum up."""
        decode = self._last - self._first
        first = self._first - self._began if self._first else 0.0

        def ms(seconds: float) -> float:
            return round(1000 * seconds, 3)

        return Reply(
            ''.join(c.text for c in self.chunks if not c.thinking),
            self.finish_reason,
            self._prompt_tokens,
            self._image_tokens,
            len(self.tokens),
            self._reused,
            Timings(
                ms(self._preprocess),
                ms(self._encode),
                ms(self._prefill),
                ms(first),
                ms(decode),
                round((len(self.tokens) - 1) / decode, 2) if decode > 0 else 0.0,
            ),
            ''.join(c.text for c in self.chunks if c.thinking),
            logprobs=tuple(self._sampler.reported) if self._sampler else (),
        )


def room(lanes: Sequence[_Lane]) -> int:
    """Count the cells that whole answers may take side by side; what prompts share is one."""
    shared = (
        max((common(lane.prompt.cells, other.prompt.cells) for other in lanes[:i]), default=0)
        for i, lane in enumerate(lanes)
    )
    return sum(len(lane.prompt.cells) + lane.config.n_predict for lane in lanes) - sum(shared)


class _Waiting:
    """Lanes that wait for their turn; the pictures of the first few are encoded meanwhile."""

    def __init__(self, lanes: Sequence[_Lane], cleanup: ExitStack):
        self._lanes = deque(lanes)
        self._looks: deque[Future[None]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        if len(lanes) > 1:  # a question alone needs no thread
            self._pool = ThreadPoolExecutor(1, 'encode')
            cleanup.callback(self._pool.shutdown, cancel_futures=True)
            self._looks += (self._pool.submit(lane.look) for lane in lanes[:LOOK_AHEAD])

    def __len__(self) -> int:
        return len(self._lanes)

    def first(self, wait: float | None = None) -> _Lane | None:
        """
        Give the first lane once its pictures are encoded.

        :param wait: seconds after which to give None instead; None: never
        """
        if not self._lanes:
            return None
        if self._pool is None:
            self._lanes[0].look()
        else:
            look = self._looks[0]
            if not wait_for((look,), wait).done:
                return None
            look.result()
        return self._lanes[0]

    def leave(self) -> None:
        """Let the first lane go."""
        self._lanes.popleft()
        if self._pool is not None:
            self._looks.popleft()
            if len(self._lanes) >= LOOK_AHEAD:
                self._looks.append(self._pool.submit(self._lanes[LOOK_AHEAD - 1].look))


class VLM:
    """
    A vision language model: ask it about pictures.

    .. code-block:: python

       with VLM.load('demo') as vlm:
           print(vlm.ask('Describe the picture.', images='dog.jpg').text)

    All methods may be called from any thread. Answers are made one at a time, and the pictures of
    a question are encoded while another question is answered.
    """

    def __init__(self, config: Config):
        """
        Load the encoder and the decoder.

        :raises VlmError: files are missing, damaged or do not belong together
        """
        began = perf_counter()
        self._on_close = ExitStack()
        self._closed = False
        self._decoding = threading.Lock()  # held while an answer is made
        self._encoding = threading.Lock()  # held while pictures are encoded; guards the next
        self._embeddings: OrderedDict[bytes, ImageEmbedding] = OrderedDict()
        self._state = threading.Lock()  # guards the next
        self._lanes: list[_Lane] = []  # all that are on their way, oldest first
        self._unfinished = threading.local()  # .answer: this thread's newest, weakly
        self.encoder: VisionEncoder | None = None
        self.family: Family | None = None
        self._encoder_path: Path | None = None
        files = catalogue.resolve(config)
        unset = {f.name for f in fields(Config) if getattr(config, f.name) == f.default}
        self.config = replace(config, **{k: v for k, v in files.options.items() if k in unset})
        try:
            self._load(files.encoder, files.decoder)
        except BaseException:
            self._on_close.close()
            raise
        logger.info(
            'loaded %s and %s in %.0f ms',
            files.encoder,
            files.decoder,
            1000 * (perf_counter() - began),
        )

    @classmethod
    def load(cls, model: str = 'demo', **options: Any) -> VLM:
        """
        Load a model of the catalogue, or files given as ``model_file_name=``, ``llm_model_name=``.

        :param options: any option of :class:`hobot_vlm.config.Config`
        """
        return cls(Config.from_flat({'model': model, **options}))

    def _load(self, encoder: Path | None, decoder: Path) -> None:
        config = self.config
        self.decoder = Decoder(
            decoder,
            n_ctx=config.n_ctx,
            n_batch=config.n_batch,
            n_gpu_layers=config.n_gpu_layers,
            threads=config.llm_threads,
            cache_type=config.cache_type,
            flash_attention=config.flash_attention,
            mmap=config.mmap,
        )
        self._on_close.callback(self.decoder.close)
        self.cache = Cache(self.decoder)
        if config.lora:
            self.decoder.add_lora(config.lora, config.lora_scale)
        if encoder is not None:
            self.encoder = open_encoder(
                encoder,
                EncoderOptions(config.encoder_threads, config.bpu_priority, config.cores()),
            )
            self._on_close.callback(self.encoder.close)
            self._encoder_path = encoder
            self.decoder.check_embedding_width(self.encoder.n_embd, encoder)
            if not config.max_tiles:
                self.config = config = replace(config, max_tiles=self.encoder.usual_tiles)
            self.family = detect(self.decoder.controls, config.model_type, decoder)
        # the family's template, or the file's own, or the plainest that fits
        source = (
            (self.family and self.family.template)
            or self.decoder.chat_template()
            or (CHATML if '<|im_start|>' in self.decoder.controls else PLAIN)
        )
        self.template = ChatTemplate(
            source,
            self.decoder.controls,
            *self.decoder.bos_and_eos(),
            self.family.image_mark if self.family else '',
        )
        self.check(config)
        if config.warm_up:
            self.decoder.warm_up()

    def check(self, config: Config) -> None:
        """
        Check the options of a request.

        :raises ConfigError: one that this model does not have
        """
        if config.thinking and not (self.family and self.family.thinking_text):
            raise ConfigError(
                'thinking is true, but only InternVL models have a system prompt '
                'for it: give one, or set thinking to false',
                'thinking',
            )

    # -- asking ------------------------------------------------------------------------------

    def ask(self, prompt: Part, images: Images = None, **more: Any) -> Reply:
        """
        Answer one question, in a conversation of its own.

        :param more: fields of :class:`Request`, and any of ``PER_REQUEST``
        :raises PictureError: a picture cannot be read
        :raises PromptTooLong: the prompt does not fit ``n_ctx``
        """
        return self.stream(prompt, images, **more).finish()

    def stream(self, prompt: Part, images: Images = None, **more: Any) -> Answer:
        """Answer as ``ask`` does, piece by piece; closing the iterator stops the model."""
        return Answer(
            self,
            _Lane(
                self,
                Conversation(self, overflow='refuse', owner=self),
                request(prompt, images, **more),
            ),
        )

    def ask_many(
        self, questions: Sequence[tuple[Part, Images] | Request], parallel: int = 8, **more: Any
    ) -> list[Reply]:
        """
        Answer several questions, each in a conversation of its own.

        Up to ``parallel`` answers are decoded side by side, one batch a step, and pictures are
        encoded while earlier questions are answered. Greedy answers are what they are alone, but
        for near ties of quantised weights: ``cache_type='q8_0/f16'`` keeps these too, and takes
        longer over prompts of a thousand tokens and more.

        :param more: what all questions given as a tuple have in common, as for ``ask``
        """
        if not 1 <= parallel <= MAX_SEQUENCES:
            raise ConfigError(f'parallel is {parallel}: expected 1 to {MAX_SEQUENCES}', 'parallel')
        lanes = [
            _Lane(
                self,
                Conversation(self, overflow='refuse'),
                q if isinstance(q, Request) else request(*q, **more),
            )
            for q in questions
        ]
        self.take_over(None)
        for _ in self._serve(lanes, parallel):
            pass
        return [lane.reply() for lane in lanes]

    def conversation(self, system_prompt: str = '', overflow: str = 'drop_oldest') -> Conversation:
        """
        Begin a conversation of several turns.

        :param overflow: when the context is full: ``drop_oldest`` turns, or ``refuse``
        """
        return Conversation(self, system_prompt, overflow)

    def restore(self, path: str | Path) -> Conversation:
        """
        Go on with a conversation that :meth:`Conversation.save` wrote.

        Nothing is decoded: the next question costs what it would have cost there.

        :raises StateError: the file cannot be read, is damaged or does not fit ``n_ctx``
        :raises ModelMismatch: it was saved with another model
        """
        path = Path(path)
        state = saved.read(path, self.identity, self.decoder)
        if len(state.cells) > self.decoder.n_ctx:
            raise StateError(
                f'{path} holds {len(state.cells)} cells, and n_ctx is '
                f'{self.decoder.n_ctx}: raise n_ctx'
            )
        chat = Conversation(self, state.system_prompt, state.overflow)
        chat._turns = state.turns
        with self._encoding:
            self._embeddings.update((p.key, p) for p in state.pictures())
        self.take_over(None)
        with self._decoding:
            self.check_open()
            if state.cells and not self.cache.restore(chat, state.cells, bytes(state.kv)):
                raise StateError(
                    f'llama.cpp does not take the cells in {path}: they were saved '
                    'with another flash_attention, or are damaged. Save the '
                    'conversation anew'
                )
        return chat

    @cached_property
    def identity(self) -> saved.Identity:
        """Describe the model, so that a saved conversation finds it again."""
        return saved.identity(self.decoder.path, self._encoder_path, self.config)

    def cancel(self) -> None:
        """Stop the answer that was asked for first, within one token."""
        with self._state:
            if self._lanes:
                self._lanes[0].cancelled = True
                self.decoder.stop()

    # -- the flow ----------------------------------------------------------------------------

    def _serve(
        self, lanes: Sequence[_Lane], parallel: int = 1
    ) -> Generator[tuple[_Lane, TextChunk], None, None]:
        """Run lanes to their ends, up to ``parallel`` side by side; give what they say."""
        with ExitStack() as cleanup:
            self._enter(lanes, cleanup)
            waiting = _Waiting(lanes, cleanup)
            waiting.first()  # nobody else is kept from the model meanwhile
            cleanup.enter_context(self._decoding)
            self.check_open()
            live: list[_Lane] = []
            crowded = False  # until one of the live lanes ends
            gathered = perf_counter() + GATHER
            while live or waiting:
                # 1. lanes that have ended leave
                for lane in live:
                    if lane.cancelled or not lane.pending:
                        lane.close()
                        crowded = False
                live = [lane for lane in live if lane.pending]
                # 2. others come while there is room for their whole answers
                while not crowded and len(live) < parallel:
                    new = waiting.first(max(gathered - perf_counter(), 0) if live else None)
                    if new is None:
                        break
                    new.lay_out()
                    crowded = bool(live) and room([*live, new]) > self.decoder.n_ctx
                    if not crowded:
                        waiting.leave()
                        new.start(self.cache, live, self.decoder.n_batch // parallel)
                        live.append(new)
                # 3. one step for all; a stop ends it for the sake of those cancelled
                if any(lane.cancelled or not lane.pending for lane in live):
                    continue
                if not self.cache.step([(lane.session, lane.pending) for lane in live]):
                    self.decoder.allow()
                    continue
                # 4. a token for each
                for lane in live:
                    for chunk in lane.take():
                        yield lane, chunk

    def _enter(self, lanes: Sequence[_Lane], cleanup: ExitStack) -> None:
        """Note that lanes are on their way, until ``cleanup`` ends them."""

        def leave() -> None:
            for lane in lanes:
                lane.close()
            with self._state:
                self._lanes = [v for v in self._lanes if v not in lanes]
                self.decoder.allow()

        with self._state:
            self._lanes += lanes
        cleanup.callback(leave)

    def embed(
        self, sources: Sequence[ImageSource], config: Config
    ) -> tuple[list[ImageEmbedding], float, float]:
        """
        Give the embeddings of pictures, from memory where they have been seen before.

        :return: embeddings, seconds spent on preparing, seconds spent on encoding
        """
        if not sources:
            return [], 0.0, 0.0
        if self.encoder is None or self.family is None:
            raise ModelMismatch(
                'this model reads no pictures: give its vision encoder in '
                'model_file_name, or ask without a picture'
            )
        preprocess = encode = 0.0
        found: list[ImageEmbedding] = []
        with self._encoding:
            self.check_open()
            for source in sources:
                start = perf_counter()
                rgb = load_rgb(source)
                height, width = rgb.shape[:2]
                digest = hashlib.sha256(
                    f'{width} {height} {config.max_tiles} {config.fit}'.encode()
                )
                digest.update(np.ascontiguousarray(rgb).data)
                key = digest.digest()[:16]
                embedding = self._embeddings.get(key)
                if embedding is None:
                    tiles = self.family.tiles(rgb, self.encoder.side, config.max_tiles, config.fit)
                    middle = perf_counter()
                    embedding = ImageEmbedding(
                        self.encoder.encode(tiles),
                        tiles.rows,
                        tiles.columns,
                        tiles.overview,
                        key,
                        (width, height),
                    )
                    encode += perf_counter() - middle
                    start += perf_counter() - middle
                self._embeddings[key] = embedding
                self._embeddings.move_to_end(key)
                while len(self._embeddings) > KEPT_PICTURES:
                    self._embeddings.popitem(last=False)
                found.append(embedding)
                preprocess += perf_counter() - start
        return found, preprocess, encode

    def user_parts(
        self, asked: Request, shown: Sequence[ImageEmbedding]
    ) -> tuple[list[Part], list[Part]]:
        """Put pictures and question in the family's order: (all parts, those of pictures)."""
        if asked.labels and len(asked.labels) != len(shown):
            raise PictureError(
                f'{len(asked.labels)} labels for {len(shown)} pictures: give one each'
            )
        if self.family is None or not shown:
            return [asked.prompt], []
        pictures = self.family.show(shown, asked.labels, self.decoder.controls)
        return [*pictures, asked.prompt], pictures

    def system_text(self, config: Config) -> str:
        """Give the system prompt of a request."""
        chosen = config.system_text()
        if chosen or self.family is None:
            return chosen
        return self.family.thinking_text if config.thinking else self.family.system_text

    def take_over(self, answer: Answer | None) -> None:
        """
        Close the answer that this thread left unfinished, and note the one that begins.

        It would otherwise hold the model for ever against its own thread.
        """
        before = getattr(self._unfinished, 'answer', lambda: None)()
        if before is not None:
            before.close()
        self._unfinished.answer = weakref.ref(answer) if answer else lambda: None

    # -- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """Stop what runs and free the model; twice is harmless."""
        with self._state:
            for lane in self._lanes:
                lane.cancelled = True
            if self._lanes:
                self.decoder.stop()
        self.take_over(None)
        with self._encoding, self._decoding:
            self._closed = True
            self._on_close.close()

    def check_open(self) -> None:
        """
        Check that the model may be used, once it is this request's turn.

        :raises InferenceError: it was closed, perhaps while the request waited
        """
        if self._closed:
            raise InferenceError('the model is closed: load it again to ask it')

    def __enter__(self) -> VLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Answer(Iterator[TextChunk]):
    """
    An answer as it is made.

    ``reply`` sums it up as far as it goes; it is whole once the last chunk has been given.
    """

    def __init__(self, vlm: VLM, lane: _Lane):
        self._vlm = vlm
        self._lane = lane
        self._chunks = vlm._serve([lane])
        self._started = False

    def __next__(self) -> TextChunk:
        if not self._started:
            self._started = True
            self._vlm.take_over(self)
        return next(self._chunks)[1]

    def cancel(self) -> None:
        """Stop the model within one token; callable from any thread."""
        self._lane.cancelled = True
        with self._vlm._state:
            if self._lane in self._vlm._lanes:
                self._vlm.decoder.stop()

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
        return self._lane.reply()


class Conversation:
    """
    Several turns with one model.

    History and pictures stay in the KV cache: a turn decodes only its own text.
    """

    def __init__(
        self,
        vlm: VLM,
        system_prompt: str = '',
        overflow: str = 'drop_oldest',
        owner: object | None = None,
    ):
        """:param owner: whose cells the turns use; by default the conversation has its own"""
        if overflow not in ('drop_oldest', 'refuse'):
            raise ConfigError(
                f'overflow is {overflow!r}: expected drop_oldest or refuse', 'overflow'
            )
        self._vlm = vlm
        self._system_prompt = system_prompt
        self._overflow = overflow
        self._turns: list[Turn] = []
        self._owner = owner

    @property
    def owner(self) -> object:
        """Give whose cells the turns use."""
        return self._owner or self

    def ask(self, prompt: Part, images: Images = None, **more: Any) -> Reply:
        """Ask the next question; as :meth:`VLM.ask`."""
        return self.stream(prompt, images, **more).finish()

    def stream(self, prompt: Part, images: Images = None, **more: Any) -> Answer:
        """Ask the next question; as :meth:`VLM.stream`."""
        return Answer(self._vlm, _Lane(self._vlm, self, request(prompt, images, **more)))

    def prefill(self) -> None:
        """Decode now what any next question begins with: the system prompt, or the history."""
        self._vlm.take_over(None)
        with self._vlm._decoding:
            self._vlm.check_open()
            self._prefill()

    def _prefill(self) -> Session:
        """Have a session with exactly what any next question begins with."""
        cache, config = self._vlm.cache, self.config_of(Request(''))
        one, other = (
            flatten(cache.decoder, self._spans([*self._turns, turn], config))
            for turn in (Turn(['a'], []), Turn(['1'], []))
        )
        same = len(os.path.commonprefix([one.cells, other.cells]))
        if same > cache.decoder.n_ctx:
            same = 0  # the oldest turns leave with the next question
        start = Prompt(one.cells[:same], [p for p in one.pictures if p[0] < same])
        session = cache.session(self.owner, start)
        if session.cells[:same] == start.cells:
            session.rewind(same)
        while session.cells != start.cells:
            self._vlm.decoder.allow()  # whoever else is cancelled notices for itself
            session.prefill(start, lambda: False)
        return session

    def save(self, path: str | Path, cells: bool = True) -> None:
        """
        Write the conversation to a file, with its pictures and its cells of the KV cache.

        Before the first turn that is the system prompt, decoded. :meth:`VLM.restore` reads it.

        :param cells: False: leave them out, which is quick; the next question after ``restore``
            then decodes the history, but encodes no picture
        :raises StateError: it cannot be written
        """
        self._vlm.take_over(None)
        with self._vlm._decoding:
            self._vlm.check_open()
            session = self._prefill() if cells else None
            held, kv = (session.cells, session.state()) if session and session.cells else ([], b'')
            saved.write(
                Path(path),
                saved.Saved(self._system_prompt, self._overflow, self._turns, held, kv),
                self._vlm.identity,
            )

    def reset(self) -> None:
        """Forget all turns."""
        self._turns.clear()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.reset()

    def config_of(self, asked: Request) -> Config:
        """Give the configuration of a request."""
        options = dict(asked.options)
        for name in options:
            if name not in PER_REQUEST:
                raise ConfigError(
                    f'{name} cannot differ from question to question; expected one '
                    f'of {", ".join(PER_REQUEST)}',
                    name,
                )
        if self._system_prompt:
            options.setdefault('system_prompt', self._system_prompt)
        config = replace(self._vlm.config, **options)
        self._vlm.check(config)
        if config.thinking and 'temperature' not in options and config.temperature == 0:
            config = replace(config, temperature=0.6)  # as InternVL3.5's makers advise
        return config

    def lay_out(self, turn: Turn, config: Config) -> tuple[list[Turn], list[Span], Prompt]:
        """
        Put a new turn after the earlier ones, of which the oldest may have to leave.

        :return: the turns that stay and the new one, and their prompt; nothing is remembered yet
        """
        decoder = self._vlm.decoder
        room = decoder.n_ctx - min(config.n_predict, decoder.n_ctx // 4)
        turns = [*self._turns, turn]
        while True:
            spans = self._spans(turns, config)
            prompt = flatten(decoder, spans)
            if len(turns) == 1 or self._overflow == 'refuse' or len(prompt.cells) <= room:
                break
            turns = without_oldest(turns)
        if len(prompt.cells) > decoder.n_ctx:
            raise PromptTooLong(len(prompt.cells), decoder.n_ctx)
        return turns, spans, prompt

    def _spans(self, turns: Sequence[Turn], config: Config) -> list[Span]:
        """Lay out turns up to where the answer of the last one begins."""
        template = self._vlm.template
        spans: list[Span] = []
        for turn in turns:
            spans += (
                template.following(turn.user)
                if spans
                else template.opening(self._vlm.system_text(config), turn.user)
            )
            spans.append(turn.answer)
        return spans[:-1]

    def remember(self, turns: list[Turn]) -> None:
        """Make turns the history; the answer of the last one is filled in when it is known."""
        self._turns = turns


def without_oldest(turns: Sequence[Turn]) -> list[Turn]:
    """Leave out the oldest turn; the newest picture stays."""
    gone, *rest = turns
    if gone.pictures and not any(turn.pictures for turn in rest):
        rest[0] = replace(rest[0], user=[*gone.pictures, *rest[0].user], pictures=gone.pictures)
    return rest


def request(
    prompt: Part,
    images: Images = None,
    *,
    labels: Sequence[str] = (),
    stop: Sequence[str] = (),
    logit_bias: Mapping[int, float] | None = None,
    logprobs: int = 0,
    **options: Any,
) -> Request:
    """Make a request of keyword arguments."""
    return Request(
        prompt,
        images,
        labels,
        [stop] if isinstance(stop, str) else stop,
        logit_bias,
        logprobs,
        options,
    )


def picture_list(images: Images) -> list[ImageSource]:
    """Give one picture, several or none as a list."""
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return list(images)
    return [images]
