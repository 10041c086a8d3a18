"""What chance decides in training: minibatches, flips, noise, times and dropped labels, from one generator.

A step draws in this order: a permutation where an epoch begins, flips, noise, times, dropped labels. Flips and dropped
labels are drawn only where they are asked for.
"""

import torch
from torch import Tensor

from ddpmlab.schedules import Schedule
from ddpmlab.training.options import Options


class Draws:
    """The random stream of a run.

    Args:
        points: training points `(n, *shape)`, on the device of the generator.
        labels: their classes `(n,)`, if there are any.
        schedule: whose times are drawn.
        options: `batch_size`, `times`, `log_normal`, `shared_targets`, `flip` and `label_dropout` count.
        generator: of every draw.
        n_classes: of the network; the index that stands for "no class".
    """

    def __init__(
        self,
        points: Tensor,
        labels: Tensor | None,
        schedule: Schedule,
        options: Options,
        generator: torch.Generator,
        n_classes: int = 0,
    ):
        self.points, self.labels, self.schedule, self.options = points, labels, schedule, options
        self.generator, self.n_classes, self.device = generator, n_classes, generator.device
        self.left = torch.empty(0, dtype=torch.int64, device=self.device)
        """Indices of the epoch that are still to come."""
        self._mirrored = None
        if options.flip:
            self._mirrored = torch.isin(labels, torch.tensor(options.flip, device=self.device))  # (n,)

    def indices(self) -> Tensor:
        """The next minibatch, `(batch_size,)`: each epoch a fresh permutation, batches run across epochs."""
        while len(self.left) < self.options.batch_size:
            epoch = torch.randperm(len(self.points), generator=self.generator, device=self.device)
            self.left = torch.cat([self.left, epoch])
        batch, self.left = self.left[: self.options.batch_size], self.left[self.options.batch_size :]
        return batch

    def times(self) -> Tensor:
        """Times of a minibatch, `(batch_size,)` float64, see `Options`."""
        n, options = self.options.batch_size, self.options
        if options.times == "uniform":
            return self.schedule.random_times(n, self.generator)
        quantiles = self._uniform(torch.float64)
        if options.times == "log-normal":
            quantiles = quantiles.add(torch.arange(n, device=self.device)) / n
        mean, sd = options.log_normal
        return self.schedule.time_of((mean + sd * torch.special.ndtri(quantiles)).exp())

    def __call__(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Clean points (or their means, see `Options.shared_targets`) and noise `(batch_size, *shape)`, times and, of a
        conditional network, labels."""
        batch = self.indices()
        x0, label = self.points[batch], None
        if self._mirrored is not None:
            flipped = self._mirrored[batch] & (self._uniform() < 0.5)
            x0 = torch.where(flipped.reshape(-1, *[1] * (x0.ndim - 1)), x0.flip(-1), x0)
        noise = torch.randn(x0.shape, generator=self.generator, dtype=x0.dtype, device=self.device)
        times = self.times()
        if self.options.shared_targets > 1:
            x0, noise = self._shared(x0, noise, times)
        if self.labels is not None and self.n_classes:
            label = self.labels[batch]
            if self.options.label_dropout:
                label = label.masked_fill(self._uniform() < self.options.label_dropout, self.n_classes)
        return x0, noise, times, label

    def _shared(self, x0: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of each point's group given the noised point, and the noise that leaves that point as it is."""
        alpha, sigma = (scale.to(x0)[:, None] for scale in self.schedule(times, checked=False))  # (n, 1)
        clean = x0.flatten(1)
        noised = alpha * clean + sigma * noise.flatten(1)
        size = self.options.shared_targets
        groups, a, s = (part.unflatten(0, (-1, size)) for part in (clean, alpha, sigma))  # (groups, size, .)
        # |x_t - alpha x_i|/sigma; where no signal is left, alpha = 0, all weights are the same
        level = noised.unflatten(0, (-1, size)) / a.clamp(min=1e-6)
        gap = torch.cdist(level, groups, compute_mode="donot_use_mm_for_euclid_dist") * (a / s)
        weights = torch.softmax(-0.5 * gap.square(), 2)  # (groups, size, size)
        mean = (weights @ groups).flatten(0, 1)
        return mean.view_as(x0), ((noised - alpha * mean) / sigma).view_as(noise)

    def _uniform(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(self.options.batch_size, generator=self.generator, dtype=dtype, device=self.device)
