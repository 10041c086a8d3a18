"""Notebooks through papermill, in a process of their own: `python -P ddpmlab/book/execute.py PARENT`.

It reads requests, a line of JSON each, and answers each with an exit code. It imports once what every page imports,
and each notebook's kernel is a fork of it: most of a short page's time was importing. Kernels talk over IPC sockets:
kernels that start side by side by TCP take each other's ports now and then.
"""

import asyncio
import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

sys.modules["rfc3987_syntax"] = None  # as in `ddpmlab.cli`

import papermill  # noqa: E402
from jupyter_client.provisioning import local_provisioner  # noqa: E402
from nbclient import NotebookClient  # noqa: E402
from papermill.exceptions import PapermillExecutionError  # noqa: E402
from traitlets.config import Config  # noqa: E402

PRELOADED = ("ipykernel.kernelapp", "matplotlib.pyplot", "pandas", "torch", "ddpmlab.lab", "ddpmlab.studies")
_BACKEND = "module://matplotlib_inline.backend_inline"  # as a kernel sets it, before anything imports matplotlib
_spawn = local_provisioner.launch_kernel
_answering: list[int] = []  # the descriptor that answers go to


def end_with(parent: int) -> None:
    """Interrupt this process, which ends its kernel, when the one that started it is gone.

    It heeds an interrupt from here on: what starts in the background of a shell ignores it, and so do its children.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


class Forked:
    """A child of this process, as `subprocess.Popen` shows it."""

    stdin = stdout = stderr = returncode = None

    def __init__(self, pid: int):
        self.pid = pid

    def poll(self) -> int | None:
        """Its exit code, negative for a signal, or None while it runs."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # it was not kept for us to ask, where SIGCHLD is ignored
                pid, status = self.pid, 0
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        """Its exit code, when it has one."""
        while self.poll() is None:
            time.sleep(0.05)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def fork_kernel(command: list[str], env: dict[str, str] | None = None, cwd: str | None = None, **options):
    """What jupyter_client starts kernels by: a Python kernel as a fork of this process, another as it would itself."""
    if "ipykernel_launcher" not in command:
        return _spawn(command, env=env, cwd=cwd, **options)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # here as well, as its group is asked for at once
        return Forked(pid)
    code = 1
    try:
        os.setpgid(0, 0)
        with open(os.devnull, "rb") as nothing:  # the pipes of requests and answers are the parent's
            os.dup2(nothing.fileno(), 0)
        for fd in _answering:
            os.close(fd)
        signal.set_wakeup_fd(-1)
        asyncio.set_event_loop(asyncio.new_event_loop())  # the parent's is in the midst of its run
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(env or {})
        if cwd:
            os.chdir(cwd)
        sys.path.insert(0, "")  # as a kernel that is started by itself has it
        sys.argv = [*command[command.index("ipykernel_launcher") :], f"--IPKernelApp.parent_handle={parent}"]
        from ipykernel.kernelapp import launch_new_instance

        launch_new_instance()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        _finish(code)


def _finish(code: int) -> None:
    """End a kernel as Python ends: what the notebook left open is closed, threads and handlers at exit are done."""
    from ipykernel.kernelapp import IPKernelApp

    for step in (
        lambda: IPKernelApp.instance().shell.user_ns.clear(),
        gc.collect,
        threading._shutdown,
        atexit._run_exitfuncs,
        sys.stdout.flush,
        sys.stderr.flush,
    ):
        with contextlib.suppress(Exception):
            step()
    os._exit(code)


def _clean_up_here_alone() -> None:
    """nbclient ends its kernel when the process exits; the kernel, a fork, must not do so to itself."""
    plain, owner = NotebookClient._cleanup_kernel, os.getpid()

    def clean_up(self):
        return plain(self) if os.getpid() == owner else None

    NotebookClient._cleanup_kernel = clean_up


def execute(job: str) -> int:
    """Execute the notebook that a job file describes; 1 if it did not end well, which standard error tells."""
    described = json.loads(Path(job).read_text())
    transport = "tcp" if sys.platform == "win32" else "ipc"
    try:
        papermill.execute_notebook(
            described["template"],
            described["page"],
            parameters=described["parameters"],
            cwd=described["cwd"],
            kernel_name="python3",
            progress_bar=False,
            stderr_file=sys.stderr,
            store_widget_state=False,
            config=Config({"KernelManager": {"transport": transport}, "AsyncKernelManager": {"transport": transport}}),
        )
    except PapermillExecutionError as error:
        print(f"{error.ename}: {error.evalue}", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def serve() -> None:
    """Answer requests until there are no more: `{"job", "log", "cwd", "environment"}`, each with a line, its code."""
    answers, start = os.fdopen(os.dup(1), "w"), os.getcwd()
    _answering.append(answers.fileno())
    os.dup2(2, 1)
    _clean_up_here_alone()
    if sys.platform == "linux":
        os.environ.setdefault("MPLBACKEND", _BACKEND)
        for name in PRELOADED:
            importlib.import_module(name)
        gc.freeze()  # no collection in a kernel looks at what all share
        local_provisioner.launch_kernel = fork_kernel
    for line in sys.stdin:
        request = json.loads(line)
        with open(request["log"], "ab") as log:
            os.dup2(log.fileno(), 2)
            os.dup2(log.fileno(), 1)
        os.environ.update(request["environment"])
        os.chdir(request["cwd"])
        code = execute(request["job"])
        os.chdir(start)  # the other will go
        print(code, file=answers, flush=True)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    serve()
