from glob import glob

from setuptools import find_packages, setup

package_name = 'hobot_vlm'

setup(
    name=package_name,
    version='0.1.0',
    description='Lets a robot talk about what it sees: vision-language models for ROS 2, on the '
    'robot.',
    license='Apache-2.0',
    maintainer='hobot_vlm developers',
    maintainer_email='hobot_vlm@users.noreply.github.com',
    python_requires='>=3.10',
    packages=find_packages(include=[package_name, f'{package_name}.*']),
    package_data={package_name: ['py.typed', 'catalogue.yaml', 'demo/*', 'server/page/*']},
    # ROS looks for these below share/; what runs without ROS lies in the package itself.
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{package_name}']),
        (f'share/{package_name}', ['package.xml']),
        (f'share/{package_name}/launch', glob('launch/*.launch.py')),
        (f'share/{package_name}/config', glob('config/*')),
        (f'share/{package_name}/examples', glob('examples/*.*')),
        (f'share/{package_name}/examples/internvl', glob('examples/internvl/*.py')),
        # hobot_llamacpp's page copies it from there: cp -r .../lib/hobot_llamacpp/config/ .
        (f'lib/{package_name}/config', glob('config/*')),
    ],
    zip_safe=False,
    entry_points={
        'console_scripts': [
            'hobot_vlm = hobot_vlm.ros.main:main',
            'encode = hobot_vlm.ros.main:encode',
            'play_images = hobot_vlm.ros.main:play_images',
            'vlm = hobot_vlm.cli.main:main',
        ]
    },
    install_requires=[
        'huggingface_hub>=0.26',
        'jinja2>=3.0',
        'llama-cpp-python>=0.3.36',  # compiled from source; tested with 0.3.36
        'llguidance>=1.9',
        'numpy>=1.21',
        'onnxruntime>=1.17',
        'opencv-python-headless>=4.5',
        'Pillow>=9.0',
        'PyYAML>=5.4',
        'rosbags-image>=0.10',
    ],
    extras_require={
        # another runtime of the vision encoder: 180 MB, fastest on CPUs with AVX512_BF16 or AMX
        'openvino': ['openvino>=2025.0'],
        # ROS 2 without a ROS installation: wheels for CPython 3.11 on x86-64 Linux
        'ros': [
            'ros-kilted-builtin-interfaces',
            'ros-kilted-diagnostic-msgs',
            'ros-kilted-lifecycle-msgs',
            'ros-kilted-rcl-interfaces',
            'ros-kilted-rclpy',
            'ros-kilted-rmw-fastrtps-cpp',
            'ros-kilted-sensor-msgs',
            'ros-kilted-std-msgs',
            'ros-kilted-std-srvs',
        ],
        # a model on another machine; Ubuntu 22.04 has 0.22
        'remote': ['httpx>=0.22'],
        # `vlm serve` and the node's `serve`; also as Ubuntu 22.04 and later ship them
        'serve': ['prometheus-client>=0.9', 'starlette>=0.13', 'uvicorn>=0.15'],
        'test': [
            'gguf',
            'httpx',
            'hypothesis',
            'jsonschema',
            'mypy',
            'onnx',
            'openai',
            'playwright',  # drives Chromium, where that is installed
            'prometheus-client',
            'py_trees',  # examples/tree.py
            'pydantic',  # a schema may be one of its classes
            'pytest',
            'pytest-timeout',
            'pytest-xdist',  # two cores test twice as fast
            'ruff',
            'setuptools',  # the tests install this package as colcon does
            'starlette',
            'types-PyYAML',
            'uvicorn',
        ],
        # for the tests: makes the messages that PyPI lacks
        'messages': [
            'catkin_pkg',
            'cmake',
            'ros-kilted-ament-cmake',
            'ros-kilted-ament-cmake-include-directories',
            'ros-kilted-ament-cmake-ros-core',
            'ros-kilted-ament-package',
            'ros-kilted-geometry-msgs',
            'ros-kilted-rosidl-core-generators',
            'ros-kilted-rosidl-default-generators',
        ],
        # what makes the demo model, the test models and encoder exports
        'tools': ['emoji', 'gguf', 'onnx', 'onnxscript', 'tokenizers', 'torch', 'transformers>=5'],
    },
)
