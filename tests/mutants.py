"""Wrong versions of `ddpmlab.training`, each a one-line change, and a check that the tests notice every one.

    python tests/mutants.py [words]

Each mutant is a copy of the package with one line changed, in which the quick tests of training run until the first
failure. One that survives is printed and makes the exit status 1. Words pick the mutants whose names hold them.
"""

import io
import os
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("test_training.py", "test_ema.py")
SLOW = "killed or loss_falls or trained_network"

# name: file below ddpmlab, what stands there once, what stands there instead
MUTANTS = {
    "no warm-up": ("training/options.py", "min(1.0, step / self.warmup)", "1.0"),
    "cosine a step late": ("training/options.py", "math.pi * step / self", "math.pi * (step - 1) / self"),
    "inverse root from a quarter": ("training/options.py", "self.n_steps / 8", "self.n_steps / 4"),
    "rate never set": ("training/loop.py", "        if anneal:", "        if False:"),
    "no clipping": ("training/loop.py", "if options.grad_clip is not None:", "if False:"),
    "clipping by value": ("training/loop.py", "clip_grad_norm_", "clip_grad_value_"),
    "clipping before backward": (
        "training/loop.py",
        "        loss.backward()\n        if options.grad_clip is not None:\n"
        "            nn.utils.clip_grad_norm_(weights, options.grad_clip)\n",
        "        if options.grad_clip is not None:\n"
        "            nn.utils.clip_grad_norm_(weights, options.grad_clip)\n        loss.backward()\n",
    ),
    "gradients add up": ("training/loop.py", "            weight.grad = None\n", "            pass\n"),
    "no weight decay": ("training/loop.py", 'if options.optimiser == "adamw" else {}', "if False else {}"),
    "Adam for AdamW": ("training/options.py", '"adamw": torch.optim.AdamW', '"adamw": torch.optim.Adam'),
    "one weighting for all": (
        "training/loop.py",
        "table = denoiser.levels(every, options.weighting)",
        'table = denoiser.levels(every, "simple")',
    ),
    "weighting squared": ("denoisers.py", "return error * weight[0] if", "return error * weight[0] ** 2 if"),
    "no last time": ("schedules.py", "torch.randint(1, self.t_max + 1", "torch.randint(1, self.t_max"),
    "no first time": ("schedules.py", "torch.randint(1, self.t_max + 1", "torch.randint(2, self.t_max + 1"),
    "table shifted": ("training/loop.py", "t.long() - 1", "(t.long() - 2).clamp(min=0)"),
    "no strata": ("training/draws.py", "quantiles.add(torch.arange(n, device=self.device)) / n", "quantiles"),
    "log-normal without its mean": ("training/draws.py", "(mean + sd * torch", "(sd * torch"),
    "no shuffling": (
        "training/draws.py",
        "torch.randperm(len(self.points), generator=self.generator, device=self.device)",
        "torch.arange(len(self.points))",
    ),
    "points drawn with replacement": (
        "training/draws.py",
        "torch.randperm(len(self.points), generator",
        "torch.randint(len(self.points), (len(self.points),), generator",
    ),
    "the epoch's rest is lost": (
        "training/draws.py",
        "self.left = torch.cat([self.left, epoch])",
        "self.left = epoch.repeat(self.options.batch_size)",
    ),
    "labels of other points": ("training/draws.py", "label = self.labels[batch]", "label = self.labels[batch.flip(0)]"),
    "labels dropped the wrong way": (
        "training/draws.py",
        "self._uniform() < self.options.label_dropout",
        "self._uniform() > self.options.label_dropout",
    ),
    "dropped labels become class 0": ("training/draws.py", "label_dropout, self.n_classes)", "label_dropout, 0)"),
    "labels dropped a batch at a time": (
        "training/draws.py",
        "masked_fill(self._uniform() <",
        "masked_fill(self._uniform()[:1] <",
    ),
    "every class mirrored": ("training/draws.py", "flipped = self._mirrored[batch] &", "flipped ="),
    "always mirrored": ("training/draws.py", "(self._uniform() < 0.5)", "(self._uniform() < 1.5)"),
    "upside down": ("training/draws.py", "x0.flip(-1)", "x0.flip(-2)"),
    "averages of the wrong share": ("training/ema.py", "1 - beta)", "beta)"),
    "averages a step late": ("training/ema.py", "(1 - 1 / step) **", "(1 - 1 / (step + 1)) **"),
    "averages are the weights": (
        "training/loop.py",
        "{**state, **_copy(average.weights)}",
        "{**_copy(average.weights), **state}",
    ),
    "averages without buffers": ("training/loop.py", "{**state, **_copy(average.weights)}", "_copy(average.weights)"),
    "averages before the step": (
        "training/loop.py",
        "        optimiser.step()\n        for average in run.averages:\n            average.update(averaged, step)\n",
        "        for average in run.averages:\n            average.update(averaged, step)\n        optimiser.step()\n",
    ),
    "kept weights go on changing": ("training/loop.py", 'to("cpu", copy=True)', 'to("cpu")'),
    "training mode at the end": ("training/loop.py", "            denoiser.eval()", "            pass"),
    "no training mode": ("training/loop.py", "            denoiser.train()", "            denoiser.eval()"),
    "weights drawn anew": (
        "training/loop.py",
        "        torch.manual_seed(seed + _DROPOUT_SEED)\n",
        "        torch.manual_seed(seed + _DROPOUT_SEED)\n        for m in network.modules():\n"
        '            getattr(m, "reset_parameters", lambda: None)()\n',
    ),
    "dropout from the caller's generator": (
        "training/loop.py",
        "        torch.manual_seed(seed + _DROPOUT_SEED)\n",
        "",
    ),
    "losses not reset": ("training/loop.py", "            run.running.zero_()\n", ""),
    "losses over a hundred always": ("training/loop.py", "((step - 1) % LOG_EVERY + 1)", "LOG_EVERY"),
    "bf16 ignored": ("training/loop.py", 'half if options.precision == "bf16" else nullcontext()', "nullcontext()"),
    "divergence unnoticed": ("training/loop.py", "if not math.isfinite(mean_loss):", "if False:"),
    "weights may be infinite": ("training/loop.py", "if not all(w.isfinite().all() for w in state.values()):", "if 0:"),
    "resumes with other draws": ("training/checkpoint.py", "        self.draws.generator.set_state(draws)\n", ""),
    "resumes with another epoch": ("training/checkpoint.py", "self.draws.left = left.to(self.draws.device)", "pass"),
    "resumes with other dropout": ("training/checkpoint.py", "        torch.set_rng_state(cpu)\n", ""),
    "resumes without momentum": ("training/checkpoint.py", "        self.optimiser.load_state_dict(optimiser)\n", ""),
    "resumes without averages": ("training/checkpoint.py", "            average.load(found)\n", "            pass\n"),
    "resumes without part of a loss": ("training/checkpoint.py", "        self.running.copy_(running)\n", ""),
    "resumes without running statistics": (
        "training/checkpoint.py",
        "        self.network.load_state_dict(network)\n",
        "        for k, w in self.network.named_parameters():\n            w.data.copy_(network[k])\n",
    ),
    "identity without seed": ("training/checkpoint.py", '        "seed": str(seed),\n', ""),
    "identity without schedule": ("training/checkpoint.py", "short(_scales(denoiser.schedule))", '""'),
    "identity without parameterisation": (
        "training/checkpoint.py",
        '        "parameterisation": denoiser.parameterisation,\n',
        "",
    ),
    "identity without network": ("training/checkpoint.py", '        "network": short(f"{denoiser!r}\\n{code}"),\n', ""),
    "identity without code": ("training/checkpoint.py", '{denoiser!r}\\n{code}"', '{denoiser!r}"'),
    "identity without first weights": (
        "training/checkpoint.py",
        '        "initial weights": _digest(denoiser.network.state_dict().values()),\n',
        "",
    ),
    "identity without points": ("training/checkpoint.py", '        "points": _digest([points]),\n', ""),
    "identity without labels": ("training/checkpoint.py", '_digest([] if labels is None else [labels])', '""'),
    "identity without options": ("training/checkpoint.py", "options.effective().items()", "()"),
    "checksum not read": ("training/checkpoint.py", 'if header.get("checksum") != _digest(', 'if 0 and _digest('),
}  # fmt: skip


