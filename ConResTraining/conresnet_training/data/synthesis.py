"""Images synthesized from label maps (Billot et al., SynthSeg, Medical Image Analysis 86:102789, 2023).

A label map is bent and turned, and each label's voxels get intensities from a Gaussian with a random mean and
deviation, so that a network learns shapes and places instead of one contrast. A bias field, a gamma curve, blur, thick
slices and noise follow. Labels around the organ are left out of some images, as after skull stripping.

TorchIO has transforms for most of this. On one core, for a window of 144 x 144 x 112 voxels, its RandomLabelsToImage
(version 1.2.1) takes 3.4 s and its RandomElasticDeformation 14 s; a training step takes 3.4 s. Here the label map is
looked up once, at twice the model's resolution, and averaged, which takes 0.4 s and gives the partial volumes that real
images have at the borders of structures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from conresnet.errors import UserError
from conresnet.images import Volume
from conresnet.intensity import apply, measure, split_steps
from conresnet_training.data.label_maps import OVERSAMPLING, Tissues
from conresnet_training.planning.plan import Plan, Synthesis

# Random values of the whole image to which the model's intensity steps are fitted.
_MEASURED = 16_384
_BIAS_NODES = (2, 5)
_NARROWEST, _WIDEST = 0.01, 0.10


@dataclass(frozen=True)
class Look:
    """Random appearance of one channel of one image. The tensors have one number per place; place 0 is air."""

    means: Tensor
    deviations: Tensor
    gamma: float
    air_share: float


class Synthesizer:
    """Makes images of prepared label maps, as the model's intensity steps would leave them.

    Args:
        tissues: the values in the label maps.
        settings: how strongly the images vary.
        inputs: intensity steps of each channel of the model.
        spacing: mm (S, H, W) of the model's voxels.

    Raises:
        UserError: ``synthesis-filters`` if a channel's steps include filters, which need the whole image.
    """

    def __init__(
        self,
        tissues: Tissues,
        settings: Synthesis,
        inputs: Sequence[Sequence[dict[str, Any]]],
        spacing: Sequence[float],
    ):
        self.tissues, self.settings, self.spacing = tissues, settings, tuple(spacing)
        self.steps = []
        for steps in inputs:
            filters, others = split_steps(steps)
            if filters:
                raise UserError("synthesis-filters", step=filters[0]["step"])
            self.steps.append(others)
        groups = sorted(set(tissues.groups))
        # Air has a group of its own, the first.
        self._group = torch.tensor([0, *(groups.index(group) + 1 for group in tissues.groups)])
        self._groups = len(groups) + 1
        self._around = np.array([False, *(value in tissues.surroundings for value in tissues.values)])

    def whole(self, label: Volume, name: str) -> list[Volume]:
        """Channels on the grid of a whole label map, as a scanner might give them; the same for every call.

        They have the first of the contrasts that the data set describes, if any; nothing around the organ is left out.

        Args:
            label: places in ``tissues.values``, uint8.
            name: the case's, which seeds what is drawn.
        """
        random = np.random.default_rng(list(name.encode()))
        known = next(iter(self.tissues.contrasts), None)
        places = torch.from_numpy(np.ascontiguousarray(label.array)).int()
        channels = []
        for number in range(len(self.steps)):
            look = self._look(random, known)
            generator = torch.Generator().manual_seed(int(random.integers(2**62)))
            image = look.means[places]
            image += look.deviations[places] * torch.randn(image.shape, generator=generator)
            image = self._with_field(image.abs_() ** look.gamma, random, generator)
            image[places == 0] = 0.0
            channels.append(Volume(image.numpy(), label.grid, f"channel {number} synthesized from {label.name}"))
        return channels

    def image(self, values: Tensor, counts: np.ndarray, random: np.random.Generator) -> Tensor:
        """An image (channel, S, H, W) float32 of the model's voxels.

        Args:
            values: (2S, 2H, 2W) uint8, places in a prepared label map.
            counts: of the whole label map, voxels of each place, by which the intensity steps are fitted.
        """
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        kept = np.ones(len(self._around), bool)
        if random.random() < self.settings.stripped:
            kept = ~self._around
        # What is left out becomes air.
        lookup = torch.from_numpy(np.where(kept, np.arange(len(kept)), 0))
        counts = np.where(kept, counts[: len(kept)], 0)
        channels = []
        for steps in self.steps:
            look = self._look(random)
            channels.append(self._channel(values, lookup, look, counts, steps, random, generator))
        return torch.stack(channels)

    def _look(self, random: np.random.Generator, known: str | None = None) -> Look:
        settings, tissues = self.settings, self.tissues
        means = random.uniform(0, 1, self._groups)
        deviations = random.uniform(_NARROWEST, _WIDEST, self._groups)
        means, deviations = means[self._group.numpy()], deviations[self._group.numpy()]
        contrasts = tissues.contrasts
        if contrasts and (known is not None or random.random() < settings.known_contrasts):
            name = known or list(contrasts)[random.integers(len(contrasts))]
            apart = random.normal(0, settings.known_variation, self._groups)[self._group.numpy()]
            wider = random.uniform(0.5, 2.0, self._groups)[self._group.numpy()]
            for place, value in enumerate(tissues.values, start=1):
                if value in contrasts[name]:
                    mean, deviation = contrasts[name][value]
                    means[place], deviations[place] = mean + apart[place], deviation * wider[place]
        # Air is black, or has the noise of a magnitude image; then it counts as image, as much as there is of it.
        air_share = 0.0 if random.random() < 0.5 else random.uniform(0, 0.6)
        means[0], deviations[0] = 0.0, random.uniform(0.005, 0.04) if air_share else 0.0
        exponent = float(np.exp(random.normal(0, settings.gamma)))
        as_tensor = [torch.from_numpy(array.clip(0, None).astype(np.float32)) for array in (means, deviations)]
        return Look(*as_tensor, exponent, air_share)

    def _channel(
        self,
        values: Tensor,
        lookup: Tensor,
        look: Look,
        counts: np.ndarray,
        steps: Sequence[dict[str, Any]],
        random: np.random.Generator,
        generator: torch.Generator,
    ) -> Tensor:
        """A channel of ``image``; ``lookup`` has, for each place, the one whose intensities it gets."""
        settings = self.settings
        means, deviations = look.means[lookup], look.deviations[lookup]
        image = F.avg_pool3d(means[values.int()][None, None], OVERSAMPLING)[0, 0]
        some = values[::OVERSAMPLING, ::OVERSAMPLING, ::OVERSAMPLING].int()
        image += deviations[some] * torch.randn(image.shape, generator=generator)
        air = image == 0
        image = self._blurred(self._with_field(image.abs_() ** look.gamma, random, generator), random)
        if settings.noise:
            image += torch.randn(image.shape, generator=generator) * (settings.noise * random.random())
        image[air] = 0.0
        fitted = self._fitted(look, means, deviations, counts, steps, generator)
        image = torch.from_numpy(apply(fitted, image.numpy(), ~air.numpy()))
        scale = 1 + settings.normalization * random.uniform(-1, 1)
        return image * scale + 2 * settings.normalization * random.uniform(-1, 1)

    def _with_field(self, image: Tensor, random: np.random.Generator, generator: torch.Generator) -> Tensor:
        """(S, H, W) times a smooth field, as of a coil; changed in place."""
        if not self.settings.bias_field:
            return image
        nodes = torch.randn((1, 1, *random.integers(*_BIAS_NODES, 3, endpoint=True)), generator=generator)
        field = _resized(nodes * (self.settings.bias_field * random.random()), image.shape)
        return image.mul_(torch.exp(field))

    def _fitted(self, look: Look, means, deviations, counts, steps, generator) -> list[dict]:
        """The intensity steps, fitted to values as the whole image would have them."""
        shares = torch.from_numpy(counts.astype(np.float64))
        shares[0] = look.air_share / (1 - look.air_share) * shares[1:].sum()
        if not shares.sum():
            shares[0] = 1.0
        drawn = torch.multinomial(shares, _MEASURED, replacement=True, generator=generator)
        noise = torch.randn(_MEASURED, generator=generator)
        whole = (means[drawn] + deviations[drawn] * noise).abs() ** look.gamma
        return measure(steps, whole.numpy().reshape(1, 1, -1))

    def _blurred(self, image: Tensor, random: np.random.Generator) -> Tensor:
        """(S, H, W) as of thick slices or of a blurred acquisition."""
        settings = self.settings
        if random.random() < settings.thick_slices:
            axis = int(random.integers(3))
            thickness = random.uniform(self.spacing[axis], max(settings.thickest, self.spacing[axis]))
            size = list(image.shape)
            size[axis] = max(round(size[axis] * self.spacing[axis] / thickness), 1)
            coarse = F.interpolate(image[None, None], size, mode="area")
            return _resized(coarse, image.shape)
        sigma = settings.blur * random.random()
        if sigma < 0.25 or random.random() < 0.5:
            return image
        reach = int(np.ceil(3 * sigma))
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
        kernel /= kernel.sum()
        for axis in range(3):
            rows = image.movedim(axis, -1)
            padded = F.pad(rows.reshape(1, -1, rows.shape[-1]), (reach, reach), mode="replicate")
            rows = F.conv1d(padded.movedim(0, 1), kernel.view(1, 1, -1)).reshape(rows.shape)
            image = rows.movedim(-1, axis)
        return image.contiguous()


def synthesizer_of(plan: Plan, tissues: Tissues | None) -> Synthesizer | None:
    """What makes the plan's images of label maps; None where every case has images.

    Raises:
        UserError: ``synthesis-missing`` where the plan does not say how, ``synthesis-spacing``, ``synthesis-filters``.
    """
    if tissues is None:
        return None
    if plan.synthesis is None:
        raise UserError("synthesis-missing")
    if plan.model.preparation.spacing is None:
        raise UserError("synthesis-spacing")
    inputs = [steps for item in plan.model.inputs for steps in item.channels]
    return Synthesizer(tissues, plan.synthesis, inputs, plan.model.preparation.spacing)


def target_places(values: Tensor) -> Tensor:
    """(S, H, W) uint8: the most frequent place in each 2 x 2 x 2 block of voxels of (2S, 2H, 2W)."""
    step = OVERSAMPLING
    each = range(step)
    parts = [values[i::step, j::step, k::step].contiguous() for i in each for j in each for k in each]
    best, most = parts[0], torch.zeros_like(parts[0])
    for place, one in enumerate(parts[:-1]):
        # The first of several that are the same has all of their votes.
        votes = sum((one == other).to(torch.uint8) for other in parts[place + 1 :])
        best = torch.where(votes > most, one, best)
        most = torch.maximum(most, votes)
    return best


def _resized(coarse: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(coarse, tuple(size), mode="trilinear", align_corners=False)[0, 0]
