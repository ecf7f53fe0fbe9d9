"""What `import verl` loads in every process (entry point group ``verl.plugins``, or VERL_USE_EXTERNAL_MODULES).

It runs while ``verl/__init__`` is still importing, and verl hides an entry point that fails, so this module stays light
and `check_registered` is called at start by the driver and by every worker.
"""

import os
from importlib.metadata import version

PLUGIN_MODULE = "recipe.poise.plugin"
VERL_VERSIONS = ("0.9.1",)  # the seams in tests/recipe/test_contract.py were checked against these


def register() -> None:
    """Register the CPU platform with verl, where VERL_PLATFORM asks for it."""
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        from recipe.poise.cpu import platform

        platform.register()


def check_registered() -> None:
    """Raise RuntimeError where the plug-in is not loaded, or verl is another than its seams were checked for."""
    found = version("verl")
    if found not in VERL_VERSIONS:
        raise RuntimeError(
            f"POISE stands on hooks of verl {', '.join(VERL_VERSIONS)}, this process has verl {found}. "
            "Install the pinned version (`pip install -e .` in the project), or run tests/recipe/test_contract.py "
            "against the new one and add "
            "it to recipe.poise.plugin.VERL_VERSIONS."
        )
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        from verl.plugin.platform import get_platform

        if get_platform().device_name != "cpu":
            raise RuntimeError(
                "VERL_PLATFORM=cpu, but verl did not load the CPU platform of POISE. Is the project installed in this "
                f"environment (`pip install -e .`)? Otherwise set VERL_USE_EXTERNAL_MODULES={PLUGIN_MODULE}."
            )


register()
