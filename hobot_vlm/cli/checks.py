"""
What ``vlm doctor`` checks: files of the system below a root, which may be made up.

Only reads. Libraries of this Python are checked by ``libraries.py``, models by ``VLM``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
import hashlib
import importlib.util
from pathlib import Path
import re
import shutil
from typing import Any

from . import libraries
from ..errors import VlmError

MB = 1e6
#: what D-Robotics' guide to hobot_llamacpp has people reserve on an X5 (``srpi-config``)
ION_BYTES = 1600 * MB
#: a 1080p picture in RGB is 6.2 MB; the socket buffer has to hold a whole one
SOCKET_BUFFER = 8 << 20
#: Fast DDS keeps messages between processes there; Docker's default is 64 MB
SHARED_MEMORY = 256 * MB
#: memory beside the files of a model: KV cache, pictures, Python
OVERHEAD = 1.2

GOVERNOR_CURE = 'echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor'
BOOST_CURE = 'echo 1 | sudo tee /sys/devices/system/cpu/cpufreq/boost'
#: board -> modules that reach its BPU, the better one first
RUNTIMES = {'rdkx5': ('hbm_runtime', 'hobot_dnn', 'hobot_dnn_rdkx5'), 'rdks100': ('hbm_runtime',)}


@dataclass(frozen=True)
class Finding:
    """
    One thing that was checked.

    :param status: ``ok``, ``info``, ``warn`` (it would run better) or ``bad`` (it does not run)
    :param cure: what to do about it
    """

    topic: str
    status: str
    text: str
    cure: str = ''


class Machine:
    """
    The machine that is checked.

    :param root: where its file system begins
    :param environment: the variables of its programs
    :param model: name of the one model to check; empty: all that run here
    """

    def __init__(self, root: Path, environment: Mapping[str, str], model: str = '') -> None:
        self.root = root
        self.environment = environment
        self.model = model

    @property
    def here(self) -> bool:
        """Whether it is the machine that this program runs on."""
        return self.root.resolve() == Path('/')

    @cached_property
    def board(self) -> str:
        """Give the kind of board; ``any`` for all other machines."""
        from ..vlm import machine

        return machine(self.root)

    @cached_property
    def models(self) -> dict[str, Any]:
        """
        Give the models to check: the one that was named, or all that run here.

        :raises VlmError: the catalogue cannot be read, or has no such model
        """
        from ..vlm import find, VLM

        if self.model:
            return {self.model: find(self.model)}
        found = VLM.models()
        return {n: m for n, m in found.items() if {self.board, 'any'} & set(m.variants)}

    def read(self, name: str) -> str:
        """Give the text of a file, empty where there is none."""
        try:
            data = (self.root / name).read_bytes()
        except OSError:
            return ''
        return data.replace(b'\0', b' ').decode('utf-8', 'replace').strip()

    def glob(self, pattern: str) -> list[Path]:
        """Give the files that fit a pattern, in order."""
        return sorted(self.root.glob(pattern))


# -- the board --------------------------------------------------------------------------------


def check_board(machine: Machine) -> Iterator[Finding]:
    """Say which machine it is."""
    name = machine.read('proc/device-tree/model')
    cpu = re.search(r'model name\s*:\s*(.*)', machine.read('proc/cpuinfo'))
    name = name or (cpu.group(1) if cpu else 'unknown machine')
    cores = len(re.findall(r'^processor\s*:', machine.read('proc/cpuinfo'), re.MULTILINE))
    text = f'{name}, {cores} cores' if cores else name
    if machine.board == 'any':
        yield Finding('board', 'info', f'{text}; no RDK board, so encoders run on the CPU')
        return
    yield Finding('board', 'ok', f'{text} ({machine.board})')


def check_bpu(machine: Machine) -> Iterator[Finding]:
    """Find the library that reaches the BPU."""
    names = RUNTIMES.get(machine.board)
    if names is None:
        return
    system = [
        path.name.split('.')[0]
        for folder in ('usr/lib', 'usr/local/lib')
        for path in machine.glob(f'{folder}/python3*/dist-packages/h*')
    ]
    if machine.here:
        found = [name for name in names if importlib.util.find_spec(name)]
    else:
        found = [name for name in names if name in system]
    if found:
        yield Finding('BPU runtime', 'ok', found[0])
    elif set(names) & set(system):
        yield Finding(
            'BPU runtime',
            'bad',
            'it is installed for the system, and this virtual environment does not see it',
            'python3 -m venv --system-site-packages .venv',
        )
    else:
        yield Finding(
            'BPU runtime',
            'bad',
            f'Python finds no {" or ".join(names[:2])}; encoders for the BPU cannot run',
            'sudo apt update && sudo apt upgrade: RDK OS 3.5 and newer bring hbm_runtime',
        )


def check_ion(machine: Machine) -> Iterator[Finding]:
    """Compare the memory that is kept for the BPU with what a model needs."""
    if machine.board == 'any':
        return
    size = sum(map(_size, machine.glob('proc/device-tree/reserved-memory/*ion*')))
    cure = 'sudo srpi-config: ION memory, 1.6 GB; then restart'
    if not size:
        text = 'how much is reserved for the BPU cannot be read'
        yield Finding('ION memory', 'info', text, cure if machine.board == 'rdkx5' else '')
    elif machine.board == 'rdkx5' and size < ION_BYTES:
        text = f'{size / MB:.0f} MB are reserved for the BPU; encoders want {ION_BYTES / MB:.0f}'
        yield Finding('ION memory', 'warn', text, cure)
    else:
        yield Finding('ION memory', 'ok', f'{size / MB:.0f} MB')


def _size(node: Path) -> int:
    """Read the size of a reserved region: the last half of its cells, which are big-endian."""
    for name in ('size', 'reg'):
        try:
            data = (node / name).read_bytes()
        except OSError:
            continue
        return int.from_bytes(data if name == 'size' else data[len(data) // 2 :], 'big')
    return 0


def check_cpu(machine: Machine) -> Iterator[Finding]:
    """See whether the processor runs slower than it could."""
    governors = {
        path.read_text().strip()
        for path in machine.glob('sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor')
    }
    if not governors:
        yield Finding('CPU governor', 'info', 'the system does not say (a virtual machine?)')
    elif governors == {'performance'}:
        yield Finding('CPU governor', 'ok', 'performance')
    else:
        text = f'{", ".join(sorted(governors))}: the clock rises only after the work has begun'
        yield Finding('CPU governor', 'warn', text, GOVERNOR_CURE)
    boost = machine.read('sys/devices/system/cpu/cpufreq/boost')
    turbo = machine.read('sys/devices/system/cpu/intel_pstate/no_turbo')
    if boost == '0':
        yield Finding('CPU boost', 'warn', 'the highest clock is switched off', BOOST_CURE)
    elif turbo == '1':
        cure = 'echo 0 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo'
        yield Finding('CPU boost', 'warn', 'turbo is switched off', cure)
    elif boost or turbo:
        yield Finding('CPU boost', 'ok', 'on')


# -- room -------------------------------------------------------------------------------------


def check_memory(machine: Machine) -> Iterator[Finding]:
    """Compare the free memory with the size of the models."""
    found = re.search(r'MemAvailable:\s*(\d+) kB', machine.read('proc/meminfo'))
    if not found:
        yield Finding('memory', 'info', 'the system does not say how much is free')
        return
    free = int(found.group(1)) * 1024
    limit = machine.read('sys/fs/cgroup/memory.max')
    if limit.isdigit():
        used = machine.read('sys/fs/cgroup/memory.current')
        free = min(free, int(limit) - int(used or 0))
    yield from _room(machine, 'memory', free, OVERHEAD, 'close other programs, or choose a '
                     'smaller model (`vlm models`)')  # fmt: skip


def check_disk(machine: Machine) -> Iterator[Finding]:
    """Compare the free disk with the size of the models that are not here yet."""
    folder = machine.root
    if machine.here:
        variables = machine.environment
        home = variables.get('HF_HOME') or variables.get('HF_HUB_CACHE') or '~/.cache'
        folder = Path(home).expanduser()
        while not folder.exists():
            folder = folder.parent
    free = shutil.disk_usage(folder).free
    yield from _room(machine, 'disk', free, 1.0, 'make room, or set HF_HOME to a folder on a '
                     'larger disk')  # fmt: skip


def _room(
    machine: Machine, topic: str, free: float, factor: float, cure: str
) -> Iterator[Finding]:
    """Say which models need more than is free."""
    try:
        models = machine.models
    except VlmError:
        models = {}  # said by check_models
    text = f'{free / MB:.0f} MB are free'
    sizes = {m.size_mb * MB * factor: m.name for m in models.values()}
    fitting = [size for size in sizes if size <= free]
    if len(fitting) == len(sizes):
        yield Finding(topic, 'ok', f'{text}; enough for {machine.model or "every model"}')
    elif machine.model:
        yield Finding(topic, 'bad', f'{text}; too little for {machine.model}', cure)
    elif len(fitting) > 1:  # the bundled model is one
        largest = sizes[max(fitting)]
        yield Finding(topic, 'ok', f'{text}; enough for models up to the size of {largest}')
    else:
        yield Finding(topic, 'warn', f'{text}; too little for any but the bundled model', cure)


def check_models(machine: Machine) -> Iterator[Finding]:
    """See which models are on this machine, and whether their files are whole."""
    if not machine.here:
        return
    try:
        models = machine.models
    except VlmError as exc:
        if machine.model:
            raise
        yield Finding('models', 'bad', str(exc), 'correct the file')
        return
    absent = []
    for name, model in models.items():
        try:
            variant = model.variant()
            paths = [f.local() for f in (variant.encoder, variant.decoder) if f]
        except VlmError as exc:
            yield Finding(f'model {name}', 'warn', str(exc))
            continue
        damaged = [path for path in paths if path and not _whole(path)]
        if damaged:
            text = f'{damaged[0]} is damaged'
            yield Finding(f'model {name}', 'bad', text, f'vlm download {name}')
        elif all(paths):
            yield Finding(f'model {name}', 'ok', 'all files are here and whole')
        else:
            absent.append(name)
    if absent and machine.model:
        yield Finding(f'model {machine.model}', 'bad', 'not on this machine',
                      f'vlm download {machine.model}')  # fmt: skip
    elif absent:
        text = f'{len(absent)} others are known by name'
        yield Finding('models', 'info', text, 'vlm models')


def _whole(path: Path) -> bool:
    """Compare a file with its checksum, which is its name in the cache of the hub."""
    name = path.resolve().name
    if not re.fullmatch('[0-9a-f]{64}', name):
        return path.stat().st_size > 0
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest() == name


# -- ROS --------------------------------------------------------------------------------------


def check_ros(machine: Machine) -> Iterator[Finding]:
    """Find a ROS installation, and check what carries its pictures."""
    installed = [path.parent.name for path in machine.glob('opt/ros/*/setup.bash')]
    sourced = machine.environment.get('ROS_DISTRO', '')
    wheels = machine.here and importlib.util.find_spec('rclpy') is not None
    if sourced:
        yield Finding('ROS', 'ok', f'{sourced}, sourced')
    elif installed:
        cure = f'source /opt/ros/{installed[-1]}/setup.bash'
        yield Finding('ROS', 'warn', f'{", ".join(installed)} is installed and not sourced', cure)
    elif wheels:
        yield Finding('ROS', 'ok', 'rclpy, as a package of this Python')
    else:
        text = 'none; the node needs it, the other commands do not'
        yield Finding('ROS', 'info', text)
        return
    rmw = machine.environment.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp')
    transports = machine.environment.get('FASTDDS_BUILTIN_TRANSPORTS', '')
    if 'fastrtps' in rmw and transports != 'LARGE_DATA':
        text = f'{transports or "the default"}: large best-effort pictures are lost'
        cure = 'export FASTDDS_BUILTIN_TRANSPORTS=LARGE_DATA, for the camera and for the node'
        yield Finding('Fast DDS transports', 'warn', text, cure)
    elif 'fastrtps' in rmw:
        yield Finding('Fast DDS transports', 'ok', transports)
    buffer = machine.read('proc/sys/net/core/rmem_max')
    if buffer.isdigit() and int(buffer) < SOCKET_BUFFER:
        text = f'{int(buffer) / MB:.1f} MB at most; a 1080p picture has 6.2 MB'
        cure = f'sudo sysctl -w net.core.rmem_max={SOCKET_BUFFER} (and in /etc/sysctl.d)'
        yield Finding('socket buffers', 'warn', text, cure)
    elif buffer:
        yield Finding('socket buffers', 'ok', f'{int(buffer) / MB:.1f} MB at most')
    shared = machine.root / 'dev' / 'shm'
    if machine.here and shared.is_dir() and shutil.disk_usage(shared).total < SHARED_MEMORY:
        text = f'/dev/shm has {shutil.disk_usage(shared).total / MB:.0f} MB'
        yield Finding('shared memory', 'warn', text, 'docker run --shm-size=512m, or mount -o '
                      'remount,size=512m /dev/shm')  # fmt: skip


def check_libraries(machine: Machine) -> Iterator[Finding]:
    """Check llama.cpp and ONNX Runtime as this Python has them."""
    if not machine.here:
        return
    gpu = bool(machine.glob('dev/nvidia[0-9]*') or machine.glob('proc/driver/nvidia/version'))
    flags = set(re.findall(r'^(?:flags|Features)\s*:\s*(.*)$', machine.read('proc/cpuinfo'),
                           re.MULTILINE)[:1])  # fmt: skip
    for topic, status, text, cure in libraries.check(' '.join(flags).split(), gpu):
        yield Finding(topic, status, text, cure)


CHECKS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (
    check_board, check_bpu, check_ion, check_cpu, check_memory, check_disk, check_libraries,
    check_ros, check_models,
)  # fmt: skip
