"""
Choosing between given answers by how likely the model finds each.

Knows ``VLM`` and the scorers. What is said is a sequence of the scheduler like any other, and so
is each choice of several tokens: what they begin with is decoded once, and they run side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import replace
from functools import partial
import math
import threading
from time import perf_counter
from typing import TYPE_CHECKING

from .engine.request import Request
from .engine.sequence import Sequence
from .engine.stream import Item, Mailbox, Stream
from .errors import ConfigError, InferenceError, PromptTooLong
from .llama.scorer import Scorer, Speaker
from .prompt.tokens import Prompt
from .values import Progress, Reply, TextChunk

if TYPE_CHECKING:
    from .engine.image_encoder import ImageJob
    from .prompt_maker import Made
    from .vlm import VLM

#: probability of all choices together from which on this is their place: as likely as not
HALF = 0.5

#: logarithm of how much less likely than another a form is that need not be weighed whole: a tenth
#: of what a share may be wrong by (1e-3)
NEGLIGIBLE = math.log(1e-4)

#: the tokens of a form of a choice
Form = tuple[int, ...]


def spellings(choice: str) -> list[str]:
    """Give the ways in which a model may write a choice: small or large, after a space or not."""
    bare = choice.strip()
    cased = dict.fromkeys((bare, bare[0].upper() + bare[1:], bare[0].lower() + bare[1:]))
    return [space + text for space in ('', ' ') for text in cased]


def some(choices: List[str]) -> List[str]:
    """
    Give choices that are some.

    :raises ConfigError: there are none
    """
    if not choices:
        raise ConfigError('there are no choices: expected 2 or more', 'choices')
    return choices


def shares(reply: Reply) -> dict[str, float]:
    """
    Give the shares of the choices.

    :raises InferenceError: the choices were not weighed to the end
    """
    if not reply.choices:
        why = {'timeout': 'timeout was over', 'cancelled': 'the request was cancelled'}
        raise InferenceError(
            f'{why.get(reply.finish_reason, reply.finish_reason)} before all choices were '
            'weighed: ask again, with a longer timeout or fewer choices'
        )
    return dict(reply.choices)


class _Relay(Mailbox):
    """Hands the end of a sequence on to whoever made it, and no pieces."""

    def __init__(self, then: Callable[[Item], None]):
        super().__init__()
        self._then = then

    def put(self, item: Item) -> None:
        """Hand on the end; on the engine's thread."""
        if not isinstance(item, TextChunk):
            self._then(item)


