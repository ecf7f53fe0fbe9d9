"""Pack what a bare machine with CUDA, Python 3.12, torch and transformers needs besides, to run verl's real engines.

    python benchmarks/gpu/pack.py [--out .gpu_pack]

Downloads wheels for Python 3.12 on x86-64 in the versions that this project is tested with, leaves out what importing
verl's engine path never reaches (Ray's servers, dashboard and libraries, tests, Java), and writes one archive per
package. `benchmarks/gpu/run.py` unpacks them to a temporary folder where it runs. Prints the size of each.
"""

import argparse
import fnmatch
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ROOT / "launch/constraints-cpu.txt"
LIMIT = 55_000_000  # bytes of all archives together
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 26, 27, 28, 31, 34)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]

TESTS = ("*/tests/*", "*/test/*", "tests/*", "scripts/*", "*.pyi", "*.pxd", "*.h", "*.c", "*.cpp", "*.pyx")
# package -> what is left out of it
PACKAGES: dict[str, tuple[str, ...]] = {
    "verl": ("verl/experimental/vla/*", "*.png", "*.jpg"),
    "tensordict": (),
    "pyvers": (),
    "orjson": (),
    "importlib_metadata": (),
    "zipp": (),
    "hydra-core": (),
    "omegaconf": (),
    "antlr4-python3-runtime": (),
    "TransferQueue": (),
    "pyzmq": (),
    "msgspec": (),
    # Ray is imported by verl's workers and never started here: its servers and the larger applications stay behind
    "ray": (
        *("ray/core/src/*", "ray/core/lib*", "ray/jars/*", "ray/dashboard/client/*", "ray/rllib/*", "ray/serve/*"),
        "ray/_private/runtime_env/agent/thirdparty_files/*",
    ),
    "codetiming": (),
    "datasets": (),
    "dill": (),
    "multiprocess": (),
    "xxhash": (),
    "torchdata": (),
    "jsonschema": (),
    "jsonschema-specifications": (),
    "referencing": (),
    "rpds-py": (),
    "pylatexenc": (),
    "pydantic": (),
    "pydantic_core": (),
    "annotated-types": (),
    "typing-inspection": (),
    # the version that setup.py pins, with the tokenizers that it takes
    "transformers": (),
    "tokenizers": (),
}


def versions() -> dict[str, str]:
    """Pinned versions by name; of several lines for one package, the first, which is that of new Pythons."""
    lines = re.findall(r"^([\w.-]+)==([^;\s]+)", VERSIONS.read_text(), re.MULTILINE)
    return {normal(name): version for name, version in reversed(lines)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def fetch(name: str, version: str, folder: Path) -> Path:
    """The wheel of a package, downloaded or, for one that has only a source of pure Python, built."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wanted = ["--no-deps", f"{name}=={version}", "--quiet"]
    target = ["--python-version", "3.12", "--implementation", "cp"]
    target += [word for platform in PLATFORMS for word in ("--platform", platform)]
    done = subprocess.run(
        [*pip, "download", *wanted, "--only-binary=:all:", *target, "-d", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        built = subprocess.run([*pip, "wheel", *wanted, "-w", str(folder)], capture_output=True, text=True)
        if built.returncode or not list(folder.glob("*-none-any.whl")):
            sys.exit(f"error: no wheel of {name} {version} for Python 3.12:\n{done.stderr}{built.stderr}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def repack(wheel: Path, left_out: tuple[str, ...], archive: Path) -> int:
    """Write the archive without what is left out; bytes of the files in it."""
    patterns = (*TESTS, *left_out)
    total = 0
    with zipfile.ZipFile(wheel) as source, tarfile.open(archive, "w:xz", preset=9) as target:
        for member in source.infolist():
            # what a wheel would spread to other places is put where imports find it
            name = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", member.filename)
            keep = ".dist-info/" in name or not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
            if member.is_dir() or not keep:
                continue
            info = tarfile.TarInfo(name)
            info.size, info.mode = member.file_size, 0o644
            with source.open(member) as content:
                target.addfile(info, content)
            total += member.file_size
    return total


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--out", type=Path, default=ROOT / ".gpu_pack", help="folder; what is in it is replaced")
    return words


def main() -> None:
    options = parser().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.glob("*.tar.xz"):
        old.unlink()
    pinned, sizes = versions(), []
    print(f"{'package':<28} {'version':<14} {'wheel MB':>9} {'kept MB':>9} {'packed MB':>9}")
    for name, left_out in PACKAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            version = pinned[normal(name)]
            wheel = fetch(name, version, Path(folder))
            archive = options.out / f"{normal(name)}-{version}.tar.xz"
            kept = repack(wheel, left_out, archive)
            sizes.append((wheel.stat().st_size, kept, archive.stat().st_size))
        line = " ".join(f"{size / 1e6:>9.2f}" for size in sizes[-1])
        print(f"{name:<28} {version:<14} {line}", flush=True)
    totals = [sum(column) for column in zip(*sizes, strict=True)]
    print(f"{'together':<28} {'':<14} " + " ".join(f"{total / 1e6:>9.2f}" for total in totals))
    if totals[2] > LIMIT:
        sys.exit(f"error: {totals[2] / 1e6:.1f} MB, want at most {LIMIT / 1e6:.0f}")


if __name__ == "__main__":
    main()
