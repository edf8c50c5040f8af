"""Killing processes at chosen moments, for scripts of the tests.

Each attempt is a forked process, where all is imported already, ended by SIGKILL.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable


def attempt(work: Callable[[], bool]) -> int:
    """Starts the work in a new process; returns its id.

    The process has failed unless the work says that it is finished.
    """
    sys.stdout.flush()  # or the child would print it, too
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = 0 if work() else 2
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int, *, wait: bool = False) -> bool:
    """Whether the process has ended by itself, now or after a wait; exits if it failed."""
    done, status = os.waitpid(child, 0 if wait else os.WNOHANG)
    if done and status != 0:
        raise SystemExit(f"an attempt failed with status {status}")
    return done != 0


def killed_in_time(child: int, progress: Callable[[], int], *, more: int, patience: float) -> bool:
    """Kills the process so many seconds after so much more progress; False if it ended before.

    Progress, such as files on the disk, tells the moment: a busy machine stretches the clock.
    """
    wanted = progress() + more
    deadline = None if more else time.monotonic() + patience
    while deadline is None or time.monotonic() < deadline:
        if ended(child):
            return False
        if deadline is None and progress() >= wanted:
            deadline = time.monotonic() + patience
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if status != 0:  # it failed by itself, just before
        raise SystemExit(f"an attempt failed with status {status}")
    return False
