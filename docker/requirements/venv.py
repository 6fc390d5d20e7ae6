"""`make setup`: an environment in `.venv` from the lock files beside this script, with vNPU built and installed in it.

    python3.11 docker/requirements/venv.py [--venv DIR] [--python PYTHON]

Standard library only: it runs before anything is installed. Each step is done again only when what it is made from has
changed (a stamp in the environment holds a hash of it). Everything pip and the compiler say goes to a log.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own index: `torch==…+cpu` where plain pip finds only the CUDA build."""
VERSION = "import platform; print(platform.python_version())"
TAIL = 25


class Failed(Exception):
    """A step failed; the message says what to do."""


class Setup:
    """The steps, in order. `venv` is the environment's folder, `python` what it is made with."""

    def __init__(self, venv: Path, python: str) -> None:
        self.venv = venv
        self.made_with = python
        self.python = venv / "bin" / "python"
        self.log = ROOT / ".vnpu" / "setup.log"
        self.stamps = venv / "stamps"

    def run(self) -> None:
        version = self._check_python()
        locks = [HERE / f"{name}.txt" for name in ("build", "runtime", "engine", "dev")]
        native = sorted(path for path in (ROOT / "native").rglob("*") if path.is_file() and _is_source(path))
        base = _hash([], version, str(self.venv))
        packages = _hash(locks, base)
        project = _hash([ROOT / "pyproject.toml", *native], packages)
        steps = [
            ("environment", base, self._environment),
            ("packages (vLLM and torch among them: about 1 GB at first)", packages, lambda: self._packages(locks)),
            ("vnpu (compiles native/)", project, self._project),
            ("check: vLLM loads and generates one token", project, self._check),
        ]
        for n, (name, inputs, work) in enumerate(steps, 1):
            self._step(f"[{n}/{len(steps)}] {name}", self.stamps / f"{n}", inputs, work)

    def _step(self, title: str, stamp: Path, inputs: str, work: Callable[[], None]) -> None:
        if stamp.is_file() and stamp.read_text() == inputs:
            return
        for later in self.stamps.glob("*"):
            if later.name >= stamp.name:
                later.unlink()
        began = time.monotonic()
        print(f"{title} …", flush=True)
        try:
            work()
        except Failed as error:
            raise Failed(f"{title}: {error}") from None
        self.stamps.mkdir(exist_ok=True)
        stamp.write_text(inputs)
        print(f"{title}: done in {time.monotonic() - began:.0f} s", flush=True)

    def _check_python(self) -> str:
        version = self._version(self.made_with)
        if not version.startswith("3.11."):
            found = f"is {version}" if version else "cannot be run"
            raise Failed(f"{self.made_with} {found}; vLLM's CPU build of torch needs Python 3.11: see `make doctor`")
        return version

    def _version(self, python: str) -> str:
        """As `3.11.7`; empty where that is no Python."""
        try:
            said = subprocess.run([python, "-c", VERSION], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return ""
        return said.stdout.strip()

    def _environment(self) -> None:
        """Kept where it is of this very Python: what it lacks, the next step adds."""
        if self.venv.exists() and not (self.venv / "pyvenv.cfg").exists():
            raise Failed(f"{self.venv} exists and is no Python environment: remove it, or name another folder")
        if self.venv.exists() and self._version(str(self.python)) != self._version(self.made_with):
            shutil.rmtree(self.venv)
        self._command([self.made_with, "-m", "venv", str(self.venv)], "install Python's venv module: `make doctor`")

    def _packages(self, locks: list[Path]) -> None:
        files = [word for lock in locks for word in ("-r", str(lock))]
        with contextlib.suppress(Failed):
            self._pip(["install", "--no-deps", *files], quiet=True)
            return
        if "No matching distribution found for torch" not in self._tail(TAIL):
            raise Failed(self._advice("is the package index reachable? `pip config list` shows which one"))
        print(f"      torch's CPU build is not on this index: asking {CPU_WHEELS} too", flush=True)
        self._pip(["install", "--no-deps", "--extra-index-url", CPU_WHEELS, *files])

    def _project(self) -> None:
        self._pip(["install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)], path=True)

    def _check(self) -> None:
        self._command([str(self.python), "-m", "coordinator.cli.one_token"], "see the log")

    def _pip(self, words: list[str], *, quiet: bool = False, path: bool = False) -> None:
        environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
        if path:  # cmake and ninja come from PyPI
            environ["PATH"] = f"{self.venv / 'bin'}{os.pathsep}{environ.get('PATH', '')}"
        advice = "" if quiet else "see the log"
        self._command([str(self.python), "-m", "pip", *words], advice, environ)

    def _command(self, command: list[str], advice: str, environ: dict[str, str] | None = None) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, env=environ or dict(os.environ)
            )
            status = _wait(child)
        if status:
            raise Failed(self._advice(advice) if advice else "")

    def _advice(self, advice: str) -> str:
        return f"{advice}\nThe end of {self.log}:\n{self._tail(TAIL)}"

    def _tail(self, lines: int) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two at once would install over each other. The system lets go of it for whoever is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another set-up of this checkout …", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _wait(child: subprocess.Popen[bytes]) -> int:
    """With a clock on a terminal: minutes without a word look like a hang."""
    began = time.monotonic()
    shown = False
    try:
        while True:
            try:
                return child.wait(1)
            except subprocess.TimeoutExpired:
                if sys.stdout.isatty():
                    shown = True
                    print(f"\r      {time.monotonic() - began:4.0f} s", end="", flush=True)
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
    finally:
        if shown:
            print("\r             \r", end="", flush=True)


def _is_source(path: Path) -> bool:
    return path.name == "CMakeLists.txt" or path.suffix in {".cpp", ".h", ".hpp", ".cmake"}


def _hash(files: list[Path], *texts: str) -> str:
    digest = hashlib.sha256("\0".join(texts).encode())
    for file in files:
        digest.update(f"\0{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--venv", default=str(ROOT / ".venv"), help="the environment's folder (default: .venv)")
    parser.add_argument("--python", default=sys.executable, help="the Python 3.11 to make it with")
    args = parser.parse_args()
    try:
        with _alone(ROOT / ".vnpu"):
            Setup(Path(args.venv).absolute(), args.python).run()
    except Failed as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
