"""`poise_env` with the real pip on an index of tiny wheels: versions are held, and what becomes of flash-attn."""

import io
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]

# A build of the project without a download: its metadata is in a file beside it.
BACKEND = """
import pathlib, zipfile
NAME = "poise_verl-0.1.0"

def build_editable(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(pathlib.Path(folder, f"{NAME}-py3-none-any.whl"), "w") as file:
        file.writestr(f"{NAME}.dist-info/METADATA", pathlib.Path("METADATA").read_text())
        file.writestr(f"{NAME}.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        file.writestr(f"{NAME}.dist-info/RECORD", "")
    return f"{NAME}-py3-none-any.whl"
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
FLASH = "flash_attn/__init__.py"


def wheel(folder: Path, name: str, number: str, **files: str) -> Path:
    """A wheel that holds `files`, by path."""
    stem = f"{name.replace('-', '_')}-{number}"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for name_in_wheel, text in files.items():
            file.writestr(name_in_wheel, text)
        info = f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n"
        file.writestr(f"{stem}.dist-info/METADATA", info)
        file.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{stem}.dist-info/RECORD", "".join(f"{item},,\n" for item in file.namelist()))
    return path


def sdist(folder: Path, name: str, number: str, setup: str) -> None:
    """What a package without wheels has on an index."""
    with tarfile.open(folder / f"{name}-{number}.tar.gz", "w:gz") as file:
        for path, text in (
            ("setup.py", setup),
            ("PKG-INFO", f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n"),
        ):
            item = tarfile.TarInfo(f"{name}-{number}/{path}")
            item.size = len(text.encode())
            file.addfile(item, io.BytesIO(text.encode()))


@pytest.fixture(scope="module")
def requirements():
    """Of setup.py, by extra; None: the project's own."""
    asked: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **settings: asked.update(settings))
        runpy.run_path(str(ROOT / "setup.py"))
    return {None: asked["install_requires"], **asked["extras_require"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory, requirements):
    """A project with the real launch/ scripts, an index with a wheel of everything but flash-attn, an environment."""
    folder = tmp_path_factory.mktemp("install")
    project = folder / "project"
    (project / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch/env.sh", project / "launch")
    shutil.copy(ROOT / "setup.py", project)
    pinned = {}
    for path in ROOT.glob("launch/constraints-*.txt"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith(("pip==", "#"))]
        (project / "launch" / path.name).write_text("\n".join(lines) + "\n")  # pip stays: the index has none
        if "gpu" in path.name:
            pinned = dict(line.split(";")[0].split("==") for line in lines)
    (project / "pyproject.toml").write_text(PYPROJECT)
    (project / "backend.py").write_text(BACKEND)
    lines = ["Metadata-Version: 2.1", "Name: poise-verl", "Version: 0.1.0"]
    lines += [f"Requires-Dist: {item}" for item in requirements[None]]
    index = folder / "index"
    index.mkdir()
    for extra in ("gpu", "flash", "dev"):
        lines += [
            f"Provides-Extra: {extra}",
            *(f'Requires-Dist: {item}; extra == "{extra}"' for item in requirements[extra]),
        ]
    (project / "METADATA").write_text("\n".join(lines) + "\n")
    for item in map(Requirement, [*requirements[None], *requirements["gpu"], *requirements["dev"]]):
        exact = next((spec.version for spec in item.specifier if spec.operator == "=="), None)
        number = pinned.get(item.name) or exact or installed_version(item.name)
        files = {}
        if item.name == "torch":
            files = {"torch/__init__.py": f"from . import version\n__version__ = '{number}+cu130'\n"}
            files["torch/version.py"] = "cuda = '13.0'\n"
        wheel(index, item.name, number, **files)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    return folder


def installed_version(name: str) -> str:
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return "1.0"


@pytest.fixture
def env(made, tmp_path):
    """A function: `poise_env gpu dev` with settings, in an environment of this test's own; the finished process."""
    shutil.copytree(made / "index", tmp_path / "index")
    shutil.copytree(made / "venv", tmp_path / "venv", symlinks=True)

    def call(*arguments: str, **settings) -> subprocess.CompletedProcess:
        script = f"set -euo pipefail; source {made}/project/launch/env.sh; poise_env {' '.join(arguments)}"
        own = {
            "POISE_VENV": tmp_path / "venv", "PIP_NO_INDEX": 1, "PIP_FIND_LINKS": tmp_path / "index",
            "PIP_CONFIG_FILE": "/dev/null", "CUDA_HOME": tmp_path / "no-cuda", **settings,
        }  # fmt: skip
        keep = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "POISE_", "PYTHON"))}
        folders = [item for item in keep["PATH"].split(os.pathsep) if not Path(item, "nvcc").exists()]
        keep["PATH"] = os.pathsep.join(folders)
        variables = keep | {key: str(value) for key, value in own.items()}
        return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=variables, timeout=200)

    return call


