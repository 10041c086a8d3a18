"""What tests of killed and interrupted processes share, read from /proc."""

from pathlib import Path


def _stat(process):
    return (Path("/proc") / str(process) / "stat").read_text().rsplit(")", 1)[1].split()


def running(process):
    """Whether a process is there and not a zombie."""
    try:
        return _stat(process)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(process):
    """Process ids of a process's children."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int(_stat(path.name)[1]) == process:
                found.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
