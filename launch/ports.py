"""A fixed port map below the ephemeral range, so that nothing that asks the kernel for a port can take one of Ray's."""

import socket
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

# The kernel's default range starts here; a machine may have another (`ephemeral_start`).
EPHEMERAL_START = 32768
# offsets from the base; Ray's option names
FIXED = (
    "port",
    "dashboard-port",
    "ray-client-server-port",
    "node-manager-port",
    "object-manager-port",
    "runtime-env-agent-port",
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
    "metrics-export-port",
)
HEAD_ONLY = ("port", "dashboard-port", "ray-client-server-port")
WORKERS_OFFSET = 100


class Ports(BaseModel):
    """`base` and the nine after it are Ray's services, `base + 100` and `workers` more are for its worker processes.

    Two jobs on one node need different bases.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    base: Annotated[int, Field(ge=1024, le=65535)] = 20000
    # Ray takes one for each worker process of a node
    workers: Annotated[int, Field(ge=50, le=65535)] = 2000

    @model_validator(mode="after")
    def _below_ephemeral(self):
        if self.last >= EPHEMERAL_START:
            raise ValueError(
                f"ports {self.base} to {self.last} reach into the ephemeral range (from {EPHEMERAL_START}), where any "
                f"program may take them: lower base to at most {EPHEMERAL_START - 1 - WORKERS_OFFSET - self.workers}"
            )
        return self

    @property
    def last(self) -> int:
        return self.base + WORKERS_OFFSET + self.workers

    @property
    def gcs(self) -> int:
        return self.base + FIXED.index("port")

    @property
    def dashboard(self) -> int:
        return self.base + FIXED.index("dashboard-port")

    def ray_options(self, head: bool) -> list[str]:
        """Options of `ray start`; the head's services only where they run."""
        options = [
            f"--{name}={self.base + offset}" for offset, name in enumerate(FIXED) if head or name not in HEAD_ONLY
        ]
        return [*options, f"--min-worker-port={self.base + WORKERS_OFFSET}", f"--max-worker-port={self.last}"]

    def taken(self, host: str = "") -> list[int]:
        """Which of the services' ports cannot be bound on this machine."""
        return [port for port in range(self.base, self.base + len(FIXED)) if not _can_bind(host, port)]


def _can_bind(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def ephemeral_start() -> int:
    """First port that this machine's kernel hands out by itself."""
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
