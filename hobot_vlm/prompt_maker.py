"""
From a request to its prompt: options, system prompt, pictures and earlier turns in order.

Knows the parts of a model; runs nothing, and knows nothing of who asks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from . import loader
from .config import Config, PER_REQUEST
from .engine.request import Request
from .errors import ConfigError, PictureError
from .families import boxes, grounding
from .llama.ids import common
from .option import unknown_option
from .prompt import history
from .prompt.history import Turn
from .prompt.template import ends_in_thought
from .prompt.tokens import Prompt, to_prompt
from .values import ImageEmbedding, Part, Reply, Tokens

OPTIONS = {item.name for item in fields(Config)}

#: answers whose tokens are remembered, for clients that send the history along as text
ANSWERS = 256

#: temperature of ``thinking`` where none is given, as InternVL3.5's makers advise
THINKING_TEMPERATURE = 0.6


@dataclass(frozen=True)
class Made:
    """
    A prompt, and what it is made of.

    :param turns: those that fit, the last one being asked
    :param thinking: it ends in the model's reasoning
    """

    turns: list[Turn]
    prompt: Prompt
    thinking: bool


def config_of(config: Config, request: Request, system_prompt: str = '') -> Config:
    """
    Give the configuration of a request to any model.

    :param config: of the model
    :param system_prompt: of its conversation
    :raises ConfigError: an option that a request cannot have
    :raises PictureError: some pictures have labels, and others none
    """
    options = dict(request.options)
    for name in options:
        if name not in PER_REQUEST:
            if name not in OPTIONS:
                raise unknown_option(name, {*PER_REQUEST, *(f.name for f in fields(Request))})
            raise ConfigError(
                f'{name} cannot differ from question to question; expected one '
                f'of {", ".join(PER_REQUEST)}',
                name,
            )
    if system_prompt:
        options.setdefault('system_prompt', system_prompt)
    made = replace(config, **options)
    if made.thinking and 'temperature' not in options and made.temperature == 0:
        made = replace(made, temperature=THINKING_TEMPERATURE)
    if len(request.labels) not in (0, len(request.sources)):
        raise PictureError(
            f'{len(request.labels)} labels for {len(request.sources)} pictures: give one each'
        )
    return made


class PromptMaker:
    """Makes the prompts of one model; safe from any thread."""

    def __init__(self, parts: loader.Parts):
        self._parts = parts
        self._answers: OrderedDict[str, Tokens] = OrderedDict()

    def remember(self, tokens: Sequence[int], reply: Reply) -> Reply:
        """Note what an answer is made of: as text of a history it is then in the KV cache."""
        if reply.text and not reply.thinking:
            self._answers[reply.text] = Tokens(tuple(tokens))
            while len(self._answers) > ANSWERS:
                self._answers.popitem(last=False)
        return reply

    def config_of(self, request: Request, system_prompt: str = '') -> Config:
        """
        Give the configuration of a request.

        :param system_prompt: of its conversation
        :raises ConfigError: an option that a request, or this model, cannot have
        """
        config = config_of(self._parts.config, request, system_prompt)
        loader.check_request(config, self._parts.family, find=request.find)
        return config

    def question(
        self,
        request: Request,
        config: Config,
        images: Sequence[ImageEmbedding],
        earlier: Sequence[Turn],
        drop_oldest: bool,
    ) -> Made:
        """
        Make the prompt of a question after the earlier turns, of which the oldest may leave.

        :raises PromptTooLong: it does not fit
        :raises ModelMismatch: the chat template fails
        """
        parts, controls = self._parts, self._parts.model.controls
        system = self._system_text(config)
        if request.messages:
            given, turns = history.to_turns(
                parts.family, controls, request.messages, images, self._answers
            )
            system = given or system
        else:
            asked: Part = request.prompt
            if request.find and images:
                asked = boxes.question(str(request.prompt), controls)
            turns = [history.with_images(parts.family, controls, asked, images, request.labels)]
        staying, spans, prompt = history.fit(
            parts.model,
            parts.template,
            system,
            [*earlier, *turns],
            parts.context.n_ctx,
            config.n_predict,
            drop_oldest,
        )
        return Made(staying, prompt, ends_in_thought(spans))

    def start(self, config: Config, turns: Sequence[Turn]) -> Prompt:
        """Give what any next question begins with: what two different ones have in common."""
        parts, system = self._parts, self._system_text(config)
        one, other = (
            to_prompt(
                parts.model, history.to_spans(parts.template, system, [*turns, Turn([text])])
            )
            for text in ('a', '1')
        )
        same = common(one.ids, other.ids)
        if same > parts.context.n_ctx:
            same = 0  # the oldest turns leave with the next question
        return Prompt(one.ids[:same], [item for item in one.tiles if item[0] < same])

    def conclude(
        self,
        request: Request,
        tokens: Sequence[int],
        images: Sequence[ImageEmbedding],
        reply: Reply,
    ) -> Reply:
        """
        Give the reply to a request as its caller gets it.

        :param tokens: of the answer
        :param images: of the request
        """
        reply = self.remember(tokens, reply)
        return self.with_places(request, images[0], reply) if images else reply

    def with_places(self, request: Request, image: ImageEmbedding, reply: Reply) -> Reply:
        """
        Add the boxes and points of an answer, which are those in the first picture.

        :param image: the first picture, which they are in
        """
        parts = self._parts
        assert parts.family is not None
        if image.made_by is not None:
            tile_size, fit = image.made_by
        else:
            assert parts.encoder is not None
            tile_size = parts.encoder.tile_size
            fit = request.options.get('fit') or parts.config.fit
        thing = boxes.task(str(request.prompt))[1] if request.find else ''
        frame = grounding.Frame(
            *image.size, tile_size or boxes.SCALE, fit or parts.family.default_fit
        )
        found, points = grounding.read(reply.text, thing, frame, request.find)
        return replace(reply, boxes=found, points=points)

    def _system_text(self, config: Config) -> str:
        chosen, family = config.system_text(), self._parts.family
        if chosen or family is None:
            return chosen
        return family.thinking_text if config.thinking else family.system_text
