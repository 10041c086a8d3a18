"""One notebook through papermill, in a process of its own: `python -P ddpmlab/book/execute.py job.json`.

Kernels talk over IPC sockets: kernels that start side by side by TCP take each other's ports now and then. It is a
script and imports nothing of the package, which would import torch, for the kernel does that again.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.modules["rfc3987_syntax"] = None  # as in `ddpmlab.cli`

import papermill  # noqa: E402
from papermill.exceptions import PapermillExecutionError  # noqa: E402
from traitlets.config import Config  # noqa: E402


def end_with(parent: int) -> None:
    """Interrupt this process, which ends its kernel, when the one that started it is gone."""

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def main(job: str) -> int:
    """Execute the notebook that a job file describes; 1 if a cell raised."""
    described = json.loads(Path(job).read_text())
    end_with(described["parent"])
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
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
