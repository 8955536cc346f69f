"""
The vocabularies and chat templates of InternVL's decoders, made as the makers make theirs.

SentencePiece for Phi-3 and InternLM2, byte-level BPE for the others; control tokens under their
real names.
"""

from __future__ import annotations

import io
import json
import re

import gguf
import sentencepiece
from tokenizers import AddedToken, models, pre_tokenizers, Regex, Tokenizer

from test_models import vocabulary

PICTURE = ('<img>', '</img>', '<IMG_CONTEXT>')
#: kind -> architecture in llama.cpp, control tokens, the ends of an answer
KINDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    'phi3': (
        'phi3',
        ('<|endoftext|>', '<|assistant|>', '<|system|>', '<|end|>', '<|user|>'),
        ('<|endoftext|>', '<|end|>'),
    ),
    'internlm2': ('internlm2', ('<|im_end|>', '<|im_start|>'), ('<|im_end|>',)),
    'qwen3': (
        'qwen3',
        ('<|endoftext|>', '<|im_start|>', '<|im_end|>'),
        ('<|endoftext|>', '<|im_end|>'),
    ),
    'qwen3moe': (
        'qwen3moe',
        ('<|endoftext|>', '<|im_start|>', '<|im_end|>'),
        ('<|endoftext|>', '<|im_end|>'),
    ),
    'gptoss': (
        'gpt-oss',
        ('<|startoftext|>', '<|endoftext|>', '<|return|>', '<|channel|>', '<|start|>', '<|end|>',
         '<|message|>', '<|call|>'),
        ('<|return|>', '<|call|>'),
    ),
}  # fmt: skip
SPM = ('phi3', 'internlm2')

#: the templates that the files of these models hold, as their tokenizers have them
FILE_TEMPLATES = {
    'phi3': "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}"
    "{{'<|user|>' + '\n' + message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}"
    "{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\n'}}"
    '{% endif %}{% endfor %}',
    'internlm2': "{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] "
    "+ '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    'gptoss': '',
}


class Words:
    """A vocabulary: texts to ids, and what a GGUF file says of it."""

    def __init__(self, kind: str):
        _, controls, self.ends = KINDS[kind]
        self.kind = kind
        if kind in SPM:
            self.spm = _train_spm()
            size = self.spm.get_piece_size()
            self.id_of = {t: size + i for i, t in enumerate((*controls, *PICTURE))}
            self.id_of |= {'<s>': 1, '</s>': 2}
            used = size + len(controls) + len(PICTURE)
        else:
            bpe = vocabulary.internvl().tokenizer if kind != 'gptoss' else _gpt_oss()
            bpe.add_special_tokens([AddedToken(t, special=True) for t in (*controls, *PICTURE)])
            self.bpe, used = bpe, bpe.get_vocab_size()
            self.id_of = {t: bpe.token_to_id(t) for t in (*controls, *PICTURE)}
        self.size = -(-used // 8) * 8
        self.rare = sorted({*self.id_of.values(), *range(used, self.size)})

    def encode(self, text: str) -> list[int]:
        """Tokenise text in which control tokens are control tokens."""
        ids: list[int] = [1] if self.kind in SPM else []
        if self.kind == 'phi3':  # its tokens have rstrip: what is blank behind them is theirs
            text = re.sub(r'(<\|\w+\|>)\s+', r'\1', text)
        for piece in re.split('(' + '|'.join(map(re.escape, self.id_of)) + ')', text):
            if piece in self.id_of:
                ids.append(self.id_of[piece])
            elif piece and self.kind in SPM:
                ids += self.spm.encode(piece)
            elif piece:
                ids += self.bpe.encode(piece).ids
        return ids

    def add(self, writer: gguf.GGUFWriter) -> None:
        """Write it."""
        kinds = gguf.TokenType
        names = {i: (text, kinds.CONTROL) for text, i in self.id_of.items()}
        if self.kind in SPM:
            for i in range(self.spm.get_piece_size()):
                of = (self.spm.is_control, kinds.CONTROL), (self.spm.is_byte, kinds.BYTE)
                of = (*of, (self.spm.is_unknown, kinds.UNKNOWN))
                kind = next((kind for test, kind in of if test(i)), kinds.NORMAL)
                names.setdefault(i, (self.spm.id_to_piece(i), kind))
        else:
            saved = json.loads(self.bpe.to_str())
            for text, i in saved['model']['vocab'].items():
                names.setdefault(i, (text, kinds.NORMAL))
            for added in saved['added_tokens']:
                names.setdefault(added['id'], (added['content'], kinds.CONTROL))
        names = {i: names.get(i, (f'[PAD{i}]', kinds.UNUSED)) for i in range(self.size)}
        spm = self.kind in SPM
        writer.add_tokenizer_model('llama' if spm else 'gpt2')
        writer.add_tokenizer_pre(
            'default' if spm else 'gpt-4o' if self.kind == 'gptoss' else 'qwen2'
        )
        writer.add_token_list([text for text, _ in names.values()])
        writer.add_token_types([kind for _, kind in names.values()])
        if spm:
            count = self.spm.get_piece_size()
            scores = [self.spm.get_score(i) if i < count else -1000.0 for i in names]
            writer.add_token_scores(scores)
            writer.add_bos_token_id(1)
            writer.add_unk_token_id(0)
            writer.add_add_space_prefix(True)
        else:
            writer.add_token_merges([' '.join(pair) for pair in saved['model']['merges']])
        writer.add_add_bos_token(spm)
        writer.add_eos_token_id(self.id_of[self.ends[-1 if spm else 0]])
        template = FILE_TEMPLATES.get(self.kind, vocabulary.CHATML.replace('{{ IMAGE }}', ''))
        if template:
            writer.add_chat_template(template)


def _train_spm() -> sentencepiece.SentencePieceProcessor:
    """Train as the makers of Llama and InternLM did; what is rare becomes bytes."""
    out = io.BytesIO()
    lines = [line for line in vocabulary.CORPUS.splitlines() if line.isascii()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=336,
        model_type='bpe', byte_fallback=True, normalization_rule_name='identity',
        remove_extra_whitespaces=False, split_digits=True, character_coverage=1.0,
        allow_whitespace_only_pieces=True, minloglevel=2, num_threads=1,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def _gpt_oss() -> Tokenizer:
    """Make a byte-level BPE that splits text as o200k does."""
    words = (
        r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+'
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
        r'| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+'
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior='isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return vocabulary.train(tokenizer)