def survives(name: str) -> bool:
    """Whether the tests pass on a mutant; run in a child process."""
    file, old, new = MUTANTS[name]
    with tempfile.TemporaryDirectory() as folder:
        for part in ("ddpmlab", "tests"):
            shutil.copytree(ROOT / part, Path(folder, part), ignore=shutil.ignore_patterns("__pycache__"))
        path = Path(folder, "ddpmlab", file)
        text = path.read_text()
        if text.count(old) != 1:
            sys.exit(f"mutant {name!r}: {old!r} stands {text.count(old)} times in {file}")
        path.write_text(text.replace(old, new))
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            sys.path[:] = [folder, *(p for p in sys.path if p != str(ROOT))]
            import pytest

            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                tests = [f"{folder}/tests/{test}" for test in TESTS]
                status = pytest.main(["-x", "-q", "-n0", "-pno:cacheprovider", f"-knot ({SLOW})", *tests])
            os._exit(int(status))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def main() -> None:
    import pydantic.dataclasses  # noqa: F401  what the children share, the package itself not
    import scipy.stats  # noqa: F401
    import torch

    torch.set_num_threads(1)
    names = [name for name in MUTANTS if not sys.argv[1:] or any(word in name for word in sys.argv[1:])]
    alive = []
    for name in names:
        alive += [name] if survives(name) else []
        print(f"{'ALIVE' if name in alive else 'dead '} {name}", flush=True)
    print(f"{len(names) - len(alive)} of {len(names)} mutants die")
    sys.exit(bool(alive))


if __name__ == "__main__":
    main()
