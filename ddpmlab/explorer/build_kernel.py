"""Compiles `kernel.ts` into the WebAssembly that `engine.js` holds, inlined as base64.

`python -m ddpmlab.explorer.build_kernel` fetches the compiler, AssemblyScript, from the npm registry through `npx`; only
who changes the kernel needs it.
"""

import base64
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
COMPILER = "assemblyscript@0.28.20"
OPTIONS = ("--runtime", "stub", "--noAssert", "-O3", "--converge", "--enable", "simd", "--use", "abort=")
_LINE = re.compile(r'(const WASM = ")[^"]*(";)')


def compiled(compiler: str | None = None) -> bytes:
    """The module's bytes as the compiler makes them from `kernel.ts`.

    Args:
        compiler: path of AssemblyScript's `asc`; fetched by `npx` if omitted.

    Raises:
        RuntimeError: there is no compiler, or it refuses the source.
    """
    npx = shutil.which("npx")
    if compiler is None and npx is None:
        raise RuntimeError("npx is not installed; install Node.js, or pass the path of AssemblyScript's asc")
    command = [compiler] if compiler else [npx, "--yes", "--package", COMPILER, "asc"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernel.wasm"
        shutil.copy(FOLDER / "kernel.ts", folder)  # a relative path, so that no folder's name gets into the bytes
        run = subprocess.run([*command, "kernel.ts", "-o", out, *OPTIONS], cwd=folder, capture_output=True, text=True)
        if run.returncode or not out.exists():
            raise RuntimeError(f"AssemblyScript refuses kernel.ts:\n{run.stderr}")
        return out.read_bytes()


def inlined() -> bytes:
    """The module's bytes as `engine.js` holds them."""
    return base64.b64decode(_LINE.search((FOLDER / "engine.js").read_text()).group(0).split('"')[1])


if __name__ == "__main__":
    module, engine = compiled(), FOLDER / "engine.js"
    text = base64.b64encode(module).decode()
    engine.write_text(_LINE.sub(lambda match: match[1] + text + match[2], engine.read_text(), count=1))
    print(f"{len(module):,} bytes of WebAssembly in {engine.name}")
