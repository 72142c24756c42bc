"""ConResNet (Zhang et al., IEEE TMI 2020, section III): shared encoder, segmentation decoder, residual decoder."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from conresnet.networks.blocks import GROUPS, PreActivatedConv, ResidualBlock, StandardizedConv3d, resize
from conresnet.networks.context_residual import AXES, ContextResidualModule, ModuleOutput
from conresnet.networks.outputs import TRAINING_OUTPUTS
from conresnet.residual import context_residual


class Encoder(nn.Module):
    """Five stages, nine residual blocks, down to 1/8; the last stage dilated by 2 (paper III-A).

    Returns the features at 1/1, 1/2, 1/4 of the input's size (w, 2w, 4w channels) and at 1/8 (8w channels), w the
    base width, 32 in the paper.
    """

    def __init__(self, input_channels: int, width: int):
        super().__init__()
        self.stage1 = nn.Sequential(StandardizedConv3d(input_channels, width), ResidualBlock(width))
        self.stage2 = self._halving_stage(width)
        self.stage3 = self._halving_stage(2 * width)
        self.stage4 = self._halving_stage(4 * width)
        self.stage5 = nn.Sequential(ResidualBlock(8 * width, dilation=2), ResidualBlock(8 * width, dilation=2))

    @staticmethod
    def _halving_stage(width: int) -> nn.Sequential:
        return nn.Sequential(
            PreActivatedConv(width, 2 * width, stride=2), ResidualBlock(2 * width), ResidualBlock(2 * width)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        full = self.stage1(x)
        half = self.stage2(full)
        quarter = self.stage3(half)
        return full, half, quarter, self.stage5(self.stage4(quarter))


class ConResNet(nn.Module):
    """3-D context residual network.

    Parameters that act, with 4 input channels, 3 outputs and base width 32: 19,018,732; the baseline (both mappings
    off) 18,783,715, the paper's 18.8 M. The authors' file holds 19,441,196 numbers, because each of their context
    residual modules also carries tensors that never act: a second residual convolution (166 thousand in all), and
    input projections for the places where the module does not stand. With the projections but without the second
    convolution it is 19.27 M, which the paper's Table VII gives as 19.3 M.

    Args:
        input_channels: images a case has (T1, T1c, ...).
        outputs: segmentation channels: one a region (sigmoid), or background and labels (softmax).
        residual_outputs: residual channels, one a segment. Defaults to ``outputs``; with labels the background has
            none (paper V-D), so it is ``outputs - 1``.
        base_width: channels of the first stage, a multiple of 8. Defaults to the paper's 32.
        residual_axis: "S", "H" or "W", the axis across which residuals are taken (paper V-C).
        residual_mapping: context residual mapping (eqs 4, 5).
        attention_mapping: context attention mapping (eq. 6); needs residual mapping. Both off: the paper's baseline.
        dropout: share of channels dropped before the last encoder convolution while training.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        input_channels: int,
        outputs: int,
        residual_outputs: int | None = None,
        base_width: int = 32,
        residual_axis: str = "S",
        residual_mapping: bool = True,
        attention_mapping: bool = True,
        dropout: float = 0.1,
    ):
        super().__init__()
        residual_outputs = outputs if residual_outputs is None else residual_outputs
        if input_channels < 1 or outputs < 1 or residual_outputs < 1:
            raise ValueError("ConResNet needs at least one input channel, one output and one residual output.")
        if base_width < GROUPS or base_width % GROUPS:
            raise ValueError(f"base_width must be a multiple of {GROUPS}, not {base_width}.")
        if residual_axis not in AXES:
            raise ValueError(f"residual_axis must be one of {', '.join(AXES)}, not {residual_axis!r}.")
        if attention_mapping and not residual_mapping:
            raise ValueError("attention_mapping weighs by the residual path and so needs residual_mapping.")
        width, axis = base_width, AXES[residual_axis]
        self.input_channels = input_channels
        self.axis = axis
        self.provides = {"segmentation", "features"}
        if residual_mapping:
            self.provides |= {"residuals", "residual"}
        if attention_mapping:
            self.provides |= {"attention"}

        self.encoder = Encoder(input_channels, width)
        self.bottleneck = PreActivatedConv(8 * width, 4 * width, dropout=dropout)
        switches = {"axis": axis, "mapping": residual_mapping, "attention": attention_mapping}
        self.decoder_quarter = ContextResidualModule(4 * width, 2 * width, input_channels, first=True, **switches)
        self.decoder_half = ContextResidualModule(2 * width, width, 2 * width, first=False, **switches)
        self.decoder_full = ContextResidualModule(width, width, width, first=False, **switches)
        self.segmentation_head = nn.Conv3d(width, outputs, 1)
        if residual_mapping:
            self.residual_head_full = nn.Conv3d(width, residual_outputs, 1)
            self.residual_head_half = nn.Conv3d(width, residual_outputs, 1)
            self.residual_head_quarter = nn.Conv3d(2 * width, residual_outputs, 1)

    def forward(self, x: Tensor, wanted: Collection[str] = TRAINING_OUTPUTS) -> dict[str, Tensor | list[Tensor]]:
        """Compute what is wanted, and of the heads nothing else.

        Args:
            x: (batch, channel, S, H, W) of any size; multiples of 8 lose nothing to rounding.
            wanted: any of "segmentation" (batch, outputs, S, H, W); "residuals", three (batch, residual_outputs, S, H,
                W), finest first, for deep supervision (eq. 9); "residual", the finest alone; "attention"
                (batch, 1, S, H, W), the mean over channels of sigmoid(O_res) of the last module; "features"
                (batch, 2, S, H, W), the sum over channels of the last module before and after attention (Fig. 6).
                What the network does not provide (``provides``) is left out.

        Returns:
            dict of logits (attention: weights in 0..1) under the wanted names.
        """
        full, half, quarter, deepest = self.encoder(x)
        image_residual = resize(context_residual(x, self.axis), quarter.shape[2:]) if self._maps_residuals else None
        coarse = self.decoder_quarter(self.bottleneck(deepest), quarter, image_residual)
        middle = self.decoder_half(coarse.segmentation, half, coarse.residual)
        fine = self.decoder_full(middle.segmentation, full, middle.residual)
        compute = {
            "segmentation": lambda: self.segmentation_head(fine.segmentation),
            "residual": lambda: self.residual_head_full(fine.residual),
            "residuals": lambda: self._residuals(coarse, middle, fine, x.shape[2:]),
            "attention": lambda: torch.sigmoid(fine.residual).mean(dim=1, keepdim=True),
            "features": lambda: torch.stack([fine.before_attention.sum(dim=1), fine.segmentation.sum(dim=1)], dim=1),
        }
        return {name: compute[name]() for name in compute if name in wanted and name in self.provides}

    @property
    def _maps_residuals(self) -> bool:
        return "residual" in self.provides

    def _residuals(self, coarse: ModuleOutput, middle: ModuleOutput, fine: ModuleOutput, size: torch.Size):
        return [
            self.residual_head_full(fine.residual),
            resize(self.residual_head_half(middle.residual), size),
            resize(self.residual_head_quarter(coarse.residual), size),
        ]
