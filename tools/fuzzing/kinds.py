"""
The kinds of input that are made, and what is done with each.

A kind is prepared once, in the process that forks the cases; it must start no thread there.
"""

from __future__ import annotations

from io import BytesIO
import os
from pathlib import Path
from random import Random
import signal
import time

from .mutate import mutated, one_value

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / 'test' / 'models'
DEMO = ROOT / 'hobot_vlm' / 'demo'


class Kind:
    """
    One kind of input.

    ``together`` is how many cases run in one process, one after the other.
    """

    together = 1

    def prepare(self, folder: Path) -> None:
        """Make what all cases share, and import what they need."""

    def run(self, random: Random, place: Path) -> None:
        """Make a case and run it; whatever it raises is how it ended."""
        raise NotImplementedError


class Pictures(Kind):
    """Files of all formats."""

    def prepare(self, folder: Path) -> None:
        from hobot_vlm.image.load import load_rgb
        import numpy as np
        from PIL import Image

        self.load = load_rgb
        pixels = np.random.default_rng(1).integers(0, 256, (24, 31, 3), np.uint8)
        picture = Image.fromarray(pixels)
        exif = Image.Exif()
        exif[0x0112] = 6
        made = [
            ('PNG', picture, {'exif': exif}),
            ('PNG', picture.quantize(16), {'transparency': 3}),
            ('PNG', Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}),
            ('JPEG', picture, {'exif': exif}),
            ('JPEG', picture, {'progressive': True}),
            ('JPEG', picture.convert('CMYK'), {}),
            ('GIF', picture.quantize(16), {}),
            ('WEBP', picture, {'lossless': True}),
            ('WEBP', picture, {'exif': exif}),
            ('BMP', picture, {}),
            ('PPM', picture, {}),
            ('TIFF', picture, {'exif': exif}),
            ('TIFF', picture, {'compression': 'tiff_lzw'}),
            ('TIFF', picture, {'compression': 'tiff_adobe_deflate'}),
            ('TIFF', Image.fromarray(pixels[..., 0] / np.float32(255)), {}),
            ('JPEG2000', picture, {}),
            ('AVIF', picture, {}),
        ]
        self.files = []
        for kind, image, options in made:
            file = BytesIO()
            image.save(file, kind, **options)
            self.files.append(file.getvalue())

    def run(self, random: Random, place: Path) -> None:
        data = random.choice(self.files)
        head = random.choice((0, 0, 64))  # what a file claims stands in its head
        rgb = self.load(mutated(data, random, head))
        assert rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.dtype == 'uint8' and rgb.size


class Videos(Kind):
    """Files of several containers."""

    def prepare(self, folder: Path) -> None:
        from hobot_vlm.image.video import read_frames

        self.read = read_frames
        self.files = [
            path for path in (ROOT / 'test' / 'data' / 'video').iterdir() if path.suffix != '.md'
        ]

    def run(self, random: Random, place: Path) -> None:
        path = random.choice(self.files)
        damaged = place / path.name
        damaged.write_bytes(mutated(path.read_bytes(), random))
        frames = self.read(damaged, random.choice((1, 4)))
        assert frames and all(
            a.seconds <= b.seconds for a, b in zip(frames, frames[1:], strict=False)
        )


