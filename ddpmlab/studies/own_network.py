"""The report's own network: a ReLU behind the output layer too, with and without the time input."""

from collections.abc import Iterator

import pandas as pd
from torch import Tensor

from ddpmlab import samplers
from ddpmlab import schedules as forward
from ddpmlab.data import make as make_law
from ddpmlab.denoisers import ExactDenoiser
from ddpmlab.lab import SCORES, Run, Training, over_seeds, recipes
from ddpmlab.schedules import DiscreteSchedule
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

    in each coordinate: of all :math:`a \ge 0` this one has the smallest :math:`E[(a - \varepsilon)^2 \mid x_t]`. No
    network with a ReLU behind its output has a smaller loss.
    """

    def forward(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """Best estimate `(n, *shape)` with a noise prediction that is nowhere negative."""
        alpha, sigma = self.scales(x_t, t)
        noise = (x_t - alpha * super().forward(x_t, t)) / sigma
        return (x_t - sigma * noise.clamp_min(0)) / alpha


def growth(chain: DiscreteSchedule) -> float:
    r"""By how much sampling multiplies what it is not asked to take off, :math:`1/\alpha_T`: a step's mean has the
    factor :math:`1/\sqrt{1 - \beta_t}` (Ho et al. 2020, eq. 11).
    """
    return 1 / float(chain(chain.t_max)[0])


def chains(steps: list[int], pairs: list, schedules: list[str]) -> dict[tuple[int, str], dict]:
    """The schedules of tables 5, 7 and 8 as (table, row) -> named part."""
    found = {(5, f"T={n}"): {"name": "linear", "n_steps": n, **BETAS} for n in steps}
    found |= {(7, f"schedule={name}"): {"name": name} for name in schedules}
    found |= {(8, f"lbeta={low:g};ubeta={up:g}"): {"name": "linear", "lbeta": low, "ubeta": up} for low, up in pairs}
    return found


def limits(law: str, steps: list[int], pairs: list, schedules: list[str], n: int, n_seeds: int) -> pd.DataFrame:
    """What samples of `NonNegative` read in tables 5, 7 and 8: columns `table, row, seed, value` (`emd_128`).

    Args:
        law, steps, pairs, schedules: as in the study.
        n: points of a sample.
        n_seeds: samples of each.
    """
    dataset, rows, score = make_law(law).standardised(), [], SCORES["emd_128"]
    test = dataset.split().test.double()
    for (table, row), part in chains(steps, pairs, schedules).items():
        denoiser = NonNegative(dataset, forward.SCHEDULES.build(part))
        for seed in range(n_seeds):
            points = samplers.make("ddpm").sample(denoiser, n, seed=seed).double()
            rows.append((table, row, seed, score.mean(points, test, seed)))
    return pd.DataFrame(rows, columns=["table", "row", "seed", "value"])


@register
def own_network(
    steps: list[int],
    control_steps: list[int],
    pairs: list[tuple[float, float]],
    schedules: list[str],
    epochs: list[int],
    n_seeds: int,
    n_samples: int = 5_000,
    nll: str = "course_nll",
) -> Iterator[Run]:
    """Tables 1, 3, 5, 7 and 8 with a noise prediction that cannot be negative; 1, 5 and 8 with a linear output too.

    Args:
        steps, pairs, schedules: rows of tables 5, 8 (on the surface) and 7.
        control_steps: rows of table 5 with a linear output and no time input.
        epochs: rows of table 1; all other tables are trained for the first.
        n_seeds: of every row and network.
        n_samples: points of every network.
        nll: the course's negative log-likelihood, at the size that is wanted.
    """
    usual, long = Training(epochs=epochs[0]), Training(epochs=max(epochs), keep_epochs=tuple(epochs))
    for title, time in TIMES.items():
        runs = []

        def add(table, row, law, output="relu", hidden=MODELS[-1], training=usual, step=None, **changes):
            own = network(time, output, hidden)  # noqa: B023
            config = recipes.homework(law, network=own, training=training, n_samples=n_samples, **changes)
            behind = next(name for name, value in OUTPUTS.items() if value == output)
            factors = {"table": table, "row": row, "input": title, "output": behind}  # noqa: B023
            runs.append(Run(f"table {table}: {row}, {title}, {behind}", config, step, factors))  # noqa: B023

        for law in HOMEWORK_LAWS:
            for (table, row), part in chains(steps, pairs if law == "sin_5_5" else [], schedules).items():
                if table == 7:
                    add(table, row, law, schedule=part, metrics=("emd_128", nll))
                else:
                    add(table, row, law, schedule=part)
                    if time == "scalar" or part.get("n_steps") in control_steps:
                        add(table, row, law, output=None, schedule=part)
            for i, hidden in enumerate(MODELS, 1):
                add(3, f"model={i}", law, hidden=hidden)
        for law in HOMEWORK_LAWS:
            n_points = recipes.homework(law).data.n_train
            for output in ("relu", None) if time == "scalar" else ("relu",):
                for e in epochs:
                    step = long.step_of(e, n_points)
                    add(1, f"epochs={e}", law, output=output, training=long, step=step)
        yield from over_seeds(runs, range(n_seeds))
