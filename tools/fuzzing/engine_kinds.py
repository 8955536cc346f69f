"""What callers, saved conversations and templates bring: kinds that need a loaded model."""

from __future__ import annotations

from io import BytesIO
import json
import os
from pathlib import Path
from random import Random
import re
import sys
import tempfile
from typing import Any
import zipfile

from .kinds import DEMO, Kind, MODELS
from .mutate import mutated, one_value, text

FEW = {'n_ctx': 512, 'n_predict': 4, 'llm_threads': 1, 'encoder_threads': 1}


def warm() -> None:
    """Import what a model needs, so that each case finds it."""
    from hobot_vlm import vlm  # noqa: F401
    from hobot_vlm.encoders import onnx  # noqa: F401
    from hobot_vlm.image import load  # noqa: F401
    import onnxruntime  # noqa: F401


def strange(random: Random, depth: int = 2):
    """Make a value of any type."""
    simple = [
        None,
        True,
        0,
        -1,
        2**31,
        2**64,
        1.5,
        float('nan'),
        float('inf'),
        -1e300,
        '',
        'x',
        b'x',
        '\0',
        '9' * 400,
        [],
        {},
        (),
        object(),
        Path('/dev/zero'),
        'data:,x',
        '~',
        text(random),
    ]
    if depth and random.random() < 0.3:
        inner = [strange(random, depth - 1) for _ in range(random.randrange(4))]
        return random.choice((inner, tuple(inner), dict(enumerate(inner)), {'type': inner}))
    return random.choice(simple)


class WithModel(Kind):
    """
    A kind that asks a loaded model.

    Its cases share a process, which loads a model once: that takes ten times as long as a case.
    """

    together = 12

    def __init__(self) -> None:
        self._open: dict[str, Any] = {}

    def prepare(self, folder: Path) -> None:
        warm()

    def model(self, **options):
        """Give a model, loaded in this process."""
        from hobot_vlm import VLM

        key = repr(options)
        if key not in self._open:
            self._open[key] = VLM.load(**options)
        return self._open[key]


class Requests(WithModel):
    """Questions with options of any type."""

    names = (
        'labels',
        'stop',
        'logit_bias',
        'logprobs',
        'priority',
        'timeout',
        'temperature',
        'top_k',
        'top_p',
        'min_p',
        'seed',
        'n_predict',
        'repeat_penalty',
        'system_prompt',
        'json_schema',
        'max_tiles',
        'fit',
        'thinking',
        'nothing',
    )

    def run(self, random: Random, place: Path) -> None:
        chosen = random.sample(self.names, random.choice((0, 1, 1, 2)))
        options = {name: strange(random) for name in chosen}
        prompt = random.choice(('What is it?', strange(random), self.messages(random)))
        images = random.choice((None, str(DEMO / 'sample.png'), strange(random)))
        self.model(n_ctx=512, n_predict=4).ask(prompt, images, **options)

    def messages(self, random: Random):
        """Make messages, most of them in the form of chat APIs."""
        parts = (
            {'type': 'text', 'text': text(random)},
            {'type': 'image', 'image': str(DEMO / 'sample.png')},
            {'type': 'text', 'text': strange(random)},
            {'type': strange(random)},
            strange(random),
        )
        roles = ('user', 'user', 'system', 'assistant', strange(random))
        return [
            {
                'role': random.choice(roles),
                'content': random.choice((text(random), random.sample(parts, 2), strange(random))),
            }
            for _ in range(random.randrange(1, 4))
        ]


class Prompts(WithModel):
    """Texts of all lengths and characters."""

    decoders = sorted(MODELS.glob('*/decoder.gguf'))

    def run(self, random: Random, place: Path) -> None:
        decoder = random.choice([None, *self.decoders])
        where = {'llm_model_name': str(decoder)} if decoder else {}
        shape = random.random()
        prompt = text(random, random.choice((50, 500, 3000)))
        if shape < 0.3:
            alphabet = ' a1\n\t,.你é🐶\u0301\u200d'
            prompt = random.choice(alphabet) * random.choice((1, 100, 3000, 30000, 300000))
        elif shape < 0.5:
            prompt = ''.join(chr(random.randrange(1, 0xD800)) for _ in range(200))
        self.model(**FEW, **where).ask(prompt, system_prompt=text(random, 50))


class Saved(WithModel):
    """Saved conversations: bytes changed, or values of what they say."""

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        from multiprocessing import get_context

        path = folder / 'conversation'
        # in a process of its own: this one must stay without threads
        process = get_context('fork').Process(target=save_one, args=(path,))
        process.start()
        process.join()
        self.data = path.read_bytes()

    def run(self, random: Random, place: Path) -> None:
        path = place / 'conversation'
        path.write_bytes(
            mutated(self.data, random) if random.random() < 0.3 else self.edited(random)
        )
        self.model(n_ctx=512, n_predict=4).restore(path).ask('And on the right?')

    def edited(self, random: Random) -> bytes:
        """Change a value of the state, or numbers of a picture or of the cells."""
        made = BytesIO()
        with zipfile.ZipFile(BytesIO(self.data)) as old, zipfile.ZipFile(made, 'w') as new:
            names = old.namelist()
            changed = random.choice([*names, 'state.json', 'state.json'])
            for name in names:
                content = old.read(name)
                if name == changed and name.endswith('.json'):
                    content = json.dumps(change(json.loads(content), random)).encode()
                elif name == changed:
                    content = one_value(content, random)
                new.writestr(name, content)
        return made.getvalue()


