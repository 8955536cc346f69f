"""
A vision language model, for Python: load it, and ask it from any thread or coroutine.

Puts the parts together; knows no ROS, no HTTP and no llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as List
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TYPE_CHECKING

from . import catalogue, choosing, conversation_file, loader, many, vision
from .catalogue import find, machine, Model, remove, user_file
from .config import Config
from .conversation import Conversation
from .encoded import EncodedImage
from .encoders.runtimes import available as runtimes
from .engine.engine import Engine
from .engine.image_encoder import ImageEncoder, ImageJob
from .engine.request import make_request, Request
from .engine.sequence import Sequence
from .engine.stream import Stream
from .errors import StateError, VlmError
from .futures import when_all
from .image.camera import Camera
from .image.load import load_rgb as read_image
from .llama.kv_cache import KvCache
from .llama.sampler import Sampler
from .prompt.tokens import tokenize_plainly
from .prompt_maker import PromptMaker
from .values import Images, ImageSource, Reply, Status

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .option_types import AskOptions, LoadOptions

__all__ = [
    'Camera',
    'find',
    'machine',
    'make_request',
    'Model',
    'read_image',
    'remove',
    'runtimes',
    'user_file',
    'VLM',
]


class VLM:
    """
    A vision language model: ask it about pictures.

    .. code-block:: python

       with VLM.load('demo') as vlm:
           print(vlm.ask('Describe the picture.', images='dog.jpg').text)

    All methods may be called from any thread, and any number of requests may be open: their
    answers are made side by side. A request runs whether or not its stream is read.
    """

    def __new__(cls, config: Config) -> VLM:
        """Choose what answers, as ``pathlib.Path`` does: a model here, or one elsewhere."""
        if cls is VLM and isinstance(config, Config) and config.is_remote:
            from .remote import remote_class

            return super().__new__(remote_class())
        return super().__new__(cls)

    def __init__(self, config: Config):
        """
        Load the encoder and the decoder.

        :raises VlmError: files are missing, damaged or do not belong together
        """
        # On a thread that ends: OpenMP keeps threads for each one that llama.cpp is called from,
        # and lets all wait less eagerly once there are more than cores.
        with ThreadPoolExecutor(1, 'load') as pool:
            self.parts = pool.submit(loader.load, config).result()
        self._images = ImageEncoder(self.parts.encoder, self.parts.family, self.parts.model.n_embd)
        self.maker = PromptMaker(self.parts)
        self._cache = KvCache(self.parts.context)
        self.engine = Engine(self._cache)
        self._prompts = ThreadPoolExecutor(1, 'prompt')  # templates and tokens, off the engine

    @classmethod
    def load(cls, model: str = 'demo', **options: Unpack[LoadOptions]) -> VLM:
        """
        Load a model of the catalogue, or files given as ``model_file_name=``, ``llm_model_name=``.

        :param options: any option of :class:`hobot_vlm.config.Config`
        """
        return cls(Config.from_flat({'model': model, **options}))

    @staticmethod
    def models() -> dict[str, catalogue.Model]:
        """
        Give the models that are known by name.

        :raises ConfigError: the user's own catalogue cannot be understood
        """
        return catalogue.load()

    @staticmethod
    def download(name: str) -> catalogue.Files:
        """
        Bring the files of a model onto this machine.

        :raises ConfigError: no such model
        :raises DownloadError: a file could not be fetched, or is not what the hub says it is
        """
        return catalogue.download(name)

    # -- what it is --------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """Give the options that the model runs with."""
        return self.parts.config

    @property
    def family(self) -> str:
        """Give the name of the model's family; empty without pictures."""
        return self.parts.family.name if self.parts.family else ''

    @property
    def tile_size(self) -> int:
        """Give the width and height of a tile in pixels; 0 where there are none of one size."""
        return self.parts.encoder.tile_size if self.parts.encoder else 0

    @property
    def runtime(self) -> str:
        """Give the name of what runs the encoder; empty for a model without pictures."""
        return self.parts.encoder.runtime if self.parts.encoder else ''

    @property
    def name(self) -> str:
        """Give the name by which people know the model."""
        config = self.config
        return Path(config.llm_model_name).stem if config.llm_model_name else config.model

    def status(self) -> Status:
        """Say what the model is doing."""
        images = self._images
        waiting, running = self.engine.counts
        known = images.hits, images.misses
        return Status(waiting, running, images.encoding, *known, images.seconds_left)

    def troubles(self) -> list[str]:
        """Say what keeps the model from answering; nothing where it is on this machine."""
        return []

    def tokenize(self, text: str) -> list[int]:
        """Give the tokens of plain text, in which nothing is a control token."""
        return tokenize_plainly(self.parts.model, text)

    @cached_property
    def identity(self) -> conversation_file.Identity:
        """Describe the model, so that a saved conversation finds it again."""
        return conversation_file.identity(
            self.parts.model.path, self.parts.encoder_path, self.config
        )

    # -- asking ------------------------------------------------------------------------------

    def ask(self, prompt: Any, images: Images = None, **more: Unpack[AskOptions]) -> Reply:
        """
        Answer one question, in a conversation of its own.

        :param prompt: text, or messages as chat APIs have them
        :param more: fields of :class:`hobot_vlm.engine.request.Request`, and any of
            ``config.PER_REQUEST``; ``option_types.py`` lists both
        :raises PictureError: a picture cannot be read
        :raises PromptTooLong: the prompt does not fit ``n_ctx``
        """
        return self.stream(prompt, images, **more).wait()

    def stream(self, prompt: Any, images: Images = None, **more: Unpack[AskOptions]) -> Stream:
        """Answer as ``ask`` does, piece by piece; returns at once."""
        return self.submit(make_request(prompt, images, **more))

    def ask_many(
        self,
        questions: List[tuple[Any, Images] | Request],
        parallel: int = 8,
        **more: Unpack[AskOptions],
    ) -> list[Reply | VlmError]:
        """
        Answer several questions, each in a conversation of its own.

        Up to ``parallel`` answers are made side by side, and the pictures of the next ones are
        encoded meanwhile. Greedy answers are what they are alone, but for near ties of quantised
        weights: ``cache_type='q8_0/f16'`` keeps these too, and takes longer over prompts of a
        thousand tokens and more.

        :param more: what all questions given as a tuple have in common, as for ``ask``
        :return: for each question its reply, or the error that it met
        """
        return many.ask_many(self, questions, parallel, more)

    def start_images(self, request: Request) -> ImageJob:
        """Begin to encode the pictures of a request."""
        return self._images.submit(
            request.sources, self.maker.config_of(request), request.priority
        )

    def choose(
        self, question: Any, images: Images = None, choices: List[str] = (), **more: Any
    ) -> dict[str, float]:
        """
        Say how likely each of 2 to 32 answers is, weighed whole by the model's own probabilities.

        :return: choice -> its share; all add up to 1. docs/acting.md says how they are weighed
        :raises ConfigError: choices that cannot be
        :raises InferenceError: cancelled, or out of time
        """
        return choosing.shares(self.ask(question, images, choices=choosing.some(choices), **more))

    def encode(self, images: Images, **options: Unpack[AskOptions]) -> None:
        """
        Encode pictures ahead of the question about them, and wait for it.

        :param options: any of ``config.PER_REQUEST``
        :raises PictureError: a picture cannot be read
        """
        vision.wait(self.start_images(make_request('.', images, **options)))

    def encode_image(self, picture: ImageSource, **options: Unpack[AskOptions]) -> EncodedImage:
        """Encode a picture for the same model elsewhere, which takes the result as a picture."""
        request = make_request('.', picture, **options)
        return vision.encoded(
            self.parts, self.start_images(request), self.maker.config_of(request)
        )

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
        path = conversation_file.as_path(path)
        state = conversation_file.read(path, self.identity, self.parts.model)
        n_ctx = self.parts.context.n_ctx
        if len(state.ids) > n_ctx:
            raise StateError(f'{path} holds {len(state.ids)} cells: raise n_ctx ({n_ctx})')
        chat = Conversation(self, state.system_prompt, state.overflow, state.turns)
        if state.ids and not self.engine.call(
            lambda: self._cache.restore(chat, state.ids, state.positions, bytes(state.kv))
        ):
            raise StateError(
                f'llama.cpp does not take the cells in {path}: they are damaged, or of another '
                'kind of context. Save the conversation anew'
            )
        return chat

    def cancel(self) -> None:
        """Stop the answer that was asked for first, within one step."""
        self.engine.cancel_oldest()

    # -- the flow ----------------------------------------------------------------------------

    def submit(
        self,
        request: Request,
        conversation: Conversation | None = None,
        job: ImageJob | None = None,
    ) -> Stream:
        """
        Have a request answered; returns at once.

        1. The pictures are read, cut and queued for the encoder.
        2. Once they are cut, and the turn before is over, the prompt is made; where the encoder
           runs on this CPU, once they are encoded.
        3. The scheduler runs it; what stands before a tile is prefilled while that is encoded.

        :param job: its pictures, where they are on their way already
        :raises ConfigError: an option that cannot be
        :raises InferenceError: the model is closed
        """
        if request.choices:
            return choosing.Choosing(self, request, job).stream()
        maker = self.maker
        config = maker.config_of(request, conversation.system_prompt if conversation else '')
        sequence = Sequence(request, config, conversation)

        def make(job: ImageJob) -> None:
            images = job.images.result()
            sequence.preprocess = job.preprocess
            drop = conversation is not None and conversation.overflow == 'drop_oldest'
            earlier = conversation.turns if conversation else []
            made = maker.question(request, config, images, earlier, drop)
            if conversation is not None:
                sequence.remember = partial(conversation.remember, made.turns, conversation.era)
            sequence.conclude = partial(maker.conclude, request, sequence.tokens, images)
            sampler = Sampler(
                self.parts.context, config, request.logit_bias, request.logprobs, made.thinking
            )
            self.engine.ready(sequence, made.prompt, made.thinking, sampler)

        return self.begin(sequence, conversation, make, job)

    def prefill(self, conversation: Conversation) -> Stream:
        """Bring what any next question of a conversation begins with into the KV cache."""
        request = Request('.')
        config = self.maker.config_of(request, conversation.system_prompt)
        sequence = Sequence(request, config, conversation, prefill_only=True)

        def make(_: ImageJob) -> None:
            prompt = self.maker.start(config, conversation.turns)
            self.engine.ready(sequence, prompt, False, None)

        return self.begin(sequence, conversation, make)

    def begin(
        self,
        sequence: Sequence,
        conversation: Conversation | None,
        make: Callable[[ImageJob], None],
        job: ImageJob | None = None,
    ) -> Stream:
        """Submit a sequence, and have its prompt made once all that it needs is there."""
        request = sequence.request
        self.engine.submit(sequence)
        job = job or self.start_images(request)
        sequence.encode = job.encode_seconds
        sequence.finished.add_done_callback(lambda _: self._images.abandon(job))
        needs: list[Future[Any]] = [job.images]
        if conversation is not None:
            needs += conversation.queue(sequence.finished)

        def attempt() -> None:
            if sequence.finished.done():  # cancelled, or out of time
                return
            try:
                make(job)
            except BaseException as exc:
                self.engine.fail(sequence, exc)

        def then() -> None:
            try:
                self._prompts.submit(attempt)
            except RuntimeError:  # closed meanwhile; the sequence was cancelled
                pass

        when_all(needs, then)
        return Stream(
            sequence.mailbox,
            partial(self.engine.cancel, sequence),
            partial(self._images.progress, job),
        )

    def cells_of(self, conversation: Conversation) -> tuple[list[int], bytearray] | None:
        """
        Give what a conversation begins with, and its cells, if its slot holds that now.

        :return: ids and cells; None where others have taken the room meanwhile
        """
        config = self.maker.config_of(Request('.'), conversation.system_prompt)
        ids = self.maker.start(config, conversation.turns).ids
        cells = self.engine.call(lambda: self._cache.state_of(conversation, ids))
        return None if cells is None else (ids, cells)

    # -- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """Stop what runs and free the model; twice is harmless."""
        self.engine.close()
        self._images.close()
        self._prompts.shutdown(cancel_futures=True)
        self.parts.on_close.close()

    def __enter__(self) -> VLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
