"""Compiles `kernel.ts` into the WebAssembly that `engine.js` holds, inlined as base64.

`python -m ddpmlab.explorer.build_kernel` fetches the compiler, AssemblyScript, from the npm registry through `npx`;
only who changes the kernel needs it.
"""

import base64
import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
COMPILER = "assemblyscript@0.28.20"
OPTIONS = ("--runtime", "stub", "--noAssert", "-O3", "--converge", "--enable", "simd", "--use", "abort=")
_LINE = re.compile(r'const WASM =\s+"([^"]*)"; // of kernel.ts (\w+)')


def source_hash() -> str:
    """The first 16 digits of the SHA-256 of `kernel.ts`."""
    return hashlib.sha256((FOLDER / "kernel.ts").read_bytes()).hexdigest()[:16]


def compiled(offline: bool = False) -> bytes:
    """The module's bytes as the compiler makes them from `kernel.ts`.

    Args:
        offline: use the compiler only if npm has it already.

    Raises:
        RuntimeError: there is no compiler, or it refuses the source.
    """
    npx = shutil.which("npx")
    if npx is None:
        raise RuntimeError("npx is not installed; install Node.js")
    command = [npx, *(["--offline"] if offline else []), "--yes", "--package", COMPILER, "asc"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernel.wasm"
        shutil.copy(FOLDER / "kernel.ts", folder)  # a relative path, so that no folder's name gets into the bytes
        run = subprocess.run([*command, "kernel.ts", "-o", out, *OPTIONS], cwd=folder, capture_output=True, text=True)
        if run.returncode or not out.exists():
            raise RuntimeError(f"AssemblyScript did not compile kernel.ts:\n{run.stderr}")
        return out.read_bytes()


def inlined() -> tuple[bytes, str]:
    """The module's bytes as `engine.js` holds them, and the hash of the source they were made from."""
    text, source = _LINE.search((FOLDER / "engine.js").read_text()).groups()
    return base64.b64decode(text), source


if __name__ == "__main__":
    module, engine = compiled(), FOLDER / "engine.js"
    line = f'const WASM =\n    "{base64.b64encode(module).decode()}"; // of kernel.ts {source_hash()}'
    engine.write_text(_LINE.sub(line, engine.read_text(), count=1))
    print(f"{len(module):,} bytes of WebAssembly in {engine.name}")