def save_one(path: Path) -> None:
    """Save a conversation of one question about the bundled picture."""
    from hobot_vlm import VLM

    with VLM.load('demo', n_ctx=512, n_predict=8) as vlm:
        conversation = vlm.conversation()
        conversation.ask('What is on the left?', str(DEMO / 'sample.png'))
        conversation.save(path)


def change(value, random: Random):
    """Change one value somewhere in a JSON document."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        return {**value, key: change(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.9:
        index = random.randrange(len(value))
        return [*value[:index], change(value[index], random), *value[index + 1 :]]
    if isinstance(value, int) and random.random() < 0.7:
        return value + random.choice((-1, 1, 2**31, -(2**31), 2**63))
    return random.choice((None, True, -1, 0, 2**40, 1e308, '', 'x' * 1000, [], {}, [[]], {'a': 1}))


class Templates(Kind):
    """Chat templates from pieces of such, and from pieces of bombs."""

    pieces = (
        '{% for message in messages %}',
        '{% endfor %}',
        "{{ message['role'] }}",
        '<|im_start|>',
        "{{ message['content'] }}",
        '{% if add_generation_prompt %}',
        '{% endif %}',
        '<|im_end|>',
        '{{ messages[0] }}',
        '{{ messages }}',
        '{% set x = x ~ x %}',
        "{% set x = 'a' %}",
        '{{ x }}',
        '{% for i in range(99999) %}',
        '{% for j in range(99999) %}',
        "{{ '%999999d' % 1 }}",
        "{{ 'a' * 99999999 }}",
        "{{ ('a' * 9999).center(99999999) }}",
        '{{ 9 ** 9 ** 9 }}',
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception('no') }}",
        '{% macro m() %}{{ m() }}',
        '{% endmacro %}',
        '{{ m() }}',
        '{% include "x" %}',
        '{{ bos_token }}',
        '{{ nothing.at.all }}',
        '{{ messages | tojson }}',
        "{{ message['content'] | upper }}",
        '{%- set ns = namespace() %}',
        "{{ message['content'][0]['text'] }}",
        '\n',
        '{{',
        '%}',
        '{# ',
        "{{ strftime_now('%Y') }}",
    )

    #: pieces that are whole, so that a template with them is one
    whole = (
        '{% set x = x ~ x %}',
        "{% set x = 'ab' %}",
        "{% for i in range(40) %}{% set x = 'a' * 9 ** 9 %}{% endfor %}",
        '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}',
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
        '{% set ns.x = ns.x ~ ns.x %}{% endfor %}',
        "{{ '%999999999d' % 1 }}",
        "{{ 'a' * 999999999 }}",
        "{{ 'x'.center(999999999) }}",
        '{{ 9 ** 9 ** 9 }}',
        '{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}',
        "{{ messages[0]['content'] }}",
        '{{ messages | tojson }}',
        "{{ messages[0]['content'] | upper | reverse }}",
        "{% for c in messages[0]['content'] %}{{ c }},{% endfor %}",
        "{{ raise_exception('no') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        '{{ nothing.at.all }}',
        "{{ strftime_now('%Y') }}",
        '{{ cycler }}{{ joiner }}{{ lipsum(99999) }}',
    )

    def prepare(self, folder: Path) -> None:
        from hobot_vlm.prompt import rendering, template

        self.template = template
        rendering._child = rendered_apart

    def run(self, random: Random, place: Path) -> None:
        if random.random() < 0.3:
            source = ''.join(random.choice(self.pieces) for _ in range(random.randrange(1, 12)))
        else:  # a good template with a few pieces between its own
            own = re.split(r'(?<=[%}]})', self.template.CHATML)
            for _ in range(random.choice((1, 1, 2, 3))):
                own.insert(random.randrange(len(own) + 1), random.choice(self.whole))
            source = ''.join(own)
        made = self.template.ChatTemplate(source, ('<|im_start|>', '<|im_end|>'))
        made.opening('You see pictures.', ['What is it?'])
        made.following(['And now?'])


def rendered_apart(asked: str, _: object) -> str:
    """Render templates in a fork within the same bounds, quicker than in a new interpreter."""
    from hobot_vlm.prompt import jinja_child, rendering

    with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as answer:
        question.write(asked.encode())
        question.seek(0)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.dup2(question.fileno(), 0)
                os.dup2(answer.fileno(), 1)
                sys.stdin, sys.stdout = open(0), open(1, 'w')
                pages = int(Path('/proc/self/statm').read_text().split()[0])
                jinja_child.MAX_MEMORY += pages * os.sysconf('SC_PAGESIZE')  # of the imports
                jinja_child.main()
                sys.stdout.flush()
                code = 0
            finally:
                os._exit(code)
        if os.waitpid(pid, 0)[1]:
            raise rendering._exceeded()
        answer.seek(0)
        return answer.read().decode()


ENGINE_KINDS = {'requests': Requests, 'prompts': Prompts, 'saved': Saved, 'templates': Templates}