GPU = ("gpu", "dev")


def chosen(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def test_without_a_wheel_nothing_is_compiled_and_the_choice_is_said(env, tmp_path):
    sdist(tmp_path / "index", "flash_attn", "2.8.3", f"open({str(tmp_path / 'compiled')!r}, 'w')")
    done = env(*GPU)
    line = chosen(done)
    assert "torch 2.11.0+cu130, CUDA 13.0, vllm 0.24.0, transformers 5.9.0, attention sdpa, Python 3." in line
    assert "POISE_FLASH_ATTN=PATH or URL" in done.stdout and not (tmp_path / "compiled").exists()
    assert (tmp_path / "venv/poise-stamp").read_text().split()[1:] == ["gpu", "dev"]

    again = env(*GPU)
    assert "attention sdpa" in chosen(again) and len(again.stdout.splitlines()) == 1

    # a wheel that is named later is put in, and taken out again
    path = wheel(tmp_path, "flash-attn", "2.8.3", **{FLASH: ""})
    assert "attention flash-attn 2.8.3," in chosen(env(*GPU, POISE_FLASH_ATTN=path))
    assert "attention flash-attn 2.8.3," in chosen(env(*GPU))
    assert "attention sdpa," in chosen(env(*GPU, POISE_FLASH_ATTN=0))


def test_a_wheel_of_the_index_is_taken(env, tmp_path):
    wheel(tmp_path / "index", "flash-attn", "2.8.3+cu130torch2.11", **{FLASH: ""})
    assert "attention flash-attn 2.8.3+cu130torch2.11," in chosen(env(*GPU))


def test_a_wheel_for_another_torch_is_not_kept(env, tmp_path):
    wrong = {FLASH: "raise ImportError('undefined symbol: _ZN3c10')\n"}
    wheel(tmp_path / "index", "flash-attn", "2.8.3", **wrong)
    done = env(*GPU)
    assert "attention sdpa," in chosen(done) and "cannot be imported with this torch, and was removed" in done.stdout
    done = env(*GPU, POISE_FLASH_ATTN=wheel(tmp_path, "flash-attn", "2.8.3", **wrong))  # asked for: not passed over
    assert done.returncode != 0 and "is built for another torch" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (GPU, {"POISE_FLASH_ATTN": "build"}, "no nvcc on PATH or in"),
        (GPU, {"POISE_FLASH_ATTN": "/nowhere/flash.whl"}, "there is no file /nowhere/flash.whl"),
        (GPU, {"POISE_CONSTRAINTS": "/nowhere/versions.txt"}, "there is no file /nowhere/versions.txt"),
        (("cpu", "async"), {}, "the extra async is for gpu"),
    ],
)
def test_wishes_that_cannot_be_met(env, arguments, settings, message):
    done = env(*arguments, **settings)
    assert done.returncode != 0 and message in done.stderr, done.stdout + done.stderr


def test_versions_are_held_and_another_file_is_another_install(env, tmp_path):
    wheel(tmp_path / "index", "tqdm", "99.0")
    wheel(tmp_path / "index", "tqdm", "4.60.0")
    mine = tmp_path / "mine.txt"
    mine.write_text("tqdm==4.60.0\n")
    python = tmp_path / "venv/bin/python"

    def tqdm() -> str:
        command = [python, "-c", "import importlib.metadata as m; print(m.version('tqdm'))"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    chosen(env(*GPU, POISE_CONSTRAINTS=mine, POISE_FLASH_ATTN=0))
    assert tqdm() == "4.60.0"
    mine.write_text("tqdm==99.0\n")  # the stamp knows the file's content
    chosen(env(*GPU, POISE_CONSTRAINTS=mine, POISE_FLASH_ATTN=0))
    assert tqdm() == "99.0"
    mine.write_text("tqdm==1.0\n")
    done = env(*GPU, POISE_CONSTRAINTS=mine, POISE_FLASH_ATTN=0)
    assert done.returncode != 0 and "POISE_CONSTRAINTS=none" in done.stderr


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_the_files_fit_setup_py(requirements, accelerator, python):
    """Each name once for each Python, and within what setup.py asks for."""
    held: dict = {}
    for line in (ROOT / f"launch/constraints-{accelerator}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            item = Requirement(line)
            if item.marker is None or item.marker.evaluate({"python_version": python}):
                name = item.name.lower().replace("_", "-").replace(".", "-")
                assert name not in held, line
                (exact,) = item.specifier
                assert exact.operator == "=="
                held[name] = exact.version
    extras = ("cpu", "dev", "ifeval") if accelerator == "cpu" else ("gpu", "flash")
    for item in map(Requirement, [*requirements[None], *(item for extra in extras for item in requirements[extra])]):
        found = held.get(item.name.lower().replace("_", "-"))
        assert found or accelerator == "gpu", f"{item} is not held"
        assert found is None or item.specifier.contains(found), f"{item}, held at {found}"
