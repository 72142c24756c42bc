"""ConResNet (Zhang et al., IEEE TMI 2021, section III): the context residual, the decoder around it, and the encoder.

One definition of the residual serves images, labels and features. Context residual modules join a segmentation decoder
to a residual decoder (Fig. 2b). The decoder works on the features of any 3D network, and other networks may take it.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conresnet.networks import pyramid, register_network, resdsn, voxresnet
from conresnet.networks.blocks import (
    GROUPS,
    TRAINING_OUTPUTS,
    PreActivatedConv,
    ResidualBlock,
    StandardizedConv3d,
    check_sizes,
    resize,
)


def context_residual(values, axis: int):
    """Absolute difference of adjacent slices (eq. 4 without its sigmoid; eq. 13 for label masks).

    The first slice has no predecessor and is 0, which "pads the first slice" of the paper and keeps the shape.

    Args:
        values: numpy array or torch tensor of any shape and type; unsigned integers do not wrap around.
        axis: the dimension that runs across slices.

    Returns:
        The same kind, shape and type as ``values``; differentiable for tensors.
    """
    later = (slice(None),) * (axis % values.ndim) + (slice(1, None),)
    earlier = (slice(None),) * (axis % values.ndim) + (slice(None, -1),)
    if isinstance(values, np.ndarray):
        residual = np.zeros_like(values)
        residual[later] = np.maximum(values[later], values[earlier])
        residual[later] -= np.minimum(values[later], values[earlier])
        return residual
    first = torch.zeros_like(values.narrow(axis, 0, 1))
    return torch.cat([first, (values[later] - values[earlier]).abs()], dim=axis)


AXES = {"S": 2, "H": 3, "W": 4}
"""Tensor dimension of each name a residual axis may have."""


class ModuleOutput(NamedTuple):
    """The outputs of one context residual module; all (batch, channels, S', H', W')."""

    segmentation: Tensor
    """O_seg of eq. 6, or F of eq. 3 where attention is off."""
    residual: Tensor | None
    """O_res of eq. 5, or None where residual mapping is off."""
    before_attention: Tensor
    """F of eq. 3."""


class ContextResidualModule(nn.Module):
    """Refine the fused features, map their inter-slice residual, and gate them by it.

    Eq. 3: ``F = Conv(I_seg + I_skip)``; eq. 4: ``G = |sigmoid(F)[s+1] - sigmoid(F)[s]|``;
    eq. 5: ``O_res = Conv(Conv(G) + I_res)``; eq. 6: ``O_seg = F * (1 + sigmoid(O_res))``.

    Where the paper's text differs from what its authors trained, this is what they trained: the text has each Conv as
    convolution, norm, ReLU; they trained norm, ReLU, convolution. The inner Conv of eq. 5 is a bare 1x1x1 convolution.
    ``I_res`` of the first module is the image's own inter-slice residual, through a convolution without a norm.

    Args:
        inputs: channels of ``I_seg`` and ``I_skip``.
        outputs: channels of ``O_seg`` and ``O_res``.
        residual_inputs: channels of ``I_res``.
        first: whether ``I_res`` is the image's residual rather than a previous module's features.
        axis: tensor dimension of the residual (2, 3 or 4).
        mapping: build the residual path (eqs 4, 5).
        attention: gate the segmentation path by it (eq. 6).
    """

    def __init__(
        self, inputs: int, outputs: int, residual_inputs: int, *, first: bool, axis: int, mapping: bool, attention: bool
    ):
        super().__init__()
        self.axis = axis
        self.attention = attention
        self.segmentation = PreActivatedConv(inputs, outputs)
        self.mapping = mapping
        if mapping:
            self.residual_projection = StandardizedConv3d(outputs, outputs, kernel_size=1)
            self.residual = PreActivatedConv(outputs, outputs)
            if first:
                self.residual_input = StandardizedConv3d(residual_inputs, outputs)
            elif residual_inputs != outputs:
                self.residual_input = PreActivatedConv(residual_inputs, outputs)
            else:
                self.residual_input = nn.Identity()

    def forward(self, features: Tensor, skip: Tensor, previous_residual: Tensor | None) -> ModuleOutput:
        size = skip.shape[2:]
        fused = self.segmentation(resize(features, size) + skip)
        if not self.mapping:
            return ModuleOutput(fused, None, fused)
        residual = self.residual_projection(context_residual(torch.sigmoid(fused), self.axis))
        residual = self.residual(residual.add_(self.residual_input(resize(previous_residual, size))))
        gated = torch.addcmul(fused, fused, torch.sigmoid(residual)) if self.attention else fused
        return ModuleOutput(gated, residual, fused)


class PairedOutputs(nn.Module):
    """Logits of left and right segments from one logit per pair and one for the side.

    With z_k the logit of structure k on either side, and s that of "left", the pair's logits are
    ``z_k + log sigmoid(s)`` and ``z_k + log sigmoid(-s)``. Their softmax is p(k) p(side), so that the cross entropy is
    the sum of those of the structure and of the side: structures are learned from both sides at once, and the side,
    which is one decision for all of them, is learned from every voxel of a pair.

    Args:
        outputs: logits that come out, background included.
        pairs: [left, right] places among them; each place at most once.

    Attributes:
        inputs: channels it takes: one per pair and per unpaired output, in the order of the outputs (a pair where its
            first output is), then that of the side.

    Raises:
        ValueError: a place that is repeated, is the background, or does not exist.
    """

    def __init__(self, outputs: int, pairs: Sequence[Sequence[int]]):
        super().__init__()
        places = [place for pair in pairs for place in pair]
        if any(len(pair) != 2 for pair in pairs) or len(set(places)) != len(places):
            raise ValueError(f"pairs must be [left, right] outputs, each output at most once, not {pairs!r}.")
        if not all(isinstance(place, int) and 0 < place < outputs for place in places):
            raise ValueError(f"pairs must name outputs from 1 to {outputs - 1}, not {pairs!r}.")
        partner = {place: min(pair) for pair in pairs for place in pair}
        sources = sorted({partner.get(place, place) for place in range(outputs)})
        sides = {place: sign for pair in pairs for place, sign in zip(pair, (1.0, -1.0), strict=True)}
        self.inputs = len(sources) + 1
        # Plain lists: buffers would be averaged along with the weights.
        self._taken = [sources.index(partner.get(place, place)) for place in range(outputs)]
        self._left, self._right = ([float(sides.get(p, 0) == sign) for p in range(outputs)] for sign in (1, -1))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, outputs, S, H, W) logits from (batch, inputs, S, H, W)."""
        side = x[:, -1:]
        left, right = (x.new_tensor(places).view(1, -1, 1, 1, 1) for places in (self._left, self._right))
        # In place, because these are the largest tensors of all.
        return x[:, self._taken].addcmul_(left, F.logsigmoid(side)).addcmul_(right, F.logsigmoid(-side))


SCALES = ("full", "half", "quarter", "eighth", "sixteenth")
"""Names of the decoder's parts by the features they work at, finest first."""


