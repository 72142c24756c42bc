"""ConResNet (Zhang et al., IEEE TMI 2020, section III): shared encoder, segmentation decoder, residual decoder."""

from collections.abc import Callable, Collection, Sequence

from torch import Tensor, nn

from conresnet.networks import pyramid, register_network, resdsn, voxresnet
from conresnet.networks.blocks import TRAINING_OUTPUTS, PreActivatedConv, ResidualBlock, StandardizedConv3d, check_sizes
from conresnet.networks.context_residual import ContextResidualDecoder


class Encoder(nn.Module):
    """Five stages, nine residual blocks, down to 1/8; the last stage dilated by 2 (paper III-A).

    Attributes:
        channels: of the features at 1/1, 1/2, 1/4 and 1/8 of the input's size: w, 2w, 4w, 8w, where w is the base
            width, 32 in the paper.
    """

    def __init__(self, input_channels: int, width: int):
        super().__init__()
        self.channels = (width, 2 * width, 4 * width, 8 * width)
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

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features, finest first; odd sides are rounded up when halved."""
        full = self.stage1(x)
        half = self.stage2(full)
        quarter = self.stage3(half)
        return [full, half, quarter, self.stage5(self.stage4(quarter))]


BACKBONES: dict[str, Callable[[int, int, str], nn.Module]] = {
    "residual": lambda input_channels, width, norm: Encoder(input_channels, width),
    "voxresnet": voxresnet.Trunk,
    "resdsn": resdsn.Encoder,
    "unet": pyramid.AnalysisPath,
}
"""Makers of the encoders that the decoder works on, from (input channels, base width, norm)."""


@register_network(
    "conresnet",
    provides={"features": True, "residual": "residual_mapping", "attention": "attention_mapping"},
    plans={
        "conresnet": {
            "title": "ConResNet",
            "sentence": "Also learns where neighboring slices differ, which makes outlines more consistent from slice "
            "to slice.",
            "arguments": {"norm": "group"},
        },
        "conresnet-baseline": {
            "title": "ConResNet, baseline",
            "sentence": "ConResNet without context residuals, to see what they add.",
            "arguments": {"norm": "group", "residual_mapping": False, "attention_mapping": False},
        },
        "conresnet-voxresnet": {
            "title": "ConResNet on VoxResNet",
            "sentence": "ConResNet's decoder on the encoder of VoxResNet.",
            "arguments": {"backbone": "voxresnet"},
        },
        "conresnet-resdsn": {
            "title": "ConResNet on ResDSN",
            "sentence": "ConResNet's decoder on the encoder of ResDSN.",
            "arguments": {"backbone": "resdsn"},
        },
        "conresnet-unet": {
            "title": "ConResNet on 3D U-Net",
            "sentence": "ConResNet's decoder on the encoder of the 3D U-Net.",
            "arguments": {"backbone": "unet"},
        },
    },
)
class ConResNet(ContextResidualDecoder):
    """3-D context residual network.

    Parameters in use with 4 input channels, 3 outputs and base width 32: 19,018,732; the baseline (both mappings off)
    has 18,783,715, the paper's 18.8 M. The authors' file holds 19,441,196 numbers, because each of their context
    residual modules also carries tensors that are never used: a second residual convolution (166 thousand in all), and
    input projections for other positions of the module. With the projections but without the second convolution it is
    19.27 M, which the paper's Table VII gives as 19.3 M.

    The paper clips CT to [-100, 240] HU and maps that range to [0, 1]. That is an intensity step of the model, not a
    part of the network; plans take the range from the data (see ``conresnet_training.planning.survey``).

    It extends its decoder by an encoder, instead of holding both, so that weights keep their names.

    Args:
        input_channels: images per case (T1, T1c, ...).
        outputs: see ``ContextResidualDecoder``.
        residual_outputs: see ``ContextResidualDecoder``.
        base_width: channels of the first stage, a multiple of 8. Defaults to the paper's 32.
        residual_axis: see ``ContextResidualDecoder``.
        residual_mapping: see ``ContextResidualDecoder``.
        attention_mapping: see ``ContextResidualDecoder``.
        dropout: share of channels dropped before the last encoder convolution while training.
        backbone: the encoder: "residual", the paper's own, or that of "voxresnet", "resdsn" or "unet".
        norm: of the other papers' backbones: "group", as everywhere else in ConResNet, or "batch", as in those papers.
        pairs: see ``ContextResidualDecoder``.

    Raises:
        ValueError: an argument is out of range.
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
        backbone: str = "residual",
        norm: str = "group",
        pairs: Sequence[Sequence[int]] = (),
    ):
        check_sizes(input_channels, outputs, base_width)
        if backbone not in BACKBONES:
            raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, not {backbone!r}.")
        if backbone == "residual" and norm != "group":
            raise ValueError(f"The backbone 'residual' has group norm; norm must not be {norm!r}.")
        encoder = BACKBONES[backbone](input_channels, base_width, norm)
        super().__init__(
            encoder.channels,
            input_channels,
            outputs,
            residual_outputs,
            residual_axis,
            residual_mapping,
            attention_mapping,
            dropout,
            pairs,
        )
        self.encoder = encoder

    def forward(self, x: Tensor, wanted: Collection[str] = TRAINING_OUTPUTS) -> dict[str, Tensor | list[Tensor]]:
        """The wanted outputs for x (batch, channel, S, H, W) of any size, see ``ContextResidualDecoder.forward``.

        Sides that are multiples of 8 are not rounded.
        """
        return super().forward(self.encoder(x), x, wanted)
