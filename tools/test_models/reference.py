"""
What transformers answers: the expected values that the parity tests compare with.

Everything is float32 on the CPU. Greedy tokens are found without a cache, one whole forward pass
each, and without stopping at the end of an answer.
"""

from __future__ import annotations

from typing import Any

from hobot_vlm.choosing import spellings
import numpy as np
import numpy.typing as npt
from pictures import picture
import torch

from test_models import models

GREEDY = 32

#: least distance between the best and the second best logit at any greedy step
MARGIN = 0.05

#: text on both sides of the embeddings of ``decoder_case``
BEFORE = 'Describe the picture: 图片里有什么？'
AFTER = 'What is on the left? 3 red cups.'
EMBEDDINGS = 16

INTERNVL_SYSTEM = (
    '你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位'
    '联合开发的多模态大语言模型。'
)

#: (width, height) of the pictures of each case
SIZES: dict[str, tuple[tuple[int, int], ...]] = {
    'single': ((150, 110),),
    'tiles': ((200, 150),),
    'two': ((170, 90), (120, 160)),
    'text': (),
    'system': ((96, 128),),
}
#: seed of the first picture; the next one has the next seed. Chosen for a wide margin.
PICTURE_SEEDS = {
    'internvl': {'single': 60, 'tiles': 40, 'two': 20, 'system': 60},
    'smolvlm': {'single': 220, 'tiles': 340, 'two': 160, 'system': 30},
}
EMBEDDING_SEEDS = {'plain': 6, 'internvl': 8, 'smolvlm': 3}
QUESTIONS = {
    'single': 'Describe the picture.',
    'tiles': '描述一下这张图片，有几个杯子？',
    'two': 'Compare the two pictures. 这两张图片有什么不同？',
    'system': 'What colour is the background?',
}
TEXT_QUESTIONS = {
    'internvl': "What's the weather like today, 2026? 今天天气怎么样？",
    'smolvlm': 'Hello! 你好！ Who are you?',
}
#: answers to choose between: of one token and of several, some of which begin alike
CHOICES = ('yes', 'no', 'a cat', 'a dog', 'the cat', '红色', '红色的')
SYSTEM = {'system': 'You are a helpful assistant. 请用一句话回答。'}


def question(family: str, case: str) -> str:
    """Give what is asked in a case."""
    return TEXT_QUESTIONS[family] if case == 'text' else QUESTIONS[case]


def recipes(family: str, case: str) -> list[tuple[int, int, int]]:
    """Give (width, height, seed) of the pictures of a case."""
    first = PICTURE_SEEDS[family].get(case, 0)
    return [(*size, first + i) for i, size in enumerate(SIZES[case])]


def messages(family: str, case: str) -> list[dict[str, Any]]:
    """Give the conversation of a case as transformers takes it."""
    pictures = [{'type': 'image'} for _ in SIZES[case]]
    if family == 'internvl' and len(pictures) > 1:  # numbered, as its makers do
        pictures = [
            part
            for i, shown in enumerate(pictures, 1)
            for part in ({'type': 'text', 'text': f'Image-{i}: '}, shown)
        ]
    asked = {'type': 'text', 'text': question(family, case)}
    talk = [{'role': 'user', 'content': [*pictures, asked]}]
    system = SYSTEM.get(case, INTERNVL_SYSTEM if family == 'internvl' else '')
    if system:
        talk.insert(0, {'role': 'system', 'content': [{'type': 'text', 'text': system}]})
    return talk


def processor_settings(family: str, case: str) -> dict[str, Any]:
    """Give what the image processor is told beyond its defaults."""
    if case != 'single':
        return {}
    return {'crop_to_patches': False} if family == 'internvl' else {'do_image_splitting': False}


