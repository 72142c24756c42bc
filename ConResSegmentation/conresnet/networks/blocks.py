"""Blocks that the networks share, and how every network is made and called.

ConResNet's blocks: weight-standardized convolution, pre-activation, residual block. Those of the other papers: a plain
convolution with a choice of norm, an encoder with pooling. For all: resizing and cropping.

Every network is made with ``input_channels``, the images per case and their preprocessed copies, and ``outputs``: one
per region (sigmoid), or background and labels (softmax). Arguments that several networks have are ``base_width`` (w),
the channels of the first convolution, a multiple of 8; ``norm``, "batch" as in the papers or "group"; and
``exclusive``, whether the outputs are background and labels rather than regions. ValueError is raised for an argument
that is out of range.

Every network is called as ``network(x, wanted)`` with x (batch, channel, S, H, W) of any size, and returns a dict of
those outputs that are wanted and that it ``provides``:

- "segmentation": logits (batch, outputs, S, H, W).
- "auxiliary": a list of such logits for deep supervision; ``auxiliary_weights(progress)`` gives the weight of each
  one's loss at that share (0..1) of the training.
- "residuals", "residual", "attention", "features": the other outputs of a context residual decoder, see
  ``conresnet.networks.conresnet``.

In training, logits may be smaller than x along an axis. They then cover its center, and ``answered(size)`` gives how
many voxels of an x of that size they cover.

A network has ``input_channels`` and the number of ``stages`` it is trained in; one with more than one stage also has
``begin_stage(k)``. Its class may have ``plan_images(model)``, which changes what a planned ``model.json`` says of the
images and returns remarks (see ``conresnet.systems.System.plan_images``).
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 8
"""Groups of every group norm (paper III-A); channel counts are therefore multiples of eight."""

VARIANCE_EPSILON = 1e-12


class StandardizedConv3d(nn.Conv3d):
    """3D convolution whose filters have zero mean and unit variance [37], without bias, padded to keep the size.

    ``fold()`` writes the standardized filters into ``weight`` once, so that inference does not repeat it per window.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 3, stride: int = 1, dilation: int = 1):
        padding = dilation * (kernel_size - 1) // 2
        super().__init__(inputs, outputs, kernel_size, stride, padding, dilation, bias=False)
        self.folded = False

    def standardized_weight(self) -> Tensor:
        """The filters as they act: (outputs, inputs, k, k, k), each with unbiased variance 1."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3, 4), keepdim=True)
        return (self.weight - mean) * torch.rsqrt(variance + VARIANCE_EPSILON)

    @torch.no_grad()
    def fold(self) -> None:
        """Make ``weight`` the standardized filters; idempotent, and for inference only."""
        if not self.folded:
            self.weight.copy_(self.standardized_weight())
            self.folded = True

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.folded else self.standardized_weight()
        return F.conv3d(x, weight, None, self.stride, self.padding, self.dilation)


class NormActivation(nn.GroupNorm):
    """Group norm with eight groups, then ReLU: what stands before a convolution."""

    def __init__(self, channels: int):
        super().__init__(GROUPS, channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(super().forward(x))


class PreActivatedConv(nn.Module):
    """Norm, ReLU, 3x3x3 convolution; with ``dropout``, whole channels are dropped in between while training."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1, dropout: float = 0.0):
        super().__init__()
        self.norm = NormActivation(inputs)
        self.dropout = dropout
        self.conv = StandardizedConv3d(inputs, outputs, stride=stride, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.dropout and self.training:
            x = F.dropout3d(x, self.dropout)
        return self.conv(x)


class ResidualBlock(nn.Module):
    """Two pre-activated convolutions around an identity (paper III-A: nine of them make the encoder)."""

    def __init__(self, channels: int, dilation: int = 1):
        super().__init__()
        self.first = PreActivatedConv(channels, channels, dilation=dilation)
        self.second = PreActivatedConv(channels, channels, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)).add_(x)


NORMS = ("batch", "group")
"""Norms that the networks with plain convolutions can have."""


def norm_layer(norm: str, channels: int) -> nn.Module:
    """Batch norm, which those networks' papers have, or group norm with eight groups, which small batches need.

    Raises ValueError if ``norm`` is not one of `NORMS`.
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, not {norm!r}.")
    return nn.BatchNorm3d(channels) if norm == "batch" else nn.GroupNorm(GROUPS, channels)


class ConvNormActivation(nn.Module):
    """3x3x3 convolution, norm, ReLU.

    With ``residual`` the input is added before the ReLU, so the convolution must keep the number of channels.
    """

    def __init__(self, inputs: int, outputs: int, norm: str, residual: bool = False):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = norm_layer(norm, outputs)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return F.relu_(y.add_(x) if self.residual else y)


class PoolingEncoder(nn.ModuleList):
    """Levels, finest first, with a 2x2x2 max pooling of stride 2 in between; ``channels`` are what each one gives."""

    def __init__(self, levels: Iterable[nn.Module], channels: Sequence[int]):
        super().__init__(levels)
        self.channels = tuple(channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Every level's features, finest first; sides that are not even are rounded up."""
        features = []
        for level in self:
            x = level(F.max_pool3d(x, 2, ceil_mode=True) if features else x)
            features.append(x)
        return features


def check_sizes(input_channels: int, outputs: int, base_width: int) -> None:
    """Raise ValueError for constructor arguments that are out of range."""
    if input_channels < 1 or outputs < 1:
        raise ValueError("A network needs at least one input channel and one output.")
    if base_width < GROUPS or base_width % GROUPS:
        raise ValueError(f"base_width must be a multiple of {GROUPS}, not {base_width}.")


def crop(x: Tensor, size: torch.Size) -> Tensor:
    """The first ``size`` (S, H, W) voxels: doubling gives too many if halving rounded up."""
    return x[..., : size[0], : size[1], : size[2]]


def resize(x: Tensor, size: torch.Size) -> Tensor:
    """Trilinear interpolation to the spatial ``size`` (S, H, W), corners aligned."""
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size=size, mode="trilinear", align_corners=True)


def fold_weight_standardization(network: nn.Module) -> nn.Module:
    """Replace the filters of every standardized convolution by their standardized values, in place.

    The outputs stay the same to rounding (6e-6 of a probability). Returns the network.
    """
    for module in network.modules():
        if isinstance(module, StandardizedConv3d):
            module.fold()
    return network


TRAINING_OUTPUTS = ("segmentation", "auxiliary", "residuals")
"""The outputs that have losses."""


def segment_probabilities(logits: Tensor, exclusive: bool) -> Tensor:
    """Probabilities of the segments (batch, segments, S, H, W), without the background.

    Args:
        logits: (batch, outputs, S, H, W).
        exclusive: whether the outputs are background and labels (softmax) rather than regions (one sigmoid each).
    """
    return torch.softmax(logits, dim=1)[:, 1:] if exclusive else torch.sigmoid(logits)


def segment_count(outputs: int, exclusive: bool) -> int:
    """The number of segments for a number of outputs. Raises ValueError if there would be none."""
    if outputs <= exclusive:
        raise ValueError(f"outputs must be more than {int(exclusive)}, or there is no segment, not {outputs}.")
    return outputs - exclusive
