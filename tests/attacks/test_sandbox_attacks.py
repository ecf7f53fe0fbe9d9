# ruff: noqa: E501 - programs are written as they run
"""Programs that attack the sandbox or their own surroundings.

Whatever they do is an outcome of theirs, never "no judgement", which would spare them the advantage of a wrong answer;
it ends in time, and the next case finds everything as it should be. README.md has the table.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reward.code.local_sandbox import Limits, LocalSandbox, Run, SandboxUnavailable

TIME_S = 2
LIMITS = Limits(time_s=TIME_S, memory_mb=300, file_mb=4, disk_mb=16, output_kb=64, processes=16)
BACK = "import os, sys, time, ctypes, signal, socket, resource, mmap\nlibc = ctypes.CDLL(None, use_errno=True)\n"
ALL = ("ok", "error", "time", "memory", "output")

# Name: the program, and the statuses that it may end with. What "ok" ones print must not be "wrong".
SURROUNDINGS = {
    "its output's file deleted": ("os.system('rm -rf /tmp/out /tmp/err /tmp/in /tmp/*')", ("ok",)),
    "folders in the place of its output's file": ("os.makedirs('/tmp/out/a'); os.makedirs('/tmp/err')", ("ok",)),
    "a FIFO in its place": ("os.mkfifo('/tmp/out'); os.mkfifo('/tmp/err')", ("ok",)),
    "a FIFO in the place of its source": ("os.unlink('main.py'); os.mkfifo('main.py'); os.mkfifo('/tmp/x')", ("ok",)),
    "its output cut and filled": ("os.ftruncate(1, 4 << 20); os.ftruncate(2, 4 << 20)", ("output",)),
    "its output sealed": ("import fcntl\ntry: fcntl.fcntl(1, 1033, 15)\nexcept OSError: pass", ("ok",)),
    "its input written to": ("""
for path in ("/proc/self/fd/0", "/dev/stdin"):
    try: os.write(os.open(path, os.O_WRONLY | os.O_TRUNC), b"x"); print("wrong")
    except OSError: pass""", ("ok",)),
    "1,500 folders in each other": ("""
for _ in range(1500): os.mkdir("d"); os.chdir("d")""", ("ok",)),
    "links in a circle": ("os.symlink('/box', '/box/a'); os.symlink('/', '/tmp/root'); os.symlink('b', 'b')", ("ok",)),
    "modes taken away": ("os.mkdir('/box/x'); os.chmod('/box/x', 0); os.chmod('/tmp', 0); os.chmod('/box', 0)", ALL[:2]),
    "the disk full": ("""
for folder in ("/box", "/tmp"):
    try:
        for n in range(99): open(f"{folder}/{n}", "wb").write(bytes(1 << 20))
    except OSError: pass
print(sum(os.stat(f"{d}/{n}").st_blocks for d in ("/box", "/tmp") for n in os.listdir(d)) * 512 <= 17 << 20 or "wrong")
""", ("ok",)),
    "many file names": ("""
for n in range(10 ** 5):
    try: open(f"/tmp/{n}", "w").close()
    except OSError: break""", ("ok",)),
    "a file locked": ("import fcntl\nfor f in (open('/box/main.py'), 0): fcntl.flock(f, fcntl.LOCK_EX)", ("ok",)),
    "all files closed": ("os.closerange(0, 64)", ALL[:2]),
    "its streams closed and a hang": ("os.closerange(0, 64); time.sleep(60)", ("time",)),
    "much on standard error": ("for _ in range(10 ** 5): os.write(2, b'x' * 65536)", ("error", "output")),
    "output that is no text": ("os.write(1, bytes(range(256)) * 9); os.write(2, b'\\xff\\xfe\\x00')", ("ok",)),
    "surrogates printed": ("sys.stdout.reconfigure(errors='surrogatepass'); print('\\ud800')", ("ok",)),
}  # fmt: skip
PROCESSES = {
    "signals to process 1": ("""
for number in range(1, 65):
    try: os.kill(1, number)
    except OSError: pass""", ("ok",)),
    "signals to all and to the group": ("os.kill(-1, 9)\nos.killpg(0, 9)", ALL[:2]),
    "SIGINT to process 1": ("os.kill(1, 2)", ALL[:2]),
    "limits of process 1": ("""
for pid in range(1, 40):
    for kind in range(16):
        try: resource.prlimit(pid, kind, (0, 0)) if pid != os.getpid() else 0
        except (OSError, ValueError): pass