class Choosing:
    """
    One request with choices, from its submission to its reply.

    1. The model says what it would say, up to the place of the choices: where as likely as not
       one of them comes next. With ``exact`` that is at once.
    2. There each choice is weighed whole; where the model has come to its end without such a
       place, at its beginning.

    The second step is begun on the engine's thread, at the end of the first.
    """

    def __init__(self, vlm: VLM, request: Request, job: ImageJob | None):
        """
        Begin.

        :param job: the pictures, where they are on their way already
        :raises VlmError: an option that cannot be, or the model is closed
        """
        self._vlm, self._request = vlm, request
        self._config = vlm.maker.config_of(request)
        self._job = job or vlm.start_images(request)
        self._began = perf_counter()
        self._deadline = self._began + request.timeout if request.timeout else None
        self._mailbox = Mailbox()
        self._forms: dict[Form, str] = {}
        for choice in request.choices:
            for text in [choice] if request.exact else spellings(choice):
                if form := tuple(vlm.tokenize(text)):
                    self._forms.setdefault(form, choice)
        self._made: Made | None = None
        self._head = Reply('')  # with the counts and times of the speaking
        self._tokens = 0  # that were said
        self._scores: dict[Form, float] = {}
        self._guard = threading.Lock()  # of the next three
        self._open: dict[Sequence, Stream] = {}
        self._cancelled = self._over = False
        share = 0.0 if request.exact else HALF
        self._speaker = Speaker(vlm.parts.context, self._forms, share)
        self._pictures = self._run(self._speaker, self._config.n_predict, [], self._on_spoken)

    def stream(self) -> Stream:
        """Give the caller's end."""
        return Stream(self._mailbox, self.cancel, self._progress)

    def _progress(self) -> Progress:
        return self._pictures.progress

    def cancel(self) -> None:
        """Stop; callable from any thread."""
        with self._guard:
            self._cancelled = True
            sequences = list(self._open)
        for sequence in sequences:
            self._vlm.engine.cancel(sequence)

    # -- one sequence ------------------------------------------------------------------------

    def _run(
        self, sampler: Scorer, n_predict: int, after: List[int], then: Callable[[Reply], None]
    ) -> Stream:
        """Have a sequence run behind the prompt and what was said."""
        vlm = self._vlm

        def end(item: Item) -> None:
            with self._guard:
                self._open.pop(sequence, None)
            try:
                if isinstance(item, Reply) and item.finish_reason in ('stop', 'length'):
                    if not self._over:
                        then(item)
                else:
                    self._end(item)
            except Exception as exc:  # the model was closed meanwhile
                self._end(exc)

        def make(job: ImageJob) -> None:
            sequence.preprocess = job.preprocess
            images = job.images.result()
            made = self._made or vlm.maker.question(
                self._request, self._config, images, [], drop_oldest=False
            )
            self._made = made
            prompt = Prompt([*made.prompt.ids, *after], made.prompt.tiles)
            vlm.engine.ready(sequence, prompt, made.thinking, sampler)

        config = replace(self._config, n_predict=n_predict)
        sequence = Sequence(self._request, config, mailbox=_Relay(end))
        sequence.deadline = self._deadline
        with self._guard:  # it may end before ``begin`` returns
            stream = self._open[sequence] = vlm.begin(sequence, None, make, self._job)
            cancelled = self._cancelled
        if cancelled:
            vlm.engine.cancel(sequence)
        return stream

    # -- the steps ---------------------------------------------------------------------------

    def _on_spoken(self, reply: Reply) -> None:
        """Weigh the choices whole, but for what is known from the speaking."""
        place, self._head = self._speaker.place, reply
        said = self._speaker.said[: place.start]
        self._tokens = len(self._speaker.said)
        self._scores = dict(place.logprob)
        known = place.whole()
        least = max((self._scores[form] for form in known), default=-math.inf) + NEGLIGIBLE
        waiting = {
            form for form in self._forms if form not in known and self._scores[form] > least
        }
        if not waiting:
            return self._end(self._reply())

        def add(form: Form, scorer: Scorer, left: int, reply: Reply) -> None:
            if left > reply.completion_tokens:  # the context is full: a part says nothing of all
                tokens = reply.prompt_tokens + left
                return self._end(PromptTooLong(tokens, self._vlm.parts.context.n_ctx))
            self._scores[form] += scorer.logprob
            waiting.discard(form)
            if not waiting:
                self._end(self._reply())

        for form in list(waiting):
            number = place.weighed[form]
            scorer, left = Scorer(self._vlm.parts.context, form[number:]), len(form) - number
            then = partial(add, form, scorer, left)
            self._run(scorer, left, [*said, *form[:number]], then)

    def _reply(self) -> Reply:
        best = max(self._scores.values())
        if best == -math.inf:
            raise InferenceError(
                f'{self._vlm.parts.model.path} finds none of the choices possible: give others'
            )
        weights = dict.fromkeys(self._request.choices, 0.0)
        for form, score in self._scores.items():
            weights[self._forms[form]] += math.exp(score - best)
        total = sum(weights.values())
        found = {choice: weight / total for choice, weight in weights.items()}
        head = self._head
        took = 1000 * (perf_counter() - self._began)
        return replace(
            head,
            text=max(found, key=lambda choice: found[choice]),
            finish_reason='stop',
            completion_tokens=self._tokens,
            timings=replace(
                head.timings,
                decode_ms=round(max(0.0, took - head.timings.ttft_ms), 3),
                tokens_per_second=0.0,
            ),
            choices=found,
        )

    def _end(self, item: Item) -> None:
        """Give the caller the end, once."""
        with self._guard:
            over, self._over = self._over, True
        if over:
            return
        self.cancel()
        if isinstance(item, Reply) and item.choices:
            self._mailbox.put(TextChunk(item.text))
        elif isinstance(item, Reply):  # cancelled, or out of time
            item = replace(item, text='')
        self._mailbox.put(item)
