"""What `trainer.logger` names is there, before anything is started: verl imports it only when training begins."""

import importlib.util

from omegaconf import DictConfig

# of verl 0.9.1's loggers: the package that each imports
PACKAGES = {
    "clearml": "clearml",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "vemlp_wandb": "volcengine_ml_platform",
    "wandb": "wandb",
}


def check_trackers(config: DictConfig) -> None:
    """Raises ValueError for a logger whose package is not installed."""
    named = config.trainer.logger
    for name in [named] if isinstance(named, str) else list(named or []):
        package = PACKAGES.get(name)
        if package and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"trainer.logger={named}: {name} needs the package {package}, which is not installed here: "
                f"pip install {package}, or take {name} out"
            )
