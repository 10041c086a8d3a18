"""One training step of the networks for pictures: which width, precision and memory layout is worth its time.

    python benchmarks/unet_step.py [--threads 1] [--batch 128] [--rounds 5]

Loss, backward pass, clipping and a step of Adam on random pictures, all variants in turn, `rounds` times over: what
the machine does beside it strikes all of them. Medians: pictures a second of wall time, and of the processor's own.
"""

import argparse
import statistics
import time

import torch

from ddpmlab import networks, schedules
from ddpmlab.denoisers import Denoiser

VARIANTS = {
    "48-96": {"name": "unet"},
    "48-96 NCHW": {"name": "unet", "channels_last": False},
    "48-96 bf16": {"name": "unet", "bf16": True},
    "48-96 bf16 NCHW": {"name": "unet", "bf16": True, "channels_last": False},
    "48-96 4 groups": {"name": "unet", "n_groups": 4},
    "48-96 4 groups NCHW": {"name": "unet", "n_groups": 4, "channels_last": False},
    "48-96 4 groups bf16": {"name": "unet", "n_groups": 4, "bf16": True},
    "48-96 4 groups bf16 NCHW": {"name": "unet", "n_groups": 4, "bf16": True, "channels_last": False},
    "48-96 refine 16 bf16": {"name": "unet", "refine": 16, "bf16": True},
    "48-96 refine 16 bf16 NCHW": {"name": "unet", "refine": 16, "bf16": True, "channels_last": False},
    "48-96 attention none bf16": {"name": "unet", "attention": "none", "bf16": True},
    "48-96 one block bf16": {"name": "unet", "n_blocks": 1, "bf16": True},
    "48-96 one block refine bf16": {"name": "unet", "n_blocks": 1, "refine": 16, "bf16": True},
    "64-128 bf16": {"name": "unet", "widths": (64, 128), "bf16": True},
    "64-128 one block bf16": {"name": "unet", "widths": (64, 128), "n_blocks": 1, "bf16": True},
    "32-64 bf16": {"name": "unet", "widths": (32, 64), "bf16": True},
    "24-48 bf16": {"name": "unet", "widths": (24, 48), "bf16": True},
    "24-48 one block refine bf16": {"name": "unet", "widths": (24, 48), "n_blocks": 1, "refine": 16, "bf16": True},
    "transformer": {"name": "patch_transformer"},
    "transformer bf16": {"name": "patch_transformer", "bf16": True},
    "mlp 1024 x 3": {"name": "mlp", "hidden": (1024, 1024, 1024)},
    "mlp 1024 x 3 bf16": {"name": "mlp", "hidden": (1024, 1024, 1024), "bf16": True},
}


def build(options: dict, batch: int):
    """A function that makes one step, parameters in millions, MFLOP of one picture's forward pass."""
    options = dict(options)
    bf16, channels_last = options.pop("bf16", False), options.pop("channels_last", True)
    torch.manual_seed(0)
    network = networks.make(options.pop("name"), shape=(1, 28, 28), n_classes=10, **options)
    network.channels_last = channels_last
    denoiser, schedule = Denoiser(network, schedules.make("ve"), "edm"), schedules.make("ve")
    weights = list(network.parameters())
    adam = torch.optim.Adam(weights, lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)
    x0, label = torch.randn(batch, 1, 28, 28, generator=generator), torch.arange(batch) % 11

    def step():
        noise = torch.randn(x0.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = denoiser.loss(x0, schedule.random_times(batch, generator), noise, "edm", label).mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()

    return step, sum(w.numel() for w in weights) / 1e6, networks.flop(network) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="variants whose name holds one of these words")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = {
        name: build(options, arguments.batch)
        for name, options in VARIANTS.items()
        if not arguments.only or any(word in name for word in arguments.only)
    }
    wall, cpu = {name: [] for name in chosen}, {name: [] for name in chosen}
    for turn in range(arguments.rounds + 1):
        for name, (step, _, _) in chosen.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            step()
            if turn:  # the first is for warming up
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - start_cpu)
    print(f"torch {torch.__version__}, {arguments.threads} threads, batch {arguments.batch}, {arguments.rounds} rounds")
    print(f"{'variant':28} {'M params':>9} {'MFLOP':>7} {'/ s':>7} {'/ cpu s':>10} {'GFLOP/cpu s':>12}")
    for name, (_, parameters, flop) in chosen.items():
        rate, own = (arguments.batch / statistics.median(times[name]) for times in (wall, cpu))
        print(f"{name:28} {parameters:9.2f} {flop:7.0f} {rate:7.0f} {own:10.0f} {3 * flop * own / 1e3:12.0f}")


if __name__ == "__main__":
    main()
