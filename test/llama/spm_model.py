"""A small decoder with a SentencePiece vocabulary, made of the plain test model."""

from __future__ import annotations

from decoding import PLAIN
import gguf

WORDS = '▁ ▁t ▁th ▁the ▁d ▁do ▁dog ▁is th the do dog is na me name co col ou our colour'.split()
PIECES = [*WORDS, *'abcdefghijklmnopqrstuvwxyz0123456789"{}[]:,.', '":', '▁"', '",', '{"']


def write(path):
    """Write the model; its tokens are bytes, a few words, and padding."""
    reader = gguf.GGUFReader(PLAIN)
    writer = gguf.GGUFWriter(path, 'llama')
    for name, field in reader.fields.items():
        if name.startswith(('GGUF.', 'tokenizer.', 'general.architecture')):
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub)
    size = len(reader.fields['tokenizer.ggml.tokens'].contents())
    kinds = gguf.TokenType
    tokens = [('<unk>', kinds.UNKNOWN), ('<s>', kinds.CONTROL), ('</s>', kinds.CONTROL)]
    tokens += [(f'<0x{byte:02X}>', kinds.BYTE) for byte in range(256)]
    tokens += [(piece, kinds.NORMAL) for piece in PIECES]
    tokens += [(f'[PAD{i}]', kinds.UNUSED) for i in range(size - len(tokens))]
    writer.add_tokenizer_model('llama')
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([-float(len(tokens)) / (1 + len(text)) for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
