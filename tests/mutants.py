"""Wrong versions of `ddpmlab.training`, each a change of one line, and a check that the tests notice every one.

    python tests/mutants.py [words]

In a child process the module with the change takes the place of the right one, and the tests that should notice run
until the first failure. A mutant that survives is printed and makes the exit status 1. Words pick the mutants whose
names hold them.
"""

import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = [str(ROOT / "tests" / name) for name in ("test_training.py", "test_ema.py")]
PACKAGE = ("training", "denoisers", "schedules", "samplers")  # what a child imports anew

# which tests (as pytest's -k): name: (file below ddpmlab, what stands there once, what stands there instead)
MUTANTS = {
    "rate_at": {
        "no warm-up": ("training/options.py", "min(1.0, step / self.warmup)", "1.0"),
        "cosine a step late": ("training/options.py", "math.pi * step / self", "math.pi * (step - 1) / self"),
        "inverse root from a quarter": ("training/options.py", "self.n_steps / 8", "self.n_steps / 4"),
    },
    "eight_steps": {
        "rate never set": ("training/loop.py", "        if anneal:", "        if False:"),
        "no clipping": ("training/loop.py", "if options.grad_clip is not None:", "if False:"),
        "clipping by value": ("training/loop.py", "clip_grad_norm_", "clip_grad_value_"),
        "clipping before backward": (
            "training/loop.py",
            "        loss.backward()\n"
            "        if options.grad_clip is not None:\n"
            "            nn.utils.clip_grad_norm_(weights, options.grad_clip)\n",
            "        if options.grad_clip is not None:\n"
            "            nn.utils.clip_grad_norm_(weights, options.grad_clip)\n"
            "        loss.backward()\n",
        ),
        "gradients add up": ("training/loop.py", "            weight.grad = None\n", "            pass\n"),
        "no weight decay": ("training/options.py", "weight_decay=self.weight_decay", "weight_decay=0.0"),
        "Adam for AdamW": ("training/options.py", "torch.optim.AdamW(", "torch.optim.Adam("),
        "one weighting for all": (
            "training/loop.py",
            "table = denoiser.levels(every, options.weighting)",
            'table = denoiser.levels(every, "simple")',
        ),
        "weighting squared": ("denoisers.py", "return error * weight[0] if", "return error * weight[0] ** 2 if"),
        "table shifted": ("training/loop.py", "t.long() - 1", "(t.long() - 2).clamp(min=0)"),
        "kept weights go on changing": ("training/loop.py", 'to("cpu", copy=True)', 'to("cpu")'),
    },
    "times_are_uniform": {
        "no last time": ("schedules.py", "torch.randint(1, self.t_max + 1", "torch.randint(1, self.t_max"),
        "no first time": ("schedules.py", "torch.randint(1, self.t_max + 1", "torch.randint(2, self.t_max + 1"),
    },
    "log_normal_noise": {
        "no strata": ("training/draws.py", "quantiles.add(torch.arange(n, device=self.device)) / n", "quantiles"),
        "log-normal without its mean": ("training/draws.py", "(mean + sd * torch", "(sd * torch"),
    },
    "once_an_epoch": {
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
    },
    "labels_stay": {
        "labels of other points": (
            "training/draws.py",
            "label = self.labels[batch]",
            "label = self.labels[batch.flip(0)]",
        ),
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
    },
    "mirrored": {
        "every class mirrored": ("training/draws.py", "flipped = self._mirrored[batch] &", "flipped ="),
        "always mirrored": ("training/draws.py", "(self._uniform() < 0.5)", "(self._uniform() < 1.5)"),
        "upside down": ("training/draws.py", "x0.flip(-1)", "x0.flip(-2)"),
    },
    "by_hand_and_buffers or power_profile": {
        "averages of the wrong share": ("training/ema.py", "1 - beta)", "beta)"),
        "averages a step late": ("training/ema.py", "(1 - 1 / step) **", "(1 - 1 / (step + 1)) **"),
        "averages are the weights": (
            "training/loop.py",
            "{**state, **_copy(average.weights)}",
            "{**_copy(average.weights), **state}",
        ),
        "averages without buffers": (
            "training/loop.py",
            "{**state, **_copy(average.weights)}",
            "_copy(average.weights)",
        ),
        "averages before the step": (
            "training/loop.py",
            "        for optimiser in run.optimisers:\n",
            "        for average in run.averages:\n"
            "            average.update(averaged, step)\n"
            "        for optimiser in run.optimisers:\n",
        ),
    },
    "dropout_acts": {
        "training mode at the end": ("training/loop.py", "            denoiser.eval()", "            pass"),
    },
    "times_are_uniform or dropout_acts": {
        "no training mode": ("training/loop.py", "            denoiser.train()", "            denoiser.eval()"),
    },
    "starts_from": {
        "weights drawn anew": (
            "training/loop.py",
            "        torch.manual_seed(seed + _DROPOUT_SEED)\n",
            "        torch.manual_seed(seed + _DROPOUT_SEED)\n"
            "        for m in network.modules():\n"
            '            getattr(m, "reset_parameters", lambda: None)()\n',
        ),
    },
    "global_random": {
        "dropout from the caller's generator": (
            "training/loop.py",
            "        torch.manual_seed(seed + _DROPOUT_SEED)\n",
            "",
        ),
    },
    "means_over": {
        "losses not reset": ("training/loop.py", "            run.running.zero_()\n", ""),
        "losses over a hundred always": ("training/loop.py", "((step - 1) % LOG_EVERY + 1)", "LOG_EVERY"),
    },
    "bf16": {
        "bf16 ignored": ("training/loop.py", 'half if options.precision == "bf16" else nullcontext()', "nullcontext()"),
    },
    "diverges": {
        "divergence unnoticed": ("training/loop.py", "if not math.isfinite(mean_loss):", "if False:"),
        "weights may be infinite": (
            "training/loop.py",
            "if not all(w.isfinite().all() for w in state.values()):",
            "if 0:",
        ),
    },
    "resumed_run": {
        "resumes with other draws": ("training/checkpoint.py", "        self.draws.generator.set_state(draws)\n", ""),
        "resumes with another epoch": (
            "training/checkpoint.py",
            "self.draws.left = left.to(self.draws.device)",
            "pass",
        ),
        "resumes with other dropout": ("training/checkpoint.py", "        torch.set_rng_state(cpu)\n", ""),
        "resumes without momentum": (
            "training/checkpoint.py",
            "            optimiser.load_state_dict(own)\n",
            "            pass\n",
        ),
        "resumes without averages": (
            "training/checkpoint.py",
            "            average.load(found)\n",
            "            pass\n",
        ),
        "resumes without part of a loss": ("training/checkpoint.py", "        self.running.copy_(running)\n", ""),
        "resumes without running statistics": (
            "training/checkpoint.py",
            "        self.network.load_state_dict(network)\n",
            "        for k, w in self.network.named_parameters():\n            w.data.copy_(network[k])\n",
        ),
    },
    "only_with_the_run": {
        "identity without seed": ("training/checkpoint.py", '        "seed": str(seed),\n', ""),
        "identity without schedule": ("training/checkpoint.py", "short(_scales(denoiser.schedule))", '""'),
        "identity without parameterisation": (
            "training/checkpoint.py",
            '        "parameterisation": denoiser.parameterisation,\n',
            "",
        ),
        "identity without network": (
            "training/checkpoint.py",
            '        "network": short(f"{denoiser!r}\\n{code}"),\n',
            "",
        ),
        "identity without first weights": (
            "training/checkpoint.py",
            '        "initial weights": _digest(denoiser.network.state_dict().values()),\n',
            "",
        ),
        "identity without points": ("training/checkpoint.py", '        "points": _digest([points]),\n', ""),
        "identity without options": ("training/checkpoint.py", "options.effective().items()", "()"),
    },
    "code_of_a_network": {
        "identity without code": ("training/checkpoint.py", '{denoiser!r}\\n{code}"', '{denoiser!r}"'),
        "identity without labels": ("training/checkpoint.py", "_digest([] if labels is None else [labels])", '""'),
    },
    "damaged": {
        "checksum not read": ("training/checkpoint.py", 'if header.get("checksum") != _digest(', "if 0 and _digest("),
    },
}


