"""`launch.py PARENT PROGRAM ARGUMENT…`: becomes the program, and dies by SIGKILL when the parent process dies.

The standard library alone, and run with `-I -S`, so that it costs milliseconds. A program of its own rather than a
`preexec_fn`: nothing but `exec` may safely follow a fork in a process with threads (prctl(2), PR_SET_PDEATHSIG, keeps
its setting across execve).
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, program: list[str]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.stderr.write(f"vnpu: prctl: {os.strerror(ctypes.get_errno())}\n")
        return 1
    if os.getppid() != parent:  # it died before the call above
        return 1
    try:
        os.execvp(program[0], program)
    except OSError as error:
        sys.stderr.write(f"vnpu: {program[0]} cannot be started: {error.strerror}\n")
        return 127


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