class ContextResidualDecoder(nn.Module):
    """Segmentation and context residual decoders side by side, joined by context residual modules.

    The deepest features go through a convolution. Then each of the other features, coarsest first, is fused with them
    in a context residual module, which also passes the residual path on to the next one. The segmentation comes from
    the last module, residuals come from every module (deep supervision, eq. 9).

    Args:
        channels: of the features, finest first: two to six multiples of 8.
        residual_outputs: residual channels, one per segment, or 1 for all segments together. Defaults to ``outputs``;
            with labels the background has none (paper V-D), so it is ``outputs - 1``.
        residual_axis: "S", "H" or "W", the axis across which residuals are taken (paper V-C).
        residual_mapping: context residual mapping (eqs 4, 5).
        attention_mapping: context attention mapping (eq. 6); needs residual mapping. Both off: the paper's baseline.
        dropout: share of the deepest features' channels dropped while training, below 1.
        pairs: [left, right] outputs (0 is the background) that share one channel of the head, see ``PairedOutputs``.
    """

    stages = 1

    def __init__(
        self,
        channels: Sequence[int],
        input_channels: int,
        outputs: int,
        residual_outputs: int | None = None,
        residual_axis: str = "S",
        residual_mapping: bool = True,
        attention_mapping: bool = True,
        dropout: float = 0.1,
        pairs: Sequence[Sequence[int]] = (),
    ):
        super().__init__()
        residual_outputs = outputs if residual_outputs is None else residual_outputs
        if input_channels < 1 or outputs < 1 or residual_outputs < 1:
            raise ValueError("ConResNet needs at least one input channel, one output and one residual output.")
        if residual_axis not in AXES:
            raise ValueError(f"residual_axis must be one of {', '.join(AXES)}, not {residual_axis!r}.")
        if attention_mapping and not residual_mapping:
            raise ValueError("attention_mapping weighs by the residual path and so needs residual_mapping.")
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a share of at least 0 and below 1, not {dropout!r}.")
        *skips, deepest = channels
        if not 1 <= len(skips) <= len(SCALES) or any(count % GROUPS for count in channels):
            raise ValueError(f"channels must be 2 to {len(SCALES) + 1} multiples of {GROUPS}, not {tuple(channels)}.")
        self.input_channels = input_channels
        self.residual_outputs = residual_outputs
        self.axis = AXES[residual_axis]
        self.provides = {"segmentation", "features"}
        if residual_mapping:
            self.provides |= {"residuals", "residual"}
        if attention_mapping:
            self.provides |= {"attention"}

        self._scales = SCALES[: len(skips)]
        module_outputs = [skips[0], *skips[:-1]]
        paths = {"axis": self.axis, "mapping": residual_mapping, "attention": attention_mapping}
        self.bottleneck = PreActivatedConv(deepest, skips[-1], dropout=dropout)
        for level in reversed(range(len(skips))):
            first = level == len(skips) - 1
            residual_inputs = input_channels if first else skips[level]
            module = ContextResidualModule(skips[level], module_outputs[level], residual_inputs, first=first, **paths)
            self.add_module(f"decoder_{self._scales[level]}", module)
        self.paired_outputs = PairedOutputs(outputs, pairs) if pairs else nn.Identity()
        self.segmentation_head = nn.Conv3d(skips[0], getattr(self.paired_outputs, "inputs", outputs), 1)
        if residual_mapping:
            for scale, count in zip(self._scales, module_outputs, strict=True):
                self.add_module(f"residual_head_{scale}", nn.Conv3d(count, residual_outputs, 1))

    def forward(
        self, features: Sequence[Tensor], image: Tensor, wanted: Collection[str] = TRAINING_OUTPUTS
    ) -> dict[str, Tensor | list[Tensor]]:
        """Compute the wanted outputs, and no other heads.

        Args:
            features: of ``image``, finest first, (batch, channels, S', H', W') of any sizes.
            image: (batch, channel, S, H, W).
            wanted: any of "segmentation" (batch, outputs, S, H, W); "residuals", (batch, residual_outputs, S, H, W)
                from every module, finest first, for deep supervision (eq. 9); "residual", the finest alone;
                "attention" (batch, 1, S, H, W), the mean over channels of sigmoid(O_res) of the last module;
                "features" (batch, 2, S, H, W), the sum over channels of the last module before and after attention
                (Fig. 6). Outputs that it does not have (``provides``) are left out.

        Returns:
            dict of logits (attention: weights in 0..1) under the wanted names.
        """
        modules, size = self._outputs_of_modules(features, image), image.shape[2:]
        fine = modules[0]
        compute = {
            "segmentation": lambda: self.paired_outputs(self.segmentation_head(fine.segmentation)),
            "residual": lambda: self.residual_head_full(fine.residual),
            "attention": lambda: torch.sigmoid(fine.residual).mean(dim=1, keepdim=True),
            "features": lambda: torch.stack([fine.before_attention.sum(dim=1), fine.segmentation.sum(dim=1)], dim=1),
        }
        given = set(wanted) & self.provides
        outputs = {name: resize(compute[name](), size) for name in compute if name in given}
        if "residuals" in given:
            heads = (getattr(self, f"residual_head_{scale}") for scale in self._scales)
            outputs["residuals"] = [
                resize(head(module.residual), size) for head, module in zip(heads, modules, strict=True)
            ]
        return outputs

    def _outputs_of_modules(self, features: Sequence[Tensor], image: Tensor) -> list[ModuleOutput]:
        """The outputs of all context residual modules, finest first."""
        *skips, deepest = features
        x, residual = self.bottleneck(deepest), None
        if "residual" in self.provides:
            residual = resize(context_residual(image, self.axis), skips[-1].shape[2:])
        outputs: list[ModuleOutput] = []
        for scale, skip in zip(reversed(self._scales), reversed(skips), strict=True):
            outputs.insert(0, getattr(self, f"decoder_{scale}")(x, skip, residual))
            x, residual = outputs[0].segmentation, outputs[0].residual
        return outputs


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
            "sentence": "Also learns where neighboring slices differ, and gives residual and attention maps.",
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
    """3D context residual network.

    Parameters in use with 4 input channels, 3 outputs and base width 32: 19,018,732; the baseline (both mappings off)
    has 18,783,715, the paper's 18.8 M. The authors' file holds 19,441,196 numbers, because each of their context
    residual modules also carries tensors that are never used: a second residual convolution (166 thousand in all), and
    input projections for other positions of the module. With the projections but without the second convolution it is
    19.27 M, which the paper's Table VII gives as 19.3 M.

    The paper clips CT to [-100, 240] HU and maps that range to [0, 1]. That is an intensity step of the model, not a
    part of the network; plans take the range from the data (see ``conresnet_training.planning.survey``).

    It extends its decoder by an encoder, instead of holding both, so that weights keep their names.

    Args:
        backbone: the encoder: "residual", the paper's own, or that of "voxresnet", "resdsn" or "unet".
        norm: of the other papers' backbones: "group", as everywhere else in ConResNet, or "batch", as in those papers.

    All other arguments: see ``ContextResidualDecoder``.
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
            residual_outputs=residual_outputs,
            residual_axis=residual_axis,
            residual_mapping=residual_mapping,
            attention_mapping=attention_mapping,
            dropout=dropout,
            pairs=pairs,
        )
        self.encoder = encoder

    def forward(self, x: Tensor, wanted: Collection[str] = TRAINING_OUTPUTS) -> dict[str, Tensor | list[Tensor]]:
        """The wanted outputs for x (batch, channel, S, H, W) of any size, see ``ContextResidualDecoder.forward``.

        Sides that are multiples of 8 are not rounded.
        """
        return super().forward(self.encoder(x), x, wanted)
