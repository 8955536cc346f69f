"""``vlm doctor`` on this machine, and on made-up ones: a folder in the place of ``/``."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
import platform

from hobot_vlm.cli import checks, doctor, libraries
from hobot_vlm.errors import ConfigError
import pytest

CORES = 'processor\t: 0\nFeatures\t: fp asimd asimddp\n\nprocessor\t: 1\n'


def run(capsys, *args):
    """Call the command; give its exit status and what it prints."""
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(['doctor', *map(str, args)])
    return args.run(args), capsys.readouterr().out


def findings(capsys, *args):
    """Give status, and topic -> finding."""
    status, out = run(capsys, '--json', *args)
    report = json.loads(out)
    assert report['ok'] is (status == 0)
    return status, report['board'], {f['topic']: f for f in report['findings']}


def put(root: Path, name: str, content: str | bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for name in ('ROS_DISTRO', 'FASTDDS_BUILTIN_TRANSPORTS', 'RMW_IMPLEMENTATION'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path / 'config'))


@pytest.fixture
def x5(tmp_path):
    """Make an RDK X5 as it comes out of the box: little ION memory, slow governor."""
    root = tmp_path / 'x5'
    put(root, 'proc/device-tree/model', 'D-Robotics RDK X5 V1.0\0')
    put(root, 'sys/class/boardinfo/soc_name', 'X5U\n')
    put(root, 'proc/cpuinfo', CORES)
    put(root, 'proc/meminfo', 'MemTotal: 7000000 kB\nMemAvailable:    2000000 kB\n')
    for name, size in (('ion_reserved@a4100000', 320 << 20), ('ion_cma', 448 << 20)):
        place = f'proc/device-tree/reserved-memory/{name}'
        put(root, f'{place}/reg', (0xA4100000).to_bytes(8, 'big') + size.to_bytes(8, 'big'))
    for core in range(2):
        put(root, f'sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor', 'schedutil\n')
    put(root, 'sys/devices/system/cpu/cpufreq/boost', '0\n')
    put(root, 'proc/sys/net/core/rmem_max', '212992\n')
    put(root, 'opt/ros/humble/setup.bash', '')
    put(root, 'usr/local/lib/python3.10/dist-packages/hobot_dnn/__init__.py', '')
    return root


@pytest.fixture
def s100(tmp_path):
    """Make an RDK S100 on which everything is right."""
    root = tmp_path / 's100'
    put(root, 'proc/device-tree/compatible', 'drobot,s100\0')
    put(root, 'proc/device-tree/model', 'RDK S100 V0.5\0')
    put(root, 'proc/cpuinfo', CORES)
    put(root, 'proc/meminfo', 'MemAvailable: 20000000 kB\n')
    put(root, 'sys/devices/system/cpu/cpu0/cpufreq/scaling_governor', 'performance\n')
    put(root, 'sys/devices/system/cpu/cpufreq/boost', '1\n')
    put(root, 'proc/sys/net/core/rmem_max', '26214400\n')
    put(root, 'opt/ros/humble/setup.bash', '')
    name = 'usr/local/lib/python3.10/dist-packages/hbm_runtime.cpython-310-aarch64-linux-gnu.so'
    put(root, name, '')
    return root


def test_an_x5_out_of_the_box(x5, capsys):
    status, board, found = findings(capsys, '--root', x5)
    assert (status, board) == (0, 'rdkx5')
    assert 'RDK X5 V1.0, 2 cores' in found['board']['text']
    assert found['BPU runtime']['text'] == 'hobot_dnn'
    ion = found['ION memory']
    assert ion['status'] == 'warn' and ion['text'].startswith('805 MB')
    assert 'srpi-config' in ion['cure']
    for topic, cure in (
        ('CPU governor', checks.GOVERNOR_CURE),
        ('CPU boost', checks.BOOST_CURE),
        ('ROS', 'source /opt/ros/humble/setup.bash'),
    ):
        assert (found[topic]['status'], found[topic]['cure']) == ('warn', cure)
    assert 'rmem_max' in found['socket buffers']['cure']
    assert 'LARGE_DATA' in found['Fast DDS transports']['cure']
    memory = found['memory']
    assert memory['status'] == 'ok' and 'up to the size of ' in memory['text']
    _, _, found = findings(capsys, '--root', x5, '--model', 'internvl3-1b')
    assert found['memory']['status'] == 'ok'


def test_an_x5_put_right(x5, capsys, monkeypatch):
    monkeypatch.setenv('ROS_DISTRO', 'humble')
    monkeypatch.setenv('FASTDDS_BUILTIN_TRANSPORTS', 'LARGE_DATA')
    region = 'proc/device-tree/reserved-memory/ion_reserved@a4100000/reg'
    put(x5, region, bytes(8) + (1600 << 20).to_bytes(8, 'big'))
    put(x5, 'proc/meminfo', 'MemAvailable: 9000000 kB\n')
    put(x5, 'proc/sys/net/core/rmem_max', '8388608')
    put(x5, 'sys/devices/system/cpu/cpufreq/boost', '1')
    for core in range(2):
        put(x5, f'sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor', 'performance')
    status, _, found = findings(capsys, '--root', x5)
    assert status == 0
    assert {f['status'] for f in found.values()} == {'ok'}
    assert 'as well as it can' in run(capsys, '--root', x5)[1]


def test_an_s100(s100, capsys):
    status, board, found = findings(capsys, '--root', s100)
    assert (status, board) == (0, 'rdks100')
    assert found['BPU runtime'] == {
        'topic': 'BPU runtime', 'status': 'ok', 'text': 'hbm_runtime', 'cure': '',
    }  # fmt: skip
    assert found['ION memory']['status'] == 'info'
    assert found['CPU governor']['status'] == found['CPU boost']['status'] == 'ok'
    assert found['socket buffers']['status'] == 'ok'


def test_a_board_without_its_runtime_runs_no_model(s100, capsys):
    for path in s100.glob('usr/local/lib/python3.10/dist-packages/*'):
        path.unlink()
    status, _, found = findings(capsys, '--root', s100)
    assert status == doctor.EXIT_BAD
    assert found['BPU runtime']['status'] == 'bad'
    status, out = run(capsys, '--root', s100)
    assert status == doctor.EXIT_BAD and out.splitlines()[1].startswith('BAD')
    assert '-> sudo apt update' in out and 'keeps a model from running' in out


def test_a_runtime_that_the_environment_does_not_see(monkeypatch, x5):
    monkeypatch.setattr(checks.Machine, 'here', True)
    (finding,) = checks.check_bpu(checks.Machine(x5, {}))
    assert finding.status == 'bad' and '--system-site-packages' in finding.cure


def test_a_container_with_little_memory(s100, capsys):
    put(s100, 'sys/fs/cgroup/memory.max', '900000000\n')
    put(s100, 'sys/fs/cgroup/memory.current', '100000000\n')
    status, _, found = findings(capsys, '--root', s100, '--model', 'internvl3-1b')
    assert status == doctor.EXIT_BAD
    assert found['memory']['text'].startswith('800 MB are free')


def test_this_machine(capsys):
    status, board, found = findings(capsys)
    assert status == 0
    assert found['llama.cpp']['status'] in ('ok', 'warn')
    assert 'CPU' in found['ONNX Runtime']['text']
    runtimes = found['encoder runtimes']
    here = runtimes['text'].partition(' (')[0].split(', ')
    assert {'cpu', 'cpu-int8', 'libmtmd'} <= set(here)
    assert 'openvino' in here or runtimes['cure']
    assert found['model demo']['status'] == 'ok'
    assert not [f for f in found.values() if f['status'] == 'warn' and not f['cure']]


def test_a_model_that_is_not_here_or_damaged(capsys, monkeypatch, tmp_path):
    good, bad = b'decoder', b'encoder, cut short'
    names = [hashlib.sha256(good).hexdigest(), hashlib.sha256(b'encoder').hexdigest()]
    for name, data in zip(names, (good, bad), strict=True):
        put(tmp_path, f'blobs/{name}', data)
    for file, name in (('d.gguf', names[0]), ('e.onnx', names[1])):
        (tmp_path / file).symlink_to(tmp_path / 'blobs' / name)
    entry = f'encoder: {tmp_path}/e.onnx, decoder: {tmp_path}/d.gguf'
    put(
        tmp_path,
        'config/hobot_vlm/models.yaml',
        f'models: {{own: {{variants: {{any: {{{entry}}}}}}}}}',
    )
    status, _, found = findings(capsys, '--model', 'own')
    assert status == doctor.EXIT_BAD
    assert found['model own']['text'] == f'{tmp_path}/e.onnx is damaged'
    put(tmp_path, f'blobs/{names[1]}', b'encoder')
    assert findings(capsys, '--model', 'own')[0] == 0
    (tmp_path / 'e.onnx').unlink()
    status, _, found = findings(capsys, '--model', 'own')
    assert (status, found['model own']['cure']) == (doctor.EXIT_BAD, 'vlm download own')


def test_a_catalogue_that_cannot_be_read(capsys, tmp_path):
    put(tmp_path, 'config/hobot_vlm/models.yaml', 'models: 5')
    status, _, found = findings(capsys)
    assert status == doctor.EXIT_BAD and 'models.yaml' in found['models']['text']


def test_what_is_no_folder_or_no_model(capsys, tmp_path):
    with pytest.raises(ConfigError, match='--root'):
        run(capsys, '--root', tmp_path / 'nothing')
    with pytest.raises(ConfigError, match='there is no model'):
        run(capsys, '--model', 'nothing')


def test_a_library_that_crashes_is_survived():
    assert 'SIGILL' in libraries.probe('import os, signal; os.kill(os.getpid(), signal.SIGILL)')
    assert "No module named 'nothing'" in libraries.probe('import nothing')


@pytest.mark.parametrize(
    ('features', 'flags', 'gpu', 'expected'),
    [
        ('CPU : AVX2 = 1 | FMA = 1 |', ['avx2', 'fma'], False, ['ok']),
        ('CPU : AVX2 = 0 | FMA = 1 |', ['avx2', 'fma'], False, ['warn']),
        ('CPU : NEON = 1 | ARM_FMA = 1 |', ['asimd', 'asimddp'], False, ['warn']),
        ('CPU : NEON = 1 | DOTPROD = 1 |', ['asimd', 'asimddp'], True, ['ok', 'warn']),
    ],
)
def test_what_llama_cpp_was_built_for(monkeypatch, features, flags, gpu, expected):
    said = {'version': '1', 'features': features, 'gpu': False, 'providers': ['CPU']}
    runtimes = {'cpu': '', 'cuda': 'get onnxruntime-gpu', 'openvino': 'get openvino'}
    monkeypatch.setattr(platform, 'machine', lambda: 'x86_64')
    monkeypatch.setattr(
        libraries, 'probe', lambda code: runtimes if code == libraries.RUNTIMES else said
    )
    found = list(libraries.check(flags, gpu))
    assert [status for _, status, _, _ in found] == [*expected, 'ok', 'ok']
    assert found[-1][3] == ('get onnxruntime-gpu' if gpu else 'get openvino')
    assert all(cure for _, status, _, cure in found if status == 'warn')


def test_everything_is_said_on_few_lines(x5, capsys):
    _, out = run(capsys, '--root', x5)
    assert max(map(len, out.splitlines())) < 130
    assert str(x5) not in out
