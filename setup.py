"""Packaging: `mmvmamba`, with the folder `kernels/` installed as `mmvmamba.kernels` and the configs in the wheel."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'mmvmamba/__init__.py').read_text()).group(1)
KERNELS = ['mmvmamba.kernels'] + [f'mmvmamba.kernels.{name}' for name in find_packages('kernels')]

# The onedl-* packages and the original mmcv, mmdet, mmsegmentation share import names. A hard requirement on one family
# would overwrite the other in a user's environment, so the toolboxes are extras; those who have the originals install
# without extras.
ENGINE = ['onedl-mmengine>=0.10.7']
# to read weights, measure memory, make the shapes dataset: every tool runs with what one extra brings
TOOLS = ['safetensors', 'psutil', 'pycocotools']
DETECTION = [*ENGINE, *TOOLS, 'onedl-mmcv>=2.3', 'onedl-mmdetection>=3.5', 'faster-coco-eval>=1.6']
SEGMENTATION = [*ENGINE, *TOOLS, 'onedl-mmcv>=2.3', 'onedl-mmsegmentation>=1.4', 'ftfy', 'regex']
# mmpretrain's sdist does not name torchvision, which it imports
CLASSIFICATION = [*ENGINE, *TOOLS, 'onedl-mmcv>=2.3', 'onedl-mmpretrain>=1.3', 'torchvision']
EXPORT = ['onnx', 'onnxscript', 'onnxruntime']
CPU = ['numba']
TEST = [
    *DETECTION,
    *SEGMENTATION,
    *CLASSIFICATION,
    *EXPORT,
    *CPU,
    'triton; sys_platform == "linux"',
    'matplotlib',
    'hypothesis',
    'pytest',
    'ruff',
]

setup(
    name='mmvmamba',
    version=VERSION,
    description='VMamba and FastVim backbones for MMDetection and MMSegmentation',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=['License :: OSI Approved :: Apache Software License', 'Programming Language :: Python :: 3'],
    python_requires='>=3.10',
    packages=[*find_packages(include=['mmvmamba', 'mmvmamba.*']), *KERNELS],
    package_dir={'mmvmamba': 'mmvmamba', 'mmvmamba.kernels': 'kernels'},
    package_data={'mmvmamba': ['.mim/*.yml', '.mim/configs/**/*', 'analysis/published.json']},
    install_requires=['torch>=2.4', 'numpy'],
    extras_require={
        'det': DETECTION,
        'seg': SEGMENTATION,
        'cls': CLASSIFICATION,
        'export': EXPORT,
        'all': [*DETECTION, *SEGMENTATION, *CLASSIFICATION, *EXPORT, *CPU],
        'cpu': CPU,
        'test': TEST,
    },
)
