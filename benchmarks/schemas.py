"""What a form costs: answers that follow random schemas, against free ones."""

from __future__ import annotations

import json
from statistics import median
from time import perf_counter
from typing import Any

from hobot_vlm import AnswerCut, Reply, VLM
from hobot_vlm.config import Config
from hobot_vlm.llama.sampler import Sampler
import numpy as np
from report import Report

SCHEMAS = 500
#: schemas whose answers are decoded; all are compiled and sampled from
DECODED = 6
#: tokens of a decoded answer at most
LONGEST = 160
#: a form that leaves every token free
TEXT = '{"type": "string", "minLength": 900}'


def random_schema(rng: np.random.Generator, free: int) -> dict[str, Any]:
    """Make a schema of which about 60 % of the answer is names and braces."""
    names = [
        '_'.join(''.join(rng.choice(list('abcdefghij'), 4)) for _ in range(2)) for _ in range(free)
    ]
    kinds: list[dict[str, Any]] = [
        {'type': 'boolean'},
        {'enum': ['left', 'right', 'middle']},
        {'type': 'integer', 'minimum': 0, 'maximum': 99},
        {'type': 'string', 'pattern': '^[a-z]{3}$'},
    ]
    properties = {name: kinds[rng.integers(len(kinds))] for name in names}
    return {
        'type': 'object',
        'properties': properties,
        'required': names,
        'additionalProperties': False,
    }


def answer(vlm: VLM, question: str, **options: Any) -> Reply:
    """Give an answer, or as much of it as there was room for."""
    try:
        return vlm.ask(question, **options)
    except AnswerCut as exc:
        return exc.reply


def bench_schemas(report: Report, section: str, vlm: VLM) -> None:
    """Time tokens that a schema forces, and what a schema adds to free ones."""
    rng = np.random.default_rng(1)
    schemas = [json.dumps(random_schema(rng, 8)) for _ in range(SCHEMAS)]
    # 1. all are compiled, and a mask is made for each
    context = vlm.parts.context
    vlm.ask('Hello', n_predict=1)
    began = perf_counter()
    for schema in schemas:
        sampler = Sampler(context, Config(json_schema=schema))
        vlm.engine.call(lambda sampler=sampler: sampler.sample())
        sampler.close()
    report.add(section, 'a schema compiled and its first token, ms', 2 * (perf_counter() - began))
    # 2. time per token of answers that are mostly forced, against free ones, pair by pair
    shares, added = [], []
    end = {t: -100.0 for t in range(vlm.parts.model.n_vocab) if vlm.parts.model.is_end(t)}
    for i, schema in enumerate(schemas[:DECODED]):
        form = answer(vlm, f'Fill in form {i}.', json_schema=schema, n_predict=LONGEST)
        free = answer(vlm, f'Fill in form {i}.', n_predict=LONGEST, logit_bias=end)
        text = answer(
            vlm,
            f'Fill in form {i}.',
            n_predict=LONGEST,
            json_schema='{"type":"string","minLength":900}',
        )
        each = [
            reply.timings.decode_ms / max(1, reply.completion_tokens - 1)
            for reply in (form, free, text)
        ]
        shares.append(each[0] / each[1])
        added.append(each[2] / each[1] - 1)
    report.add(section, 'answers of which most is forced, share of a free token', median(shares))
    report.add(section, 'added to a free token by a schema, share', median(added))
