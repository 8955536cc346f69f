"""
Write the trained weights in the formats of the big models: ``vision.onnx`` and ``decoder.gguf``.

``python tools/demo_model/export.py build/demo/weights.pt`` puts both into ``hobot_vlm/demo``. The
ONNX file is compared with torch, and the difference printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import sys

from model import DemoModel, Shape
import numpy as np
import onnx
from onnx import numpy_helper, TensorProto
import torch

TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def write_vision(model: DemoModel, path: Path) -> float:
    """
    Write the vision tower and projector as ONNX, weights as float16, arithmetic as float32.

    :return: largest difference from torch on random pixels
    """
    vision = model.vision.eval()
    side = model.shape.picture
    pixels = torch.rand(2, 3, side, side) * 2 - 1
    torch.onnx.export(
        vision,
        (pixels,),
        str(path),
        input_names=['pixel_values'],
        output_names=['image_features'],
        dynamo=False,
        opset_version=17,
        dynamic_axes={'pixel_values': {0: 'tiles'}, 'image_features': {0: 'tiles'}},
    )
    graph = onnx.load(str(path))
    halved = []
    for tensor in list(graph.graph.initializer):
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 1024:
            small = numpy_helper.from_array(values.astype(np.float16), tensor.name + '_half')
            halved.append(
                onnx.helper.make_node('Cast', [small.name], [tensor.name], to=TensorProto.FLOAT)
            )
            graph.graph.initializer.remove(tensor)
            graph.graph.initializer.append(small)
    for i, node in enumerate(halved):
        graph.graph.node.insert(i, node)
    graph.doc_string = 'vision tower of the demo model of hobot_vlm'
    onnx.checker.check_model(graph)
    onnx.save(graph, str(path))
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    got = session.run(None, {'pixel_values': pixels.numpy()})[0]
    with torch.no_grad():
        return float(np.abs(got - vision(pixels).numpy()).max())


def write_decoder(model: DemoModel, tokenizer: dict, path: Path) -> None:
    """Write the decoder as GGUF: matrices in Q8_0, the rest in float32."""
    import gguf

    shape = model.shape
    half = path.with_suffix('.part')  # who has the old file mapped keeps it whole
    writer = gguf.GGUFWriter(str(half), 'llama')
    writer.add_name('hobot_vlm demo')
    writer.add_description('describes colour emoji on a plain background, in English and Chinese')
    writer.add_license('apache-2.0')
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_dimension_count(shape.n_embd // shape.heads)
    writer.add_rope_freq_base(shape.theta)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    # the vocabulary, in the order of its ids
    ids = dict(tokenizer['model']['vocab'])
    special = {t['content'] for t in tokenizer['added_tokens']}
    ids.update({t['content']: t['id'] for t in tokenizer['added_tokens']})
    tokens = [t for t, _ in sorted(ids.items(), key=lambda item: item[1])]
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('smollm')  # digits one by one, then GPT-2's rule
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    )
    merges = [m if isinstance(m, str) else ' '.join(m) for m in tokenizer['model']['merges']]
    writer.add_token_merges(merges)
    writer.add_bos_token_id(ids['<|im_start|>'])
    writer.add_eos_token_id(ids['<end_of_utterance>'])
    writer.add_pad_token_id(ids['<|im_end|>'])
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)

    def add(name: str, weights: torch.Tensor) -> None:
        values = weights.detach().float().numpy()
        if values.ndim == 1:
            writer.add_tensor(name, values)
            return
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)

    decoder = model.decoder
    add('token_embd.weight', decoder.embed.weight)
    add('output_norm.weight', decoder.norm.weight)
    for i, block in enumerate(decoder.blocks):
        for name, layer in (
            ('attn_norm', block.attn_norm),
            ('attn_q', block.q),
            ('attn_k', block.k),
            ('attn_v', block.v),
            ('attn_output', block.o),
            ('ffn_norm', block.ffn_norm),
            ('ffn_gate', block.gate),
            ('ffn_up', block.up),
            ('ffn_down', block.down),
        ):
            add(f'blk.{i}.{name}.weight', layer.weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    half.replace(path)


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('weights', type=Path)
    parser.add_argument(
        '--out', type=Path, default=Path(__file__).parents[2] / 'hobot_vlm' / 'demo'
    )
    args = parser.parse_args()
    saved = torch.load(args.weights, map_location='cpu')
    model = DemoModel(Shape(**saved['shape']))
    model.load_state_dict(saved['weights'])
    tokenizer = json.loads((args.weights.parent / 'tokenizer.json').read_text('utf-8'))
    args.out.mkdir(parents=True, exist_ok=True)
    difference = write_vision(model, args.out / 'vision.onnx')
    write_decoder(model, tokenizer, args.out / 'decoder.gguf')
    for name in ('vision.onnx', 'decoder.gguf'):
        print(f'{name}: {(args.out / name).stat().st_size / 2**20:.2f} MiB')
    print(f'vision.onnx differs from torch by {difference:.2e} at most')
    if difference > 0.05:
        sys.exit('that is too much: the export is broken')


if __name__ == '__main__':
    main()
