"""
The tokenizers and chat templates of the test models, made as the makers make theirs.

Small vocabularies: all bytes, a few hundred merges, and the control tokens under their real
names. The tokenizers are trained on the few lines below each time; training is deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    Regex,
    Tokenizer,
    trainers,
)
from transformers import PreTrainedTokenizerFast
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

MERGES = 330

#: What the tokenizers learn their merges from.
CORPUS = """\
Describe the picture in one sentence. What is in the picture? What can you see here?
The robot sees a red cup on the left and a green book on the right of the table.
A dog is running in the park, and two children are playing with a ball near the tree.
How many people are there? Is there a cat in the image? What colour is the background?
There are three apples, one banana and a bottle of water on the kitchen table.
Please read the text on the sign. It says that the shop opens at 9 and closes at 18.
Compare the two pictures: the first image shows a street, the second one shows a river.
The left picture is brighter than the right one. Both of them were taken in the morning.
What is the weather like today? I cannot see the sky, but the ground looks wet.
Turn to the door, then go straight on for 2 metres and stop in front of the window.
描述一下这张图片。图片里有什么？请用一句话回答。图中有几个人？背景是什么颜色？
图片的左边有一个红色的杯子，右边有一本绿色的书。一只小狗在公园里跑，两个孩子在玩球。
这两张图片有什么不同？第一张图片是一条街道，第二张图片是一条河。今天天气怎么样？
桌子上有三个苹果、一根香蕉和一瓶水。请向前走两米，然后在窗户前面停下来。
You are a helpful assistant. 你是一个有用的助手，请用中文回答。
"""

QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ IMAGE }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Vocabulary:
    """
    A tokenizer with what a GGUF file says about it.

    :param pre: llama.cpp's name for how text is split before merging
    :param control: tokens that text never becomes, by their text
    """

    tokenizer: Tokenizer
    pre: str
    control: tuple[str, ...]
    bos: str
    eos: str
    pad: str
    template: str

    def size(self) -> int:
        """Give the size of the models' vocabulary: rounded up, as the makers do."""
        return -(-self.tokenizer.get_vocab_size() // 32) * 32

    def control_ids(self) -> list[int]:
        """Give the ids of the control tokens and of those that are only padding."""
        return [self.tokenizer.token_to_id(token) for token in self.control] + list(
            range(self.tokenizer.get_vocab_size(), self.size())
        )

    def for_transformers(self, **names: str) -> PreTrainedTokenizerFast:
        """
        Wrap for transformers.

        :param names: attributes that a processor looks for, such as ``image_token``
        """
        return PreTrainedTokenizerFast(
            tokenizer_object=self.tokenizer,
            bos_token=self.bos,
            eos_token=self.eos,
            pad_token=self.pad,
            chat_template=self.template,
            extra_special_tokens=names,
            clean_up_tokenization_spaces=False,
        )


def train(tokenizer: Tokenizer) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=256 + MERGES,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([CORPUS, CORPUS.replace('\n', '\n\n')], trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _smollm(control: tuple[str, ...], template: str, eos: str) -> Vocabulary:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    train(tokenizer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    return Vocabulary(
        tokenizer,
        'smollm',
        control,
        bos='<|im_start|>',
        eos=eos,
        pad='<|im_end|>',
        template=template,
    )


def plain() -> Vocabulary:
    """Give the vocabulary of a language model without pictures."""
    return _smollm(
        ('<|endoftext|>', '<|im_start|>', '<|im_end|>'),
        CHATML.replace('{{ IMAGE }}', ''),
        '<|im_end|>',
    )


def smolvlm() -> Vocabulary:
    """Give a vocabulary like SmolVLM2's."""
    tiles = tuple(f'<row_{row}_col_{column}>' for row in range(1, 7) for column in range(1, 7))
    control = (
        '<|endoftext|>',
        '<|im_start|>',
        '<|im_end|>',
        '<fake_token_around_image>',
        '<image>',
        '<end_of_utterance>',
        '<global-img>',
        *tiles,
    )
    return _smollm(control, DEFAULT_CHAT_TEMPLATE, '<end_of_utterance>')


def internvl() -> Vocabulary:
    """Give a vocabulary like that of InternVL3 on Qwen2.5."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior='isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    train(tokenizer)
    control = (
        '<|endoftext|>',
        '<|im_start|>',
        '<|im_end|>',
        '<|vision_start|>',
        '<|vision_end|>',
        '<img>',
        '</img>',
        '<IMG_CONTEXT>',
        '<video>',
        '<quad>',
        '</quad>',
        '<ref>',
        '</ref>',
        '<box>',
        '</box>',
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    return Vocabulary(
        tokenizer,
        'qwen2',
        control,
        bos='<|endoftext|>',
        eos='<|im_end|>',
        pad='<|endoftext|>',
        template=CHATML.replace('{{ IMAGE }}', "{{ '<IMG_CONTEXT>\n' }}"),
    )
