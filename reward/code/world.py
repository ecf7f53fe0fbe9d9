"""The root that programs in the sandbox see: nothing of the machine but its system, read-only.

For `reward.code.jail`, inside new mount and process namespaces; standard library only.
"""

import ctypes
import errno
import os
from collections.abc import Sequence

LIBC = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MS_NOEXEC, MNT_DETACH = 8, 2
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID = 0x00020000, 0x08000000, 0x20000000
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}  # the C library has no wrapper
MOUNT_SETATTR = 442  # on both
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache", "/etc/alternatives")


class MountAttributes(ctypes.Structure):
    """struct mount_attr."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def check(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def unshare(flags: int) -> None:
    check(LIBC.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    result = LIBC.mount(source.encode(), target.encode(), kind and kind.encode(), flags, options.encode())
    check(result, f"mount {source} on {target}")


def mounts_below(place: str) -> list[str]:
    """Mount points at `place` and in it."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [line.split(" ")[4] for line in file]
    for code, sign in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        points = [point.replace(code, sign) for point in points]
    return [point for point in points if point == place or point.startswith(place + "/")]


def make_read_only(place: str) -> None:
    """A mount and every mount in it."""
    attributes = MountAttributes(set=MS_RDONLY | MS_NOSUID | MS_NODEV)
    if not LIBC.syscall(
        MOUNT_SETATTR, AT_FDCWD, place.encode(), AT_RECURSIVE, ctypes.byref(attributes), ctypes.sizeof(attributes)
    ):
        return
    if ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
        raise OSError(ctypes.get_errno(), f"mount_setattr {place}: {os.strerror(ctypes.get_errno())}")
    remount_read_only(place)


def remount_read_only(place: str) -> None:
    """As `make_read_only`, for kernels before 5.12: one after the other."""
    for point in mounts_below(place):
        locked = os.statvfs(point).f_flag & MS_NOEXEC  # a flag that must be kept
        mount("none", point, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | locked)


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
    make_read_only(place)


def inside(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def build_world(shown: list[str], hidden: list[str], harness: dict[str, bytes]) -> None:
    """Change into a root of our own. The mount point may be any folder: it is covered, not written to.

    Args:
        shown: files and folders beside `SYSTEM`.
        hidden: folders that appear empty where they are in a folder that is shown.
        harness: files in /harness, by name.
    """
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    places = [path for path in ("/mnt", "/media", "/srv", "/tmp") if os.path.isdir(path)]
    root = next(place for place in places if not any(path.startswith(place + "/") for path in shown))
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=16m,mode=755,nr_inodes=8192")
    system = [path for path in SYSTEM if os.path.lexists(path)]
    tops = system + [path for path in shown if not inside(path, system)]
    for path in tops:
        bind_read_only(path, root)
    for path in hidden:
        if inside(path, tops) and os.path.isdir(root + path):
            mount("tmpfs", root + path, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "size=4k,mode=755")
            for kept in shown:
                if inside(kept, [path]):
                    raise OSError(errno.EINVAL, f"the interpreter's {kept} is in a folder that must not be shown")
    for name in ("null", "random", "urandom"):  # not zero: its shared mappings are memory of no process
        os.makedirs(f"{root}/dev", exist_ok=True)
        open(f"{root}/dev/{name}", "w").close()
        mount(f"/dev/{name}", f"{root}/dev/{name}", None, MS_BIND)
    for folder in ("proc", "box", "tmp", "harness", "old"):
        os.makedirs(f"{root}/{folder}", exist_ok=True)
    for name, content in harness.items():
        with open(f"{root}/harness/{name}", "wb") as file:
            file.write(content)
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV)
    os.chdir(root)
    check(LIBC.syscall(PIVOT_ROOT[os.uname().machine], b".", b"old"), "pivot_root")
    os.chdir("/")
    check(LIBC.umount2(b"/old", MNT_DETACH), "umount of the old root")
    os.rmdir("/old")
    mount("tmpfs", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def build_room(disk_mb: int) -> None:
    """For one test case, in process and mount namespaces of its own: its processes alone in /proc, and new /box and
    /tmp on one disk, which ends with the case. Whatever is done to them touches no other case."""
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV, "hidepid=2")
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk_mb}m,mode=755,nr_inodes=4096")
    for name in ("box", "tmp"):
        os.mkdir(f"/tmp/{name}")
        os.chmod(f"/tmp/{name}", 0o777)
    mount("/tmp/box", "/box", None, MS_BIND)
    mount("/tmp/tmp", "/tmp", None, MS_BIND)
