"""The report's own network: a ReLU behind the output layer too, with and without the time input."""

from collections.abc import Iterator

from torch import Tensor

from ddpmlab.denoisers import ExactDenoiser
from ddpmlab.lab import Run, Training, over_seeds, recipes
from ddpmlab.studies import HOMEWORK_LAWS, register
from ddpmlab.studies.diffusion_steps import BETAS

TIMES = {"time as an input": "scalar", "no time input": "none"}
OUTPUTS = {"ReLU behind the output": "relu", "linear output": None}
MODELS = ((64,), (64, 64), (64, 128, 128))


def network(time: str, output: str | None = "relu", hidden: tuple[int, ...] = MODELS[-1]) -> dict:
    """One of the report's models as its text has it: a ReLU after each layer, the last included."""
    return {"name": "mlp", "hidden": list(hidden), "time": time, "output_activation": output}


class NonNegative(ExactDenoiser):
    r"""The best denoiser of a law whose noise prediction cannot be negative: no network, no training.

    .. math:: \hat\varepsilon^+(x_t, t) = \max\bigl(0, E[\varepsilon \mid x_t]\bigr), \qquad
       D(x_t, t) = (x_t - \sigma_t\,\hat\varepsilon^+) / \alpha_t,

    in each coordinate: of all :math:`a \ge 0` this one has the smallest :math:`E[(a - \varepsilon)^2 \mid x_t]`. What a
    network with a ReLU behind its output tends to as it grows and is trained.
    """

    def forward(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """Best estimate `(n, *shape)` with a noise prediction that is nowhere negative."""
        alpha, sigma = self.scales(x_t, t)
        noise = (x_t - alpha * super().forward(x_t, t)) / sigma
        return (x_t - sigma * noise.clamp_min(0)) / alpha


@register
def own_network(
    steps: list[int],
    control_steps: list[int],
    pairs: list[tuple[float, float]],
    schedules: list[str],
    epochs: list[int],
    n_seeds: int,
    n_few_seeds: int,
) -> Iterator[Run]:
    """Tables 1, 3, 5, 7 and 8 with a noise prediction that cannot be negative, and table 5 without that.

    The first of `epochs` is how long all tables but the first are trained. Tables 5 and 8 with the time as an input
    have `n_seeds` seeds, everything else `n_few_seeds`.
    """
    usual, long = Training(epochs=epochs[0]), Training(epochs=max(epochs), keep_epochs=tuple(epochs))
    for law in HOMEWORK_LAWS:
        for title, time in TIMES.items():
            main, others = [], []

            def add(runs, name, config, step=None, title=title, output="ReLU behind the output", **factors):
                factors = {"input": title, "output": output} | factors
                suffix = title if output == "ReLU behind the output" else f"{title}, {output}"
                runs.append(Run(f"{name}, {suffix}", config, step, factors))

            def config(law=law, time=time, output="relu", hidden=MODELS[-1], training=usual, **changes):
                own = network(time, output, hidden)
                return recipes.homework(law, network=own, training=training, **changes)

            trained_long = config(training=long)
            for e in epochs:
                step = long.step_of(e, trained_long.data.n_train)
                add(others, f"epochs={e}", trained_long, step, table=1, epochs=e)
            for i, hidden in enumerate(MODELS, 1):
                add(others, f"model={i}", config(hidden=hidden), table=3, model=i)
            for n in steps:
                linear = {"name": "linear", "n_steps": n, **BETAS}
                add(main, f"T={n}", config(schedule=linear), table=5, T=n)
            for n in control_steps:
                linear = {"name": "linear", "n_steps": n, **BETAS}
                made = config(schedule=linear, output=None)
                add(others, f"T={n}", made, output="linear output", table=5, T=n)
            for name in schedules:
                made = config(schedule={"name": name}, metrics=("emd_128", "course_nll"))
                add(others, f"schedule={name}", made, table=7, schedule=name)
            for low, up in pairs if law == "sin_5_5" else ():
                linear = {"name": "linear", "lbeta": low, "ubeta": up}
                add(main, f"lbeta={low:g};ubeta={up:g}", config(schedule=linear), table=8, lbeta=low, ubeta=up)
            yield from over_seeds(main, range(n_seeds if time == "scalar" else n_few_seeds))
            yield from over_seeds(others, range(n_few_seeds))
