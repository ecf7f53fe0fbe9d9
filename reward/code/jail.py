"""Process 1 of the sandbox: builds an empty world around itself, runs each test case in it, and reports as JSON.

Run by `reward.code.local_sandbox` inside new user, mount, process, network and IPC namespaces, as
``python -I jail.py``; standard library only. The world: a small tmpfs, the interpreter and the system's libraries
read-only, no other file, no network, nothing of the caller's environment. Cases run without capabilities, under
resource limits and a seccomp filter; what they leave behind is killed.

Standard input: {"runs": [{"source", "stdin"}], "limits", "python", "prefixes", "uid", "stop_at_failure"}. Standard
output: a list of {"status", "stdout", "stderr"}, status "ok", "error", "time", "memory" or "output".
"""

import ctypes
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, MNT_DETACH = 4, 24, 38, 2
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
# Numbers of system calls on (x86_64, aarch64).
AUDIT_ARCH = (0xC000003E, 0xC00000B7)
PIVOT_ROOT = (155, 41)  # the C library has no wrapper
CLONE, CLONE3 = (56, 220), (435, 435)
# Namespaces and mounts of one's own, memory that belongs to no process and so to no limit, other processes, and what
# attacks on kernels begin with.
FORBIDDEN = {
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "mount_setattr": (442, 442), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}  # fmt: skip
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache", "/etc/alternatives")


def machine() -> int:
    """Place in the pairs above."""
    return ("x86_64", "aarch64").index(os.uname().machine)


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    result = LIBC.mount(source.encode(), target.encode(), kind and kind.encode(), flags, options.encode())
    if result:
        raise OSError(ctypes.get_errno(), f"mount {source} on {target}: {os.strerror(ctypes.get_errno())}")


def bind_read_only(path: str, root: str) -> None:
    """Show a file or folder of the machine at the same place, read-only; a link as a link."""
    place = root + path
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), place)
        return
    if os.path.isdir(path):
        os.makedirs(place, exist_ok=True)
    else:
        open(place, "w").close()
    mount(path, place, None, MS_BIND | MS_REC)
    locked = os.statvfs(path).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC)  # flags that must be kept
    mount(path, place, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | locked)


