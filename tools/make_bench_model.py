"""
Make a decoder of the shape of Qwen2.5-0.5B with random weights, to measure speed with.

``python tools/make_bench_model.py`` writes build/bench/qwen2.5-0.5b-q4_0.gguf (330 MiB) in some
seconds. It costs as much time and memory as Qwen2.5-0.5B-Instruct-Q4_0.gguf, which RDK boards
run: the same layers in Q4_0, the same 151936 tokens in Q8_0 with as many merges, InternVL's
picture markers. ``--weights q8_0`` makes the layers Q8_0, too. What it says means nothing. Needs
only numpy and gguf; blocks are drawn as they lie in the file, never as floating point.
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

#: words of the chat template and of benchmarks/bench.py; Ġ is a space
WORDS = (
    *('system', 'user', 'assistant', 'Describe', 'What', 'Hello'),
    *('Ġthe', 'Ġthis', 'Ġis', 'Ġin', 'Ġof', 'Ġrow', 'Ġpicture', 'Ġcolour', 'Ġbackground'),
)

#: weights of a block, after a scale as float16
WEIGHTS = 32
#: bytes of a weight, and the largest one drawn: from -largest to largest, evenly
FORMATS = {'q4_0': (1 / 2, 7), 'q8_0': (1, 127)}


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

    ``WORDS`` are one token each, as they are in the real vocabulary, so that the questions that
    are timed have as many tokens as there. Other words grow letter by letter from each letter and
    each space, which makes tokens of three or four letters.
    """
    letters = 'etaoinsrhldcumfpgwybvkxjqz'
    tokens, merges = byte_letters(), []
    known = set(tokens)
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in known:
                merges.append(f'{word[: end - 1]} {word[end - 1]}')
                tokens.append(word[:end])
                known.add(word[:end])
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


def stored_as(name: str, weights: str) -> str:
    """Give the format of a matrix: that of the layers, or that of the tokens."""
    return 'q8_0' if name.startswith('token_embd') else weights


def draw(rng: np.random.Generator, shape: tuple[int, ...], form: str) -> npt.NDArray[np.uint8]:
    """Draw a matrix as rows of blocks."""
    rows, columns = shape
    size, largest = FORMATS[form]
    blocks = np.empty((rows, columns // WEIGHTS, 2 + int(WEIGHTS * size)), np.uint8)
    spread = (largest * (largest + 1) / 3) ** 0.5
    scale = np.float16(1 / (spread * columns**0.5))
    blocks[..., :2] = np.frombuffer(scale.tobytes(), np.uint8)
    weights = rng.integers(1, 2 * largest + 2, (*blocks.shape[:2], WEIGHTS), np.uint8)
    if form == 'q4_0':  # two to a byte, each above its true value by 8
        weights = weights[..., :16] | weights[..., 16:] << 4
    else:
        weights ^= 128  # 1..255 -> -127..127 in two's complement
    blocks[..., 2:] = weights
    return blocks.reshape(rows, -1)


def write(path: Path, layers: str, seed: int) -> None:
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
    writer.add_file_type(gguf.LlamaFileType[f'MOSTLY_{layers.upper()}'])
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
    for name, shape in tensors():
        if len(shape) == 1:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
            continue
        form = stored_as(name, layers)
        row = shape[1] // WEIGHTS * (2 + int(WEIGHTS * FORMATS[form][0]))
        writer.add_tensor_info(
            name,
            (shape[0], row),
            np.dtype(np.uint8),
            shape[0] * row,
            gguf.GGMLQuantizationType[form.upper()],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    # 3. the tensors
    rng = np.random.default_rng(seed)
    for name, shape in tensors():
        if len(shape) == 1:  # norms are 1, biases 0
            data = np.full(shape, float(name.endswith('norm.weight')), np.float32)
        else:
            data = draw(rng, shape, stored_as(name, layers))
        writer.write_tensor_data(data)
    writer.close()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    folder = Path(__file__).resolve().parents[1] / 'build' / 'bench'
    parser.add_argument('--weights', choices=FORMATS, default='q4_0', help='of the layers')
    parser.add_argument('--out', type=Path, help=f'default: {folder}/qwen2.5-0.5b-WEIGHTS.gguf')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    args.out = args.out or folder / f'qwen2.5-0.5b-{args.weights}.gguf'
    began = time.perf_counter()
    half = args.out.with_suffix('.part')  # whoever finds the name finds a whole file
    write(half, args.weights, args.seed)
    half.replace(args.out)
    print(
        f'{args.out}: {args.out.stat().st_size / 2**20:.0f} MiB in '
        f'{time.perf_counter() - began:.0f} s'
    )


if __name__ == '__main__':
    main()
