"""The report's own network: a ReLU behind the output layer too, with and without the time input."""

from collections.abc import Iterator

from ddpmlab.lab import Run, Training, over_seeds, recipes
from ddpmlab.studies import HOMEWORK_LAWS, register
from ddpmlab.studies.diffusion_steps import BETAS

TIMES = {"time as an input": "scalar", "no time input": "none"}


def network(time: str, output: str | None = "relu", hidden: tuple[int, ...] = (64, 128, 128)) -> dict:
    """Model 3 as the report's text has it: a ReLU after each layer, the last included."""
    return {"name": "mlp", "hidden": list(hidden), "time": time, "output_activation": output}


@register
def own_network(
    steps: list[int], pairs: list[tuple[float, float]], epochs: int, n_seeds: int, without_time: bool = True
) -> Iterator[Run]:
    """Tables 5 (T) and 8 (lbeta, ubeta) with a noise prediction that cannot be negative."""
    training = Training(epochs=epochs)
    for law in HOMEWORK_LAWS:
        runs = []
        for title, time in TIMES.items():
            if time == "none" and not without_time:
                continue
            for n in steps:
                linear = {"name": "linear", "n_steps": n, **BETAS}
                config = recipes.homework(law, schedule=linear, network=network(time), training=training)
                factors = {"table": 5, "T": n, "input": title}
                runs.append(Run(f"T={n}, {title}", config, None, factors))
            for low, up in pairs if law == "sin_5_5" else ():
                linear = {"name": "linear", "lbeta": low, "ubeta": up}
                config = recipes.homework(law, schedule=linear, network=network(time), training=training)
                factors = {"table": 8, "lbeta": low, "ubeta": up, "input": title}
                runs.append(Run(f"lbeta={low:g};ubeta={up:g}, {title}", config, None, factors))
        yield from over_seeds(runs, range(n_seeds))