class Onnx(Kind):
    """Vision encoders as ONNX files."""

    def prepare(self, folder: Path) -> None:
        from hobot_vlm import encoders  # noqa: F401
        import onnxruntime  # noqa: F401

        self.files = [path.read_bytes() for path in MODELS.glob('*/vision.onnx')]

    def run(self, random: Random, place: Path) -> None:
        from hobot_vlm.encoders import EncoderOptions, open_encoder

        path = place / 'vision.onnx'
        data = random.choice(self.files)
        path.write_bytes(mutated(data, random, random.choice((0, 200, len(data) // 20))))
        with open_encoder(path, EncoderOptions(threads=1)) as encoder:
            encoder.encode(tiles(encoder.tile_size))


def tiles(side: int):
    """Give two grey tiles."""
    from hobot_vlm.values import ImageTiles
    import numpy as np

    half = (0.5, 0.5, 0.5)
    return ImageTiles(np.full((2, side, side, 3), 128, np.uint8), 1, 1, True, half, half)


class Gguf(Kind):
    """Files of llama.cpp: one value of the header, more seldom of the weights, is changed."""

    role = ''

    def prepare(self, folder: Path) -> None:
        from hobot_vlm import vlm  # noqa: F401
        from hobot_vlm.encoders import mmproj, onnx  # noqa: F401
        from hobot_vlm.llama import backend, gguf, probe
        import onnxruntime  # noqa: F401

        backend.start_backend()
        probe.run_apart = run_apart
        self.files = []
        for path in sorted(MODELS.glob(f'*/{self.role}.gguf')):
            header = gguf.read_gguf(path)
            start = min(tensor.offset for tensor in header.tensors.values())
            self.files.append((path.parent, path.read_bytes(), start))

    def run(self, random: Random, place: Path) -> None:
        folder, data, start = random.choice(self.files)
        damaged = place / f'{self.role}.gguf'
        where = start if random.random() < 0.9 else 0
        change = one_value if random.random() < 0.9 else mutated
        damaged.write_bytes(change(data, random, where))
        self.ask(folder, damaged)

    def ask(self, folder: Path, damaged: Path) -> None:
        """Load a model with the damaged file, and ask it something."""
        raise NotImplementedError


def ask(image=None, **options) -> None:
    """Load a model and ask it, as a user does."""
    from hobot_vlm import VLM

    options = {'n_ctx': 256, 'n_predict': 4, 'llm_threads': 1, 'encoder_threads': 1, **options}
    with VLM.load(**options) as vlm:
        vlm.ask('What is it? 这是什么', image, max_tiles=1)


class Decoders(Gguf):
    """Language models."""

    role = 'decoder'

    def ask(self, folder: Path, damaged: Path) -> None:
        encoder = folder / 'vision.onnx'
        if encoder.exists():
            ask(
                str(DEMO / 'sample.png'), model_file_name=str(encoder), llm_model_name=str(damaged)
            )
        else:
            ask(llm_model_name=str(damaged))


class Mmprojs(Gguf):
    """Vision encoders of llama.cpp."""

    role = 'mmproj'

    def ask(self, folder: Path, damaged: Path) -> None:
        decoder = folder / 'decoder.gguf'
        ask(str(DEMO / 'sample.png'), model_file_name=str(damaged), llm_model_name=str(decoder))


class Loras(Gguf):
    """Adapters of language models."""

    role = 'lora'

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        from hobot_vlm.llama import gguf

        for model in ('internvl', 'smolvlm'):
            path = folder / f'{model}.gguf'
            write_adapter(MODELS / model / 'decoder.gguf', path)
            start = min(tensor.offset for tensor in gguf.read_gguf(path).tensors.values())
            self.files.append((MODELS / model, path.read_bytes(), start))

    def ask(self, folder: Path, damaged: Path) -> None:
        ask(llm_model_name=str(folder / 'decoder.gguf'), lora=str(damaged))


def write_adapter(decoder: Path, path: Path) -> None:
    """Write an adapter for the query projections of a language model."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(decoder)
    name = bytes(reader.fields['general.architecture'].parts[-1]).decode()
    writer = gguf.GGUFWriter(path, name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, 'lora')
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 4.0)
    for tensor in reader.tensors:
        if tensor.name.endswith('attn_q.weight'):
            columns, rows = (int(n) for n in tensor.shape)
            for part, shape in (('a', (4, columns)), ('b', (rows, 4))):
                writer.add_tensor(f'{tensor.name}.lora_{part}', np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run_apart(arguments, seconds):
    """Run the probe of model files in a fork, which is quicker than a new interpreter."""
    from hobot_vlm.llama import trial

    words = os.open(f'/tmp/fuzz-probe-{os.getpid()}', os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.unlink(f'/tmp/fuzz-probe-{os.getpid()}')
    pid = os.fork()
    if not pid:
        os.dup2(words, 2)
        try:
            trial.main(arguments)
            os._exit(0)
        except BaseException:
            os._exit(1)
    end = time.monotonic() + min(seconds, 20)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done or time.monotonic() > end:
            break
        time.sleep(0.002)
    if not done:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.lseek(words, 0, os.SEEK_SET)
    said = os.read(words, 1 << 20)
    os.close(words)
    if not done:
        return None, said
    return os.waitstatus_to_exitcode(status), said


KINDS = {
    'pictures': Pictures,
    'videos': Videos,
    'onnx': Onnx,
    'decoder': Decoders,
    'mmproj': Mmprojs,
    'lora': Loras,
}
