"""
Make a decoder of the shape of Qwen2.5-0.5B in Q8_0, with random weights, to measure speed with.

``python tools/make_bench_model.py`` writes build/bench/qwen2.5-0.5b-q8_0.gguf (500 MiB) in some
seconds. It costs as much time and memory as the real model: the same layers, the same 151936
tokens with as many merges, InternVL's picture markers. What it says means nothing. Needs only
numpy and gguf; blocks of Q8_0 are drawn as they lie in the file, never as floating point.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
import time

import gguf
import numpy as np
import numpy.typing as npt

LAYERS, N_EMBD, N_FF, HEADS, HEADS_KV = 24, 896, 4864, 14, 2
N_VOCAB, N_TEXT = 151936, 151643  # the rest: control tokens and padding
CONTROL = ('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<img>', '</img>', '<IMG_CONTEXT>')
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

#: bytes of a block of Q8_0: a scale as float16 and 32 weights of one byte
BLOCK, WEIGHTS = 34, 32
#: standard deviation of int8 weights drawn evenly
SPREAD = 127 / 3**0.5


def byte_letters() -> list[str]:
    """Give the letter that stands for each byte in a byte-level vocabulary, as GPT-2 chose it."""
    plain = {
        *range(ord('!'), ord('~') + 1),
        *range(ord('¡'), ord('¬') + 1),
        *range(ord('®'), ord('ÿ') + 1),
    }
    others = (chr(256 + i) for i in range(256))
    return [chr(byte) if byte in plain else next(others) for byte in range(256)]


def vocabulary() -> tuple[list[str], list[str]]:
    """
    Make the text tokens and the merges that lead to them.

    Words grow letter by letter from each letter and each space, so any text in small letters
    becomes tokens of three or four letters, much as with a real vocabulary.
    """
    letters = 'etaoinsrhldcumfpgwybvkxjqz'
    tokens, merges = byte_letters(), []
    known = set(tokens)
    starts = [*letters, 'Ġ', *letters.upper()]
    while True:
        grown = []
        for start in starts:
            for letter in letters:
                word = start + letter
                if word in known:
                    continue
                merges.append(f'{start} {letter}')
                tokens.append(word)
                known.add(word)
                grown.append(word)
                if len(tokens) == N_TEXT:
                    return tokens, merges
        starts = grown


def tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Give the names and shapes of all tensors."""
    kv = N_EMBD // HEADS * HEADS_KV
    yield 'token_embd.weight', (N_VOCAB, N_EMBD)
    yield 'output_norm.weight', (N_EMBD,)
    for i in range(LAYERS):
        for name, shape in (
            ('attn_norm.weight', (N_EMBD,)),
            ('attn_q.weight', (N_EMBD, N_EMBD)),
            ('attn_q.bias', (N_EMBD,)),
            ('attn_k.weight', (kv, N_EMBD)),
            ('attn_k.bias', (kv,)),
            ('attn_v.weight', (kv, N_EMBD)),
            ('attn_v.bias', (kv,)),
            ('attn_output.weight', (N_EMBD, N_EMBD)),
            ('ffn_norm.weight', (N_EMBD,)),
            ('ffn_gate.weight', (N_FF, N_EMBD)),
            ('ffn_up.weight', (N_FF, N_EMBD)),
            ('ffn_down.weight', (N_EMBD, N_FF)),
        ):
            yield f'blk.{i}.{name}', shape


def draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> npt.NDArray:
    """Draw a tensor: norms 1, biases 0, matrices as rows of Q8_0 blocks."""
    if len(shape) == 1:
        return np.full(shape, float(name.endswith('norm.weight')), np.float32)
    rows, columns = shape
    blocks = np.empty((rows, columns // WEIGHTS, BLOCK), np.uint8)
    scale = np.float16(1 / (SPREAD * columns**0.5))
    blocks[..., :2] = np.frombuffer(scale.tobytes(), np.uint8)
    blocks[..., 2:] = rng.integers(1, 256, (*blocks.shape[:2], WEIGHTS), np.uint8)
    weights = blocks[..., 2:]
    weights ^= 128  # 1..255 -> -127..127 in two's complement
    return blocks.reshape(rows, -1)


def write(path: Path, seed: int) -> None:
    """Write the file, one tensor in memory at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), 'qwen2')
    writer.add_name('random weights of the shape of Qwen2.5-0.5B')
    writer.add_license('apache-2.0')
    writer.add_context_length(32768)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS_KV)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1000000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    # 1. the vocabulary
    text, merges = vocabulary()
    padding = [f'[PAD{i}]' for i in range(N_TEXT + len(CONTROL), N_VOCAB)]
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('qwen2')
    writer.add_token_list([*text, *CONTROL, *padding])
    writer.add_token_types(
        [gguf.TokenType.NORMAL] * len(text)
        + [gguf.TokenType.CONTROL] * len(CONTROL)
        + [gguf.TokenType.UNUSED] * len(padding)
    )
    writer.add_token_merges(merges)
    writer.add_bos_token_id(N_TEXT)
    writer.add_eos_token_id(N_TEXT + CONTROL.index('<|im_end|>'))
    writer.add_pad_token_id(N_TEXT)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    # 2. where each tensor will lie
    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, shape in tensors():
        matrix = len(shape) == 2
        stored = (shape[0], shape[1] // WEIGHTS * BLOCK) if matrix else shape
        writer.add_tensor_info(
            name,
            stored,
            np.dtype(np.uint8 if matrix else np.float32),
            int(np.prod(stored)) * (1 if matrix else 4),
            q8 if matrix else None,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    # 3. the tensors
    rng = np.random.default_rng(seed)
    for name, shape in tensors():
        writer.write_tensor_data(draw(rng, name, shape))
    writer.close()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument(
        '--out',
        type=Path,
        default=Path(__file__).resolve().parents[1] / 'build' / 'bench' / 'qwen2.5-0.5b-q8_0.gguf',
    )
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    began = time.perf_counter()
    half = args.out.with_suffix('.part')  # whoever finds the name finds a whole file
    write(half, args.seed)
    half.replace(args.out)
    print(
        f'{args.out}: {args.out.stat().st_size / 2**20:.0f} MiB in '
        f'{time.perf_counter() - began:.0f} s'
    )


if __name__ == '__main__':
    main()