time.sleep(0.1)""", ALL[:2]),
    "process 1 slowed down": ("""
for pid in range(1, 40):
    for call in (lambda: os.setpriority(os.PRIO_PROCESS, pid, 19), lambda: os.sched_setaffinity(pid, {0}),
                 lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))):
        try: call()
        except OSError: pass
try: os.setpriority(os.PRIO_USER, 0, 19)
except OSError: pass""", ("ok",)),
    "niceness and real time": ("""
for call in (lambda: os.nice(-5), lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))):
    try: call(); print("wrong")
    except OSError: pass""", ("ok",)),
    "process 1 in /proc": ("""
for name in ("oom_score_adj", "mem", "fd", "environ", "cmdline", "maps", "cwd", "root", "ns/pid", "limits", "attr/current"):
    for mode in ("r", "r+"):
        try: open(f"/proc/1/{name}", mode); print("wrong", name)
        except OSError: pass""", ("ok",)),
    "other processes' memory": ("""
for number in (101, 310, 311, 438, 440) if os.uname().machine == "x86_64" else (117, 270, 271, 438, 440):
    if libc.syscall(number, 1, 0, 0, 0, 0, 0) != -1: print("wrong", number)""", ("ok",)),
    "the last to be killed for memory": ("""
try: os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"-1000"); print("wrong")
except OSError: pass""", ("ok",)),
    "stopped": ("os.kill(os.getpid(), signal.SIGSTOP)", ("time",)),
    "killed by itself": ("os.kill(os.getpid(), 9)", ("error",)),
    "every signal ignored": ("""
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass""", ("time",)),
    "crashed with a dump": ("os.abort()", ("error",)),
    "processes left behind": ("""
for _ in range(8):
    if not os.fork():
        os.setsid()
        while True: time.sleep(1)""", ("ok",)),
    "processes left behind that write": ("""
if not os.fork():
    os.setsid()
    while True: os.write(1, b"x"); open("/box/main.py", "w").write("x"); time.sleep(0.001)
time.sleep(0.1)""", ("ok", "output")),
    "the process table full": ("""
while True:
    try: os.fork()
    except OSError: time.sleep(0.01)""", ("time", "memory")),
    "a storm of zombies": ("""
for _ in range(3000):
    try:
        if not os.fork(): os._exit(0)
    except OSError: break""", ("ok",)),
    "a storm of orphans": ("""
for _ in range(200):
    try:
        if not os.fork():
            if not os.fork(): os._exit(0)
            os._exit(0)
    except OSError: os._exit(0)""", ("ok",)),
    "threads without end": ("""
import threading
try:
    while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
except RuntimeError: os._exit(0)""", ("ok",)),
    "namespaces of its own": ("""
for flag in (0x20000, 0x10000000, 0x20000000, 0x40000000, 0x04000000, 0x08000000, 0x02000000, 0x80):
    if libc.unshare(flag) == 0: print("wrong", hex(flag))
if os.system("unshare --user --map-root-user true 2>/dev/null") == 0: print("wrong")""", ("ok",)),
    "another user": ("""
for call in (os.setuid, os.setgid, os.seteuid):
    for number in (0, 1, 65534):
        try:
            call(number)
            if number != os.getuid() and number != os.getgid(): print("wrong")
        except OSError: pass
try: os.setgroups([0]); print("wrong")
except OSError: pass
os.system("su -c true 2>/dev/null </dev/null")""", ("ok",)),
}  # fmt: skip
KERNEL = {
    "families of sockets": ("""
for family in range(64):
    try: socket.socket(family, socket.SOCK_DGRAM if family in (1, 2, 10) else socket.SOCK_RAW)
    except OSError: continue
    if family not in (socket.AF_INET, socket.AF_INET6): print("wrong", family)
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    try: socket.socket(getattr(socket, "AF_VSOCK", 40), kind); print("wrong")
    except OSError: pass""", ("ok",)),
    "raw packets": ("""
try: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); print("wrong")
except OSError: pass""", ("ok",)),
    "descriptors in flight": ("""
a, b = socket.socketpair()
try: socket.send_fds(a, [b"x"], [0]); print("wrong")
except OSError: pass""", ("ok",)),
    "larger buffers": ("""
import fcntl
a, b = socket.socketpair()
for name in (socket.SO_SNDBUF, socket.SO_RCVBUF, 32, 33):
    try: a.setsockopt(socket.SOL_SOCKET, name, 1 << 24); print("wrong")
    except OSError: pass