def vlm_case(
    family: str, vlm: models.VisionLanguageModel, case: str
) -> tuple[dict[str, Any], npt.NDArray[np.float32]]:
    """
    Answer a case.

    :return: what is told in words and token ids, for JSON; and the logits of the first step
    """
    talk = messages(family, case)
    prompt = vlm.processor.tokenizer.apply_chat_template(
        talk, add_generation_prompt=True, tokenize=False
    )
    settings = processor_settings(family, case)
    shown = [picture(*recipe) for recipe in recipes(family, case)]
    inputs = dict(
        vlm.processor(text=prompt, images=shown or None, return_tensors='pt', **settings)
    )
    first = inputs.pop('input_ids')
    inputs.pop('attention_mask')
    greedy, logits, margin = best_tokens(
        lambda ids: vlm.model(input_ids=ids, **inputs).logits[0, -1], first
    )
    if family == 'internvl':
        tiles = len(inputs.get('pixel_values', ()))
    else:
        tiles = inputs['pixel_values'].shape[1] if shown else 0
    return {
        'messages': talk,
        'system_prompt': SYSTEM.get(case, INTERNVL_SYSTEM if family == 'internvl' else ''),
        'question': question(family, case),
        'pictures': [list(recipe) for recipe in recipes(family, case)],
        'processor': settings,
        'max_tiles': 1 if case == 'single' else 0,
        'tiles': tiles,
        'prompt': prompt,
        'ids': first[0].tolist(),
        'greedy': greedy,
        'text': vlm.vocabulary.tokenizer.decode(greedy),
        'margin': round(margin, 4),
    }, logits


@torch.no_grad()
def choices_case(family: str, vlm: models.VisionLanguageModel, case: str) -> dict[str, float]:
    """
    Weigh answers whole.

    :return: text -> natural logarithm of the probability of all its tokens, one after the other
    """
    prompt = vlm.processor.tokenizer.apply_chat_template(
        messages(family, case), add_generation_prompt=True, tokenize=False
    )
    shown = [picture(*recipe) for recipe in recipes(family, case)]
    inputs = dict(
        vlm.processor(
            text=prompt,
            images=shown or None,
            return_tensors='pt',
            **processor_settings(family, case),
        )
    )
    first = inputs.pop('input_ids')
    inputs.pop('attention_mask')
    found = {}
    for text in (form for choice in CHOICES for form in spellings(choice)):
        tokens = vlm.vocabulary.tokenizer.encode(text, add_special_tokens=False).ids
        ids = torch.cat([first, torch.tensor([tokens])], dim=1)
        logits = vlm.model(input_ids=ids, **inputs).logits[0, -len(tokens) - 1 : -1]
        chances = logits.double().log_softmax(-1)
        found[text] = round(float(chances[range(len(tokens)), tokens].sum()), 6)
    return found


def decoder_case(language: models.LanguageModel, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Answer text, random embeddings, text, given to the model as ``inputs_embeds``."""
    encode = language.vocabulary.tokenizer.encode
    before, after = encode(BEFORE).ids, encode(AFTER).ids
    embeddings = (
        np.random.default_rng(seed).standard_normal((EMBEDDINGS, models.N_EMBD)).astype(np.float32)
    )
    table = language.model.get_input_embeddings()
    start = torch.cat([table(torch.tensor(before)), torch.from_numpy(embeddings)])

    def answer(ids: torch.Tensor) -> torch.Tensor:
        return language.model(inputs_embeds=torch.cat([start, table(ids[0])])[None]).logits[0, -1]

    greedy, logits, margin = best_tokens(answer, torch.tensor([after]))
    return {
        'before': np.array(before, np.int32),
        'embeddings': embeddings,
        'after': np.array(after, np.int32),
        'logits': logits,
        'greedy': np.array(greedy, np.int32),
        'margin': np.float32(margin),
    }


@torch.no_grad()
def best_tokens(model: Any, ids: torch.Tensor) -> tuple[list[int], npt.NDArray[np.float32], float]:
    """
    Take the best token again and again.

    :return: the tokens, the first step's logits, the smallest distance to the second best
    """
    tokens: list[int] = []
    first: npt.NDArray[np.float32] | None = None
    margin = float('inf')
    for _ in range(GREEDY):
        logits = model(ids)
        if first is None:
            first = logits.numpy().copy()
        best = logits.topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        tokens.append(int(best.indices[0]))
        ids = torch.cat([ids, best.indices[:1][None]], dim=1)
    assert first is not None
    return tokens, first, margin
