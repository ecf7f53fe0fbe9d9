"""Measure POISE on a GPU, inside verl's own engines, on a machine with no network: JSON and a table.

    python benchmarks/gpu/run.py --pack .gpu_pack --out OUT           # there
    python benchmarks/gpu/run.py --device cpu --small --out OUT       # anywhere, in a minute: does it work?

Parts run one after the other, each in a process of its own, so that one that fails or hangs costs the others nothing;
what was measured is written after every section. The model has the shape of Qwen3-4B and random weights, in bfloat16.
"""

import argparse
import faulthandler
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # not this folder

from benchmarks.gpu.table import render  # noqa: E402

# part -> (its sections in order, what share of the time is its own)
PARTS = {
    "fsdp2": (
        ("capture", "seat", "update", "prompts", "sum_pi_squared", "entropy", "capture_torch", "identical"),
        0.5,
    ),
    "probe": (("probe", "kernels"), 0.2),
    "fsdp1": (("capture", "identical"), 0.15),
    "lora": (("capture", "identical"), 0.15),
}
# modules that the machine must bring, besides torch and transformers' own needs: too large for the pack
THERE = ("torch", "numpy", "pandas", "pyarrow", "peft", "accelerate", "safetensors", "huggingface_hub", "regex", "yaml")
THERE += ("requests", "httpx", "fsspec", "psutil", "packaging", "click", "msgpack", "google", "cloudpickle")
NAMES = tuple(f"{part}.{section}" for part, (sections, _) in PARTS.items() for section in sections)


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    words.add_argument("--small", action="store_true", help="a tiny model and few repetitions")
    words.add_argument("--pack", type=Path, help="folder that benchmarks/gpu/pack.py wrote; default: what is installed")
    words.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    words.add_argument(
        "--sections", default=",".join(PARTS), help=f"parts ({', '.join(PARTS)}) or sections ({', '.join(NAMES)})"
    )
    words.add_argument("--time-limit", type=float, default=440, help="seconds for everything")
    words.add_argument("--scratch", type=Path, help="folder for the model (8 GB) and the unpacked packages")
    words.add_argument("--together", action="store_true", help="all parts in this process")
    words.add_argument("--part", help=argparse.SUPPRESS)
    return words


def wanted(text: str) -> dict[str, list[str]]:
    """Part -> sections. Ends the program with a sentence for a name that is none."""
    chosen: dict[str, list[str]] = {}
    for name in filter(None, text.split(",")):
        if name not in PARTS and name not in NAMES:
            sys.exit(f"error: no section {name!r}; there are {', '.join((*PARTS, *NAMES))}")
        part, _, section = name.partition(".")
        chosen.setdefault(part, []).extend([section] if section else PARTS[part][0])
    return {part: [s for s in PARTS[part][0] if s in chosen[part]] for part in PARTS if part in chosen}


def scratch_folder(options) -> Path:
    """In memory where there is room for the model, else on disk."""
    memory = Path("/dev/shm")
    if options.scratch is None and memory.is_dir():
        room = os.statvfs(memory)
        if room.f_bavail * room.f_frsize > 30e9:
            return Path(tempfile.mkdtemp(prefix="poise-gpu-", dir=memory))
    return Path(tempfile.mkdtemp(prefix="poise-gpu-", dir=options.scratch))


# Python before 3.11.4 knows no filters; the archives are our own
SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def unpack(pack: Path, folder: Path) -> None:
    archives = sorted(pack.glob("*.tar.xz"))
    if not archives:
        sys.exit(f"error: no packages in {pack}: python benchmarks/gpu/pack.py --out {pack}")

    def one(archive: Path) -> None:
        with tarfile.open(archive) as file:
            file.extractall(folder, **SAFELY)

    with ThreadPoolExecutor() as pool:  # decompression lets other threads run
        list(pool.map(one, archives))


