"""System calls that programs in the sandbox do not get; standard library only, for `reward.code.jail`.

Forbidden are namespaces and mounts of one's own, other processes' memory, what attacks on kernels begin with, and
memory that belongs to no process and so to no limit: anonymous files, shared anonymous mappings, System V segments,
file descriptors in flight, and buffers of sockets and pipes beyond their usual size (`reward.code.jail` counts those).
"""

import ctypes
import errno
import os

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
# Numbers of system calls on (x86_64, aarch64).
AUDIT_ARCH = (0xC000003E, 0xC00000B7)
CLONE3 = (435, 435)
FORBIDDEN = {
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "mount_setattr": (442, 442), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "vmsplice": (278, 75), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
}  # fmt: skip
# With certain arguments only.
CLONE, MMAP, FCNTL = (56, 220), (9, 222), (72, 25)
SOCKET, SOCKETPAIR, SETSOCKOPT = (41, 198), (53, 199), (54, 208)
CLONE_NEW, CLONE_THREAD, CLONE_FILES = 0x7E020000, 0x10000, 0x400
MAP_SHARED_ANONYMOUS, MAP_HUGETLB, F_SETPIPE_SZ = 0x21, 0x40000, 1031
AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
SOL_SOCKET, BUFFER_SIZES = 1, (7, 8, 32, 33)  # SO_SNDBUF, SO_RCVBUF and those with FORCE

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _GIVE = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
Line = tuple[int, int, int, int]


class Instruction(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = [("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint)]


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction))]


def machine() -> int:
    """Place in the pairs above."""
    return ("x86_64", "aarch64").index(os.uname().machine)


def _give(error: int) -> Line:
    return (_GIVE, 0, 0, _REFUSE | error)


def _argument(place: int) -> Line:
    """Load the lower half; the kernel reads no more of the arguments that are looked at here."""
    return (_LOAD, 0, 0, 16 + 8 * place)


def _rule(number: int, *lines: Line) -> list[Line]:
    """For one call: `lines` end in a refusal or fall through to "allow"."""
    return [(_EQUAL, 0, len(lines) + 1, number), *lines, (_GIVE, 0, 0, _ALLOW)]


def filter_lines() -> list[Line]:
    """The filter as (code, jump if true, jump if false, operand)."""
    here = machine()
    refuse = _give(errno.EPERM)
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, AUDIT_ARCH[here]), refuse, (_LOAD, 0, 0, 0)]
    if here == 0:
        lines += [(_AT_LEAST, 0, 1, 0x40000000), refuse]  # the x32 numbering of the same calls
    for numbers in FORBIDDEN.values():
        lines += [(_EQUAL, 0, 1, numbers[here]), refuse]
    # its flags are out of sight; libraries fall back to clone
    lines += [(_EQUAL, 0, 1, CLONE3[here]), _give(errno.ENOSYS)]
    # no namespaces; no thread with a table of open files of its own, which would be counted nowhere
    lines += _rule(
        CLONE[here], _argument(0), (_ANY_BIT, 0, 1, CLONE_NEW), refuse,
        (_ANY_BIT, 0, 2, CLONE_THREAD), (_ANY_BIT, 1, 0, CLONE_FILES), refuse,
    )  # fmt: skip
    lines += _rule(
        MMAP[here], _argument(3), (_ANY_BIT, 0, 1, MAP_HUGETLB), refuse,
        (_AND, 0, 0, MAP_SHARED_ANONYMOUS), (_EQUAL, 0, 1, MAP_SHARED_ANONYMOUS), refuse,
    )  # fmt: skip
    lines += _rule(FCNTL[here], _argument(1), (_EQUAL, 0, 1, F_SETPIPE_SZ), refuse)
    family = _give(errno.EAFNOSUPPORT)
    lines += _rule(SOCKET[here], _argument(0), (_EQUAL, 2, 0, AF_INET), (_EQUAL, 1, 0, AF_INET6), family)
    lines += _rule(SOCKETPAIR[here], _argument(0), (_EQUAL, 1, 0, AF_UNIX), family)
    sizes = [(_EQUAL, len(BUFFER_SIZES) - place, 0, name) for place, name in enumerate(BUFFER_SIZES)]
    lines += _rule(
        SETSOCKOPT[here], _argument(1), (_EQUAL, 0, len(sizes) + 3, SOL_SOCKET), _argument(2), *sizes,
        (_GIVE, 0, 0, _ALLOW), refuse,
    )  # fmt: skip
    return [*lines, (_GIVE, 0, 0, _ALLOW)]


def forbid_calls() -> None:
    """Set the filter for this process and all it starts, for good. Needs no privilege once new ones are ruled out."""
    lines = filter_lines()
    program = Program(len(lines), (Instruction * len(lines))(*(Instruction(*line) for line in lines)))
    if LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp filter")