try: fcntl.fcntl(os.pipe()[1], 1031, 1 << 20); print("wrong")
except OSError: pass""", ("ok",)),
    "shared memory of nobody": ("""
for flags in (0x21, 0x23, 0x40022):
    try: mmap.mmap(-1, 1 << 20, flags=flags); print("wrong", flags)
    except (OSError, ValueError): pass
try: open("/dev/zero"); print("wrong")
except OSError: pass""", ("ok",)),
    "the machine's settings": ("""
for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/vm/overcommit_memory", "/sys/x"):
    try: open(path, "w").write("1"); print("wrong", path)
    except OSError: pass""", ("ok",)),
    "devices and files of the machine": ("""
for path in ("/dev/kmsg", "/dev/mem", "/dev/vda", "/dev/sda", "/dev/fuse", "/etc/passwd", "/etc/shadow",
             "/root/.bashrc", "/root/.ssh", "/var", "/run", "/sys"):
    if os.path.exists(path): print("wrong", path)
try: os.mknod("/tmp/null", 0o600 | 0x2000, os.makedev(1, 3)); print("wrong")
except OSError: pass""", ("ok",)),
}  # fmt: skip
MEMORY = {
    "of many sockets": ("""
for _ in range(12):
    if not os.fork():
        kept = []
        try:
            while True:
                a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
                kept += [a, b]
                for end in (a, b):
                    end.setblocking(False)
                    try:
                        while True: end.send(bytes(100_000))
                    except OSError: pass
        except OSError: pass
        time.sleep(60)
time.sleep(60)""", ("memory",)),
    "of many processes": ("""
for _ in range(9):
    if not os.fork():
        x = b"1" * 10**8
        time.sleep(60)
time.sleep(60)""", ("memory",)),
    "of files that are mapped and let go": ("""
f = open("/box/f", "wb+")
try:
    while True: f.write(bytes(1 << 20))
except OSError: pass
f.close(); os.unlink("/box/f")""", ("ok",)),
    "shared with its children": ("""
x = bytearray(os.urandom(1 << 20)) * 150
for _ in range(8):
    if not os.fork():
        time.sleep(0.7)
        os._exit(0)
time.sleep(0.5)
print("shared")""", ("ok",)),
}  # fmt: skip
ATTACKS = SURROUNDINGS | PROCESSES | KERNEL | MEMORY
HONEST = "import os\nprint(sorted(os.listdir('/box')), os.listdir('/tmp'), sum(map(int, input().split())))"


@pytest.fixture(scope="module")
def sandbox():
    try:
        return LocalSandbox(LIMITS)
    except SandboxUnavailable as error:
        pytest.skip(f"this machine cannot isolate a program: {error}")


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_an_outcome_of_the_programs_own(sandbox, name):
    source, statuses = ATTACKS[name]
    start = time.monotonic()
    runs = [Run(BACK + source), Run(HONEST, "1 2")]
    attack, honest = asyncio.run(sandbox.run(runs, False))
    assert time.monotonic() - start < TIME_S + 8
    assert attack.status in statuses and "wrong" not in attack.stdout, attack
    assert (honest.status, honest.stdout) == ("ok", "['main.py'] [] 3\n"), honest


def test_pipes_count_as_memory(sandbox):
    """2,000 pipes that are full hold 128 MiB, which no process does."""
    source = (
        BACK
        + """
for _ in range(30):
    try: child = os.fork()
    except OSError: break  # the sandbox's own processes count among the 32
    if not child:
        kept = []
        try:
            while True:
                r, w = os.pipe()
                os.set_blocking(w, False)
                try:
                    while True: os.write(w, bytes(65536))
                except OSError: pass
                os.close(w)
                kept.append(r)
        except OSError: pass
        time.sleep(60)
time.sleep(60)
"""
    )
    small = LocalSandbox(Limits(time_s=3, memory_mb=100, processes=32))
    [report] = asyncio.run(small.run([Run(source)], False))
    assert report.status == "memory"


def test_mounts_below_a_folder_that_is_shown_are_read_only_too(sandbox):
    """A tmpfs in /usr, in a mount namespace of this test's own, with either way to make it read-only."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount something in /usr")
    for name in ("make_read_only", "remount_read_only"):
        code = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from reward.code import local_sandbox