def environment(device: str) -> dict:
    """The card and the versions; nothing that names the machine."""
    import torch

    found = {"torch": torch.__version__, "python": platform.python_version(), "cpu cores": os.cpu_count()}
    found["device"] = f"{platform.machine()} CPU"
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {"device": card.name, "memory GB": round(card.total_memory / 1e9, 1), "cuda": torch.version.cuda}
    from importlib.metadata import PackageNotFoundError, version

    for name in ("verl", "transformers", "numpy", "tensordict", "peft", "flash-attn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def imported() -> list[str]:
    """Distributions of which this process has a module: what a pack must hold or the machine must have."""
    from importlib.metadata import packages_distributions

    owners = packages_distributions()
    tops = {name.partition(".")[0] for name, module in sys.modules.items() if getattr(module, "__file__", None)}
    return sorted({owner for top in tops for owner in owners.get(top, ())}, key=str.lower)


def run_part(part: str, sections: list[str], options, deadline: float, model: Path) -> None:
    """Each section of a part, guarded; the file is written after each."""
    from benchmarks.gpu.timing import Deadline

    file, limit = options.out / f"{part}.json", Deadline(deadline)
    result: dict = {"environment": environment(options.device), "sections": {}}
    engine, start = None, time.time()
    for section in sections:
        began, said = time.time(), result["sections"].setdefault(section, {})
        try:
            if limit.left() < 20:
                raise TimeoutError("no time was left for it")
            if part == "probe":
                from benchmarks.gpu import probe_section

                sizes = probe_section.SMALL if options.small else probe_section.FULL
                devices = ("cpu",) if options.device == "cpu" else ("cuda", "cpu")
                steps = section == "probe"
                said["rows"] = (
                    probe_section.probe_steps(devices, sizes, limit) if steps else probe_section.kernels(devices)
                )
            else:
                if engine is None:
                    engine = make_engine(part, options, limit, model)
                    result["engine"] = engine.about | {"seconds until it was built": round(time.time() - start, 1)}
                said["rows"] = getattr(engine, section)()
        except Exception as error:  # the rest runs on, and the file says what failed
            said["failed"] = f"{type(error).__name__}: {error}"
            said["traceback"] = traceback.format_exc()
            print(said["traceback"], flush=True)
        said["took s"] = round(time.time() - began, 1)
        state = said.get("failed", "done")
        result["distributions"] = imported()
        print(f"[{time.time() - start:6.1f} s] {part}.{section}: {state}, {said['took s']} s", flush=True)
        file.write_text(json.dumps(result, indent=1))


def make_engine(part: str, options, limit, model: Path):
    if part == "fsdp1" and options.device == "cpu":
        raise NotImplementedError("FSDP1 is not offered on a CPU")
    from benchmarks.gpu import capture_sections as room

    strategy = "fsdp" if part == "fsdp1" else "fsdp2"
    settings = {"lora_rank": 32, "lora_alpha": 32} if part == "lora" else {}
    sizes = room.SMALL if options.small else room.FULL
    return room.EngineSections(strategy, options.device, sizes, model, limit, **settings)


def settle_environment(options, packages: Path) -> dict[str, str]:
    """Variables of a part's process."""
    variables = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "TOKENIZERS_PARALLELISM": "false"}
    variables |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "RAY_DEDUP_LOGS": "0"}
    path = [str(packages)] if options.pack else []
    variables["PYTHONPATH"] = os.pathsep.join([*path, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if options.device == "cuda":
        variables["VERL_PLATFORM"] = "nvidia"
    else:
        plugin = {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "recipe.poise.plugin"}
        variables |= plugin | {"TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return variables


def collect(options, parts) -> dict:
    """What the parts have written, as one; a part without a file says so."""
    whole: dict = {"environment": {}, "parts": {}}
    for part in parts:
        file = options.out / f"{part}.json"
        said = json.loads(file.read_text()) if file.exists() else {"sections": {}, "failed": "it wrote nothing"}
        whole["environment"] |= said.pop("environment", {})
        whole["parts"][part] = said
    whole["small"] = options.small
    (options.out / "gpu.json").write_text(json.dumps(whole, indent=1))
    (options.out / "gpu.md").write_text(render(whole))
    return whole


def main() -> None:
    options = parser().parse_args()
    parts, start = wanted(options.sections), time.time()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part:  # a child: packages are on the path already
        part, deadline, model = json.loads(options.part)
        faulthandler.dump_traceback_later(max(5.0, deadline - time.time() + 15), exit=True)
        run_part(part, parts[part], options, deadline, Path(model))
        return
    for part in parts:
        (options.out / f"{part}.json").unlink(missing_ok=True)
    scratch = scratch_folder(options)
    try:
        packages, model = scratch / "packages", scratch / "model"
        if options.pack:
            missing = [name for name in THERE if importlib.util.find_spec(name) is None]
            if missing:
                print(f"not installed here, and not in the pack: {', '.join(missing)}", flush=True)
            unpack(options.pack, packages)
            print(f"[{time.time() - start:6.1f} s] packages unpacked", flush=True)
        variables = settle_environment(options, packages)
        if options.together:
            os.environ |= variables
            sys.path[:0] = [str(packages)] if options.pack else []
        for index, (part, sections) in enumerate(parts.items()):
            left = start + options.time_limit - time.time()
            share = PARTS[part][1] / sum(PARTS[name][1] for name in list(parts)[index:])
            deadline = time.time() + left * share
            print(f"[{time.time() - start:6.1f} s] {part}: {left * share:.0f} s for it", flush=True)
            if options.together:
                run_part(part, sections, options, deadline, model)
            else:
                words = json.dumps([part, deadline, str(model)])
                command = [sys.executable, __file__, *sys.argv[1:], "--part", words]
                try:
                    subprocess.run(command, env=os.environ | variables, cwd=ROOT, timeout=max(1.0, left * share) + 40)
                except subprocess.TimeoutExpired:
                    print(f"{part} was ended: it outran its time", flush=True)
            collect(options, parts)
    finally:
        subprocess.run(["rm", "-rf", str(scratch)])
    print(render(collect(options, parts)))
    print(f"[{time.time() - start:6.1f} s] written to {options.out}")


if __name__ == "__main__":
    main()
