"""How much memory a program holds; standard library only, for `reward.code.jail`."""

import os
import resource
import socket

MEGABYTE, PIPE = 1 << 20, 1 << 16  # bytes; what a pipe holds at most, its size being fixed by `reward.code.seccomp`


class Meter:
    """Counts processes' pages, and the kernel's buffers at their largest: 64 KiB of a pipe, of a socket what it may
    have underway and one message more."""

    def __init__(self) -> None:
        self.sockets_before = sockets()
        with socket.socket(socket.AF_UNIX) as sample:
            self.socket_bytes = 2 * sample.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def over(self, limit_mb: float, others: set[int]) -> bool:
        """Whether all processes but `others` hold more. Pages that several share count once."""
        processes = [name for name in os.listdir("/proc") if name.isdigit() and int(name) not in others]
        held = (sockets() - self.sockets_before) * self.socket_bytes + PIPE * pipes(processes)
        if held + sum(map(resident, processes)) <= limit_mb * MEGABYTE:
            return False
        for name in processes:  # the exact count takes longer
            held += proportional(name)
            if held > limit_mb * MEGABYTE:
                return True
        return False


def resident(process: str) -> int:
    """Bytes, shared ones included; 0 when it ended meanwhile."""
    try:
        with open(f"/proc/{process}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def proportional(process: str) -> int:
    """Bytes, each shared one divided by the number of those who share it."""
    try:
        with open(f"/proc/{process}/smaps_rollup") as file:
            return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except FileNotFoundError:  # ended, or a kernel before 4.14
        return resident(process)
    except OSError:  # ended meanwhile
        return 0


def pipes(processes: list[str]) -> int:
    """Pipes that some process holds open."""
    found = set()
    for name in processes:
        try:
            numbers = os.listdir(f"/proc/{name}/fd")
        except OSError:  # ended meanwhile
            continue
        for number in numbers:
            try:
                found.add(os.readlink(f"/proc/{name}/fd/{number}"))
            except OSError:  # closed meanwhile
                continue
    return sum(link.startswith("pipe:") for link in found)


def sockets() -> int:
    """In this network namespace, those included that only wait for their buffers to be read."""
    with open("/proc/net/sockstat") as file:
        return int(file.readline().split()[2])
