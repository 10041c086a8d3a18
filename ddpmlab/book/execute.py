"""One notebook through papermill, in a process of its own: `python -m ddpmlab.book.execute job.json`.

Kernels talk over IPC sockets: kernels that start side by side by TCP take each other's ports now and then.
"""

import json
import os
import signal
import sys
from pathlib import Path

import papermill
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from ddpmlab.lab.runner import watch_parent


def main(job: str) -> int:
    """Execute the notebook that a job file describes; 1 if a cell raised."""
    described = json.loads(Path(job).read_text())
    watch_parent(lambda: os.killpg(0, signal.SIGINT))
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