class Wrong(SourceFileLoader):
    """Loads a module with one text in place of another."""

    def __init__(self, fullname: str, path: str, old: str, new: str):
        super().__init__(fullname, path)
        self.old, self.new = old, new

    def path_stats(self, path):
        raise OSError("not from a cache of bytecode")

    def get_data(self, path):
        return super().get_data(path).decode().replace(self.old, self.new).encode()


class Finder:
    """Finds one module, the wrong one."""

    def __init__(self, file: str, old: str, new: str):
        self.fullname, self.path = "ddpmlab." + file[:-3].replace("/", "."), str(ROOT / "ddpmlab" / file)
        self.loader = Wrong(self.fullname, self.path, old, new)

    def find_spec(self, fullname, path=None, target=None):
        if fullname == self.fullname:
            return spec_from_file_location(fullname, self.path, loader=self.loader)
        return None


def survives(tests: str, file: str, old: str, new: str) -> bool:
    """Whether `tests` pass with `new` in place of `old`."""
    if (count := (ROOT / "ddpmlab" / file).read_text().count(old)) != 1:
        sys.exit(f"{old!r} stands {count} times in {file}")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            import pytest

            import ddpmlab

            anew = tuple(f"ddpmlab.{part}" for part in PACKAGE)
            for name in [name for name in sys.modules if name.startswith(anew)]:
                del sys.modules[name]
            for part in PACKAGE:
                delattr(ddpmlab, part)
            sys.meta_path.insert(0, Finder(file, old, new))
            plain = ["-c", os.devnull, f"--rootdir={ROOT}", "--noconftest", "--assert=plain", "-pno:cacheprovider"]
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                status = pytest.main([*plain, "-x", "-q", "-n0", "-k", tests, *TESTS])
        finally:
            os._exit(int(status))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 1  # 1: a test failed; others: none ran


def main() -> None:
    sys.path.insert(0, str(ROOT))
    import pydantic.dataclasses  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch

    import ddpmlab.samplers  # noqa: F401  what the children share

    torch.set_num_threads(1)
    alive, tried = [], 0
    for tests, mutants in MUTANTS.items():
        for name, change in mutants.items():
            if sys.argv[1:] and not any(word in name for word in sys.argv[1:]):
                continue
            tried += 1
            alive += [name] if survives(tests, *change) else []
            print(f"{'ALIVE' if name in alive else 'dead '} {name}", flush=True)
    print(f"{tried - len(alive)} of {tried} mutants die")
    sys.exit(bool(alive) or not tried)


if __name__ == "__main__":
    main()