def build_world(disk_mb: int, prefixes: list[str]) -> None:
    """Change into a root of our own. The mount point may be any folder: it is covered, not written to."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    places = [path for path in ("/mnt", "/media", "/srv", "/tmp") if os.path.isdir(path)]
    root = next(place for place in places if not any(path.startswith(place + "/") for path in prefixes))
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk_mb}m,mode=755,nr_inodes=4096")
    shown = [path for path in SYSTEM if os.path.lexists(path)]
    shown += [path for path in prefixes if not any(path == top or path.startswith(top + "/") for top in shown)]
    for path in shown:
        bind_read_only(path, root)
    for name in ("null", "zero", "random", "urandom"):
        os.makedirs(f"{root}/dev", exist_ok=True)
        open(f"{root}/dev/{name}", "w").close()
        mount(f"/dev/{name}", f"{root}/dev/{name}", None, MS_BIND)
    for folder in ("proc", "box", "tmp", "old"):
        os.makedirs(f"{root}/{folder}", exist_ok=True)
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV)
    os.chdir(root)
    if LIBC.syscall(PIVOT_ROOT[machine()], b".", b"old"):
        raise OSError(ctypes.get_errno(), "pivot_root")
    os.chdir("/")
    if LIBC.umount2(b"/old", MNT_DETACH):
        raise OSError(ctypes.get_errno(), "umount of the old root")
    os.rmdir("/old")
    mount("tmpfs", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    for folder in ("/box", "/tmp"):
        mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk_mb}m,mode=777,nr_inodes=4096")


class Instruction(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = [("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint)]


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction))]


def forbid_calls() -> None:
    """A seccomp filter over `FORBIDDEN`, for good. Needs no privilege once new ones are ruled out."""
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, unknown = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
    here = machine()
    code = [(load, 0, 0, 4), (equal, 1, 0, AUDIT_ARCH[here]), (give, 0, 0, refuse), (load, 0, 0, 0)]
    if here == 0:
        code += [(at_least, 0, 1, 0x40000000), (give, 0, 0, refuse)]  # the x32 numbering of the same calls
    for numbers in FORBIDDEN.values():
        code += [(equal, 0, 1, numbers[here]), (give, 0, 0, refuse)]
    code += [
        (equal, 0, 1, CLONE3[here]),
        (give, 0, 0, unknown),
    ]  # its flags are out of sight; libraries fall back to clone
    code += [(equal, 1, 0, CLONE[here]), (give, 0, 0, allow)]
    code += [(load, 0, 0, 16), (any_bit, 0, 1, 0x7E020000), (give, 0, 0, refuse), (give, 0, 0, allow)]  # CLONE_NEW*
    program = Program(len(code), (Instruction * len(code))(*(Instruction(*line) for line in code)))
    if LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp filter")


def restrict(limits: dict) -> None:
    """In the child, before exec: limits, and no way back to any privilege."""
    megabyte = 1 << 20
    for kind, value in (
        (resource.RLIMIT_AS, limits["memory_mb"] * megabyte),
        (resource.RLIMIT_CPU, limits["time_s"] + 1),
        (resource.RLIMIT_FSIZE, limits["file_mb"] * megabyte),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(64):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if limits["uid"] is not None:  # without a user namespace: no longer root
        os.setgroups([])
        os.setresgid(limits["uid"], limits["uid"], limits["uid"])
        os.setresuid(limits["uid"], limits["uid"], limits["uid"])
    forbid_calls()


def kill_rest() -> None:
    """Kill every process but this one, until none is left."""
    while True:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            return
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


def resident_mb() -> float:
    """Memory of all processes in here."""
    pages = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                with open(f"/proc/{name}/statm") as file:
                    pages += int(file.read().split()[1])
            except (OSError, IndexError):
                continue  # it ended meanwhile
    return pages * resource.getpagesize() / (1 << 20)


def run_case(argv: list[str], stdin: str, limits: dict) -> dict:
    """One test case in an empty folder; output goes to files, whose size is limited."""
    with open("/tmp/in", "w") as file:
        file.write(stdin)
    with open("/tmp/in") as source, open("/tmp/out", "wb") as out, open("/tmp/err", "wb") as err:
        child = subprocess.Popen(
            argv, stdin=source, stdout=out, stderr=err, cwd="/box", start_new_session=True,
            env={"PATH": "/usr/bin:/bin", "HOME": "/box", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: restrict(limits),
        )  # fmt: skip
        status, end = None, time.monotonic() + limits["time_s"]
        pause = 0.002
        while child.poll() is None and status is None:
            time.sleep(pause)
            pause = min(0.05, pause * 1.5)
            if time.monotonic() > end:
                status = "time"
            elif resident_mb() > limits["memory_mb"]:
                status = "memory"
        kill_rest()
    texts = []
    for name in ("/tmp/out", "/tmp/err"):
        with open(name, "rb") as file:
            texts.append(file.read(limits["output_kb"] * 1024 + 1))
    if status is None:
        status = "ok" if child.returncode == 0 else "error"
        if child.returncode == -signal.SIGXCPU:
            status = "time"
        if len(texts[0]) > limits["output_kb"] * 1024 or child.returncode == -signal.SIGXFSZ:
            status = "output"
    empty("/box")
    empty("/tmp")
    stdout, stderr = (text[: limits["output_kb"] * 1024].decode("utf-8", "replace") for text in texts)
    return {"status": status, "stdout": stdout, "stderr": stderr[-2000:]}


def empty(folder: str) -> None:
    """Delete all inside; a new tmpfs would keep the old one's memory."""
    with os.scandir(folder) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def main() -> None:
    task = json.load(sys.stdin)
    LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # the cases cannot look into this process, nor at its pipes
    build_world(task["limits"]["disk_mb"], task["prefixes"])
    limits = task["limits"] | {"uid": task["uid"]}
    reports, end = [], time.monotonic() + task["limits"]["wall_s"]
    for run in task["runs"]:
        if time.monotonic() > end:
            reports.append({"status": "time", "stdout": "", "stderr": "the task's time was used up by earlier cases"})
            continue
        with open("/box/main.py", "w") as file:
            file.write(run["source"])
        reports.append(run_case([task["python"], "-I", "-B", "/box/main.py"], run["stdin"], limits))
        if task["stop_at_failure"] and reports[-1]["status"] != "ok":
            break
    json.dump(reports, sys.stdout)


if __name__ == "__main__":
    main()
