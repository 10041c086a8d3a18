"""What tests of killed and interrupted processes share, read from /proc and from checkpoints."""

import json
import struct
import time
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


def wait_for(there, seconds=600):
    """What `there` gives as soon as it is true, or at the end of the patience."""
    deadline = time.monotonic() + seconds
    while not (found := there()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def checkpointed(store):
    """The step of the training whose checkpoint lies in a store's folder; 0 if there is none."""
    for path in (store / "checkpoints").glob("[!.]*.safetensors"):
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            continue
        (size,) = struct.unpack("<Q", raw[:8])
        return int(json.loads(raw[8 : 8 + size])["__metadata__"]["step"])
    return 0