from reward.code.local_sandbox import *
change = "import world; world.make_read_only = world.{name}; import jail;"
local_sandbox._JAIL = local_sandbox._JAIL.replace("import jail;", change)
source = '''
import os
print(os.path.exists("/usr/local/games/there"))
try: open("/usr/local/games/new", "w"); print("wrote")
except OSError as error: print(error.errno)
'''
print(asyncio.run(LocalSandbox(Limits(time_s=5)).run([Run(source)], True))[0].stdout)
"""
        command = 'mount -t tmpfs -o mode=777 none /usr/local/games && touch /usr/local/games/there && exec "$@"'
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", command, "sh", sys.executable, "-c", code],
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == ["True", "30"], done


def test_a_strict_umask_is_no_obstacle(sandbox):
    before = os.umask(0o077)
    try:
        [report] = asyncio.run(LocalSandbox(Limits(time_s=5)).run([Run("print(1)")], True))
    finally:
        os.umask(before)
    assert report.stdout == "1\n"


def test_no_home_folder_is_shown(sandbox, monkeypatch):
    """A Python in ~/bin, with its library in ~/lib, shows those two and no more of ~."""
    home = Path("/var/tmp") / f"home-{os.getpid()}"
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    try:
        (home / "bin").mkdir(parents=True)
        (home / ".ssh").mkdir()
        (home / ".ssh" / "id").write_text("s3cret")
        (home / "lib").mkdir()
        (home / "lib" / "notes").write_text("s3cret")
        home.chmod(0o755)
        base = Path(sys.base_prefix)
        shutil.copy(os.path.realpath(sys.executable), home / "bin" / "python3")
        shutil.copytree(
            base / "lib" / version, home / "lib" / version,
            ignore=shutil.ignore_patterns("test", "site-packages", "__pycache__", "idlelib", "ensurepip", "tkinter"),
        )  # fmt: skip
        for library in base.glob("lib/libpython*.so*"):
            shutil.copy(library, home / "lib")
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("LD_LIBRARY_PATH", str(home / "lib"))
        source = f"import os\nprint(*sorted(os.listdir({str(home)!r})), *sorted(os.listdir({str(home)!r} + '/lib')))"
        at_home = LocalSandbox(Limits(time_s=5), python=str(home / "bin" / "python3"))
        [report] = asyncio.run(at_home.run([Run(source)], True))
        shown = report.stdout.split()
        assert report.status == "ok" and shown[:2] == ["bin", "lib"] and version in shown, report
        assert ".ssh" not in shown and "notes" not in shown
    finally:
        shutil.rmtree(home, ignore_errors=True)


def test_root_of_a_container_that_has_no_other_users(sandbox):
    """Root that cannot become another user: its programs run as it, in a user namespace, without rights."""
    code = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from reward.code.local_sandbox import *
source = "print(next(line for line in open('/proc/self/status') if line.startswith('CapEff')).split()[1])"
print(asyncio.run(LocalSandbox(Limits(time_s=5)).run([Run(source)], True))[0].stdout)
"""
    enter = ["unshare", "--user", "--map-root-user"]
    if subprocess.run([*enter, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run([*enter, sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["0" * 16], done


def test_an_interpreter_in_tmp_is_refused_with_the_reason(sandbox, tmp_path):
    link = tmp_path / "python3"
    shutil.copy(os.path.realpath(sys.executable), link)
    if not str(tmp_path).startswith("/tmp/"):
        pytest.skip("temporary files are elsewhere")
    with pytest.raises(SandboxUnavailable, match="/tmp|does not run"):
        LocalSandbox(python=str(link))


@pytest.mark.extended
def test_every_attack_as_another_user():
    """As root, this file's attacks once more from a user without any right."""
    if os.geteuid() != 0 or os.environ.get("POISE_ATTACKS_AS"):
        pytest.skip("for root")
    packages = str(Path(pytest.__file__).parents[1])
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for python in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        environment = {"PYTHONPATH": f"{Path(__file__).parents[2]}:{packages}", "PATH": "/usr/bin:/bin"}
        environment["POISE_ATTACKS_AS"] = "65534"
        try:
            runs = "import pytest, reward.code, subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
            check = [*user, python, "-c", runs]
            subprocess.run(check, check=True, env=environment, cwd="/", capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "--import-mode=importlib"]
        command = [*user, python, "-m", "pytest", *options, __file__]
        done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        assert " passed" in done.stdout
        return
    pytest.skip("no interpreter that another user can run")
