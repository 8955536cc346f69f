"""
GPUs: which there are, how a language model is shared among them, and what is said where none is.

Knows llama.cpp's devices; nothing of what a model is for. That a build for the CPU has none is no
error: the same configuration then serves machines with and without.
"""

from __future__ import annotations

from collections.abc import Sequence
import ctypes
from dataclasses import dataclass
import logging
from typing import Any

from llama_cpp import llama_cpp as lib

from .backend import offloads
from ..errors import ConfigError

logger = logging.getLogger('hobot_vlm.llama')

#: ggml_backend_dev_type of ggml-backend.h: a GPU, and one that shares the CPU's memory (Jetson)
GPU_TYPES = (1, 2)

SPLIT_MODES = {
    'none': lib.LLAMA_SPLIT_MODE_NONE,
    'layer': lib.LLAMA_SPLIT_MODE_LAYER,
    'row': lib.LLAMA_SPLIT_MODE_ROW,
}

#: How to come by a build that has one, by what the machine has.
CURE = (
    'build it anew: -DGGML_CUDA=on for NVIDIA, Jetson included (nvcc of the CUDA toolkit must be '
    'found), -DGGML_VULKAN=on for AMD, Intel and boards with a Vulkan driver, -DGGML_METAL=on for '
    'Apple, as in CMAKE_ARGS=-DGGML_CUDA=on pip install --no-cache-dir '
    '--force-reinstall --no-deps llama-cpp-python'
)


@dataclass(frozen=True)
class Sharing:
    """
    How a language model lies on GPUs.

    :param layers: how many are there; 0: none, -1: all
    :param mode: one of ``SPLIT_MODES``
    :param main: the GPU that ``none`` uses, and that keeps what ``row`` cannot split
    :param shares: of each GPU; empty: as much of the model as each has memory
    """

    layers: int = 0
    mode: str = 'layer'
    main: int = 0
    shares: tuple[float, ...] = ()

    def check(self) -> None:
        """
        Check it against the GPUs of this machine; where there are none, say that it does nothing.

        :raises ConfigError: it names a GPU that is not there
        """
        given = {'tensor_split': self.shares, 'main_gpu': self.main}
        named = [name for name, value in given.items() if value]
        named += ['split_mode'] if self.mode != Sharing.mode else []
        if not self.layers:
            if named:
                logger.warning(
                    '%s: no effect, since n_gpu_layers is 0 and the language model stays on the '
                    'CPU; set n_gpu_layers to -1',
                    ', '.join(named),
                )
            return
        if not offloads():
            logger.warning(
                '%s: no effect, since this llama-cpp-python is for the CPU. For a GPU, %s',
                ', '.join([f'n_gpu_layers is {self.layers}', *named]),
                CURE,
            )
            return
        check_devices(self, devices())

    def apply(self, params: Any) -> Any:
        """
        Fill the fields of ``llama_model_params``.

        :return: what must live as long as llama.cpp reads them
        """
        params.n_gpu_layers = self.layers
        params.split_mode = SPLIT_MODES[self.mode]
        params.main_gpu = self.main
        if not self.shares:
            return None
        count = max(int(lib.llama_max_devices()), len(self.shares))
        array = (ctypes.c_float * count)(*self.shares)
        params.tensor_split = ctypes.cast(array, type(params.tensor_split))
        return array


#: All on the CPU.
ON_CPU = Sharing()


def check_devices(sharing: Sharing, found: Sequence[str]) -> None:
    """
    Check that GPUs which are named are there.

    :param found: what the GPUs call themselves
    :raises ConfigError: they are not
    """
    there = f'this machine has {len(found)}: {", ".join(found)[:200] or "none"}'
    if len(sharing.shares) > len(found):
        raise ConfigError(
            f'tensor_split has {len(sharing.shares)} shares, one for each GPU, and {there}',
            'tensor_split',
        )
    if sharing.main >= max(1, len(found)):
        raise ConfigError(
            f'main_gpu is {sharing.main}, counted from 0, and {there}; give one of them',
            'main_gpu',
        )


def devices() -> list[str]:
    """Give the names of the GPUs that llama.cpp can use here."""
    count = _bind('ggml_backend_dev_count', ctypes.c_size_t)
    get = _bind('ggml_backend_dev_get', ctypes.c_void_p, ctypes.c_size_t)
    kind = _bind('ggml_backend_dev_type', ctypes.c_int, ctypes.c_void_p)
    name = _bind('ggml_backend_dev_description', ctypes.c_char_p, ctypes.c_void_p)
    found = [ctypes.c_void_p(get(i)) for i in range(count())]
    return [name(each).decode('utf-8', 'replace') for each in found if kind(each) in GPU_TYPES]


def _bind(name: str, result: Any, *arguments: Any) -> Any:
    """Find a function of ggml, which llama.cpp's library brings with it."""
    function = getattr(lib._lib, name)
    function.restype, function.argtypes = result, list(arguments)
    return function
