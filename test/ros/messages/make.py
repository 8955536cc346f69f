"""
Makes the message packages that PyPI lacks, from their definitions and with the generators of ROS.

Run it once before the tests, because the C++ takes a minute. Where the packages are installed, as
on a robot, nothing is made.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
import os
from pathlib import Path
import shutil
import subprocess
import sys

HERE = Path(__file__).parent
BUILD = HERE.parents[2] / 'build' / 'messages'
PACKAGES = ('ai_msgs', 'hbm_img_msgs', 'llama_msgs', 'vision_msgs')
PREFIX = Path(sys.prefix)
PATH = f'{PREFIX / "bin"}:{os.environ["PATH"]}'


def installed() -> bool:
    specs = [find_spec(package) for package in PACKAGES]
    return all(spec and spec.origin for spec in specs)  # the folders here have no origin


def missing() -> str:
    """Say what is needed to make them and is not here; empty where all is."""
    if installed():
        return ''
    if not shutil.which('cmake', path=PATH):
        return 'cmake is not installed'
    prefixes = [PREFIX, *map(Path, os.environ.get('AMENT_PREFIX_PATH', '').split(':'))]
    if not any((path / 'share' / 'rosidl_default_generators').is_dir() for path in prefixes):
        return 'rosidl_default_generators is not installed'
    return ''


def make() -> dict[str, str]:
    """
    Make the packages, unless they have been made before.

    :return: environment variables with which a process finds them
    """
    if installed():
        return {}
    digest = hashlib.sha256(sys.prefix.encode())
    for path in sorted(HERE.rglob('*')):
        if path.suffix in ('.msg', '.srv', '.action', '.txt', '.xml', '.cmake'):
            digest.update(path.read_bytes())
    folder = BUILD / digest.hexdigest()[:12]
    if not (folder / 'made').exists():
        for package in PACKAGES:
            make_one(package, folder)
        (folder / 'made').touch()
    version = f'python{sys.version_info.major}.{sys.version_info.minor}'
    return {
        'PYTHONPATH': prepended('PYTHONPATH', folder / 'lib' / version / 'site-packages'),
        'LD_LIBRARY_PATH': prepended('LD_LIBRARY_PATH', folder / 'lib'),
    }


def make_one(package: str, folder: Path) -> None:
    """Configure, build and install one package."""
    build = folder / 'build' / package
    environment = os.environ | {
        'AMENT_PREFIX_PATH': prepended('AMENT_PREFIX_PATH', PREFIX),
        'PATH': PATH,
    }
    options = {
        'CMAKE_PREFIX_PATH': PREFIX,
        'CMAKE_INSTALL_PREFIX': folder,
        # so that the libraries find each other and those of the wheels
        'CMAKE_INSTALL_RPATH': f'$ORIGIN;$ORIGIN/../../..;{PREFIX / "lib"}',
        'CMAKE_PROJECT_INCLUDE': HERE / 'wheels.cmake',
        'Python3_EXECUTABLE': sys.executable,
        'BUILD_TESTING': 'OFF',
    }
    commands = [
        ['cmake', '-S', HERE / package, '-B', build, *(f'-D{k}={v}' for k, v in options.items())],
        ['cmake', '--build', build, '--target', 'install', '--parallel', '2'],
    ]
    for command in commands:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f'{package}: {done.stdout[-2000:]}{done.stderr[-2000:]}')


def prepended(variable: str, path: Path) -> str:
    return ':'.join(filter(None, [str(path), os.environ.get(variable, '')]))


if __name__ == '__main__':
    if missing():
        print(f'The tests of {", ".join(PACKAGES)} are left out: {missing()}.')
    else:
        make()
