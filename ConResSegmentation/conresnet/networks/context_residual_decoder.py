"""The decoder of ConResNet (paper III-A to III-D), which takes the features of any 3-D network."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from conresnet.networks.blocks import GROUPS, PreActivatedConv, resize
from conresnet.networks.context_residual import AXES, ContextResidualModule, ModuleOutput
from conresnet.networks.outputs import TRAINING_OUTPUTS
from conresnet.residual import context_residual

SCALES = ("full", "half", "quarter", "eighth", "sixteenth")
"""Names of the decoder's parts by the features they work at, finest first."""


class ContextResidualDecoder(nn.Module):
    """Segmentation and context residual decoders side by side, joined by context residual modules.

    The deepest features go through a convolution; then each of the other features, coarsest first, meets them in a
    context residual module, which also takes the residual path on to the next. Segmentation is read from the last
    module; residuals are read from every module (deep supervision, eq. 9).

    Args:
        channels: of the features, finest first: two to six multiples of 8.
        input_channels: images a case has.
        outputs: segmentation channels: one a region (sigmoid), or background and labels (softmax).
        residual_outputs: residual channels, one a segment. Defaults to ``outputs``; with labels the background has
            none (paper V-D), so it is ``outputs - 1``.
        residual_axis: "S", "H" or "W", the axis across which residuals are taken (paper V-C).
        residual_mapping: context residual mapping (eqs 4, 5).
        attention_mapping: context attention mapping (eq. 6); needs residual mapping. Both off: the paper's baseline.
        dropout: share of the deepest features' channels dropped while training, below 1.

    Raises:
        ValueError: an argument out of its range.
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
        switches = {"axis": self.axis, "mapping": residual_mapping, "attention": attention_mapping}
        self.bottleneck = PreActivatedConv(deepest, skips[-1], dropout=dropout)
        for level in reversed(range(len(skips))):
            first = level == len(skips) - 1
            residual_inputs = input_channels if first else skips[level]
            module = ContextResidualModule(
                skips[level], module_outputs[level], residual_inputs, first=first, **switches
            )
            self.add_module(f"decoder_{self._scales[level]}", module)
        self.segmentation_head = nn.Conv3d(skips[0], outputs, 1)
        if residual_mapping:
            for scale, count in zip(self._scales, module_outputs, strict=True):
                self.add_module(f"residual_head_{scale}", nn.Conv3d(count, residual_outputs, 1))

    def forward(
        self, features: Sequence[Tensor], image: Tensor, wanted: Collection[str] = TRAINING_OUTPUTS
    ) -> dict[str, Tensor | list[Tensor]]:
        """Compute what is wanted, and of the heads nothing else.

        Args:
            features: of ``image``, finest first, (batch, channels, S', H', W') of whatever sizes.
            image: (batch, channel, S, H, W).
            wanted: any of "segmentation" (batch, outputs, S, H, W); "residuals", (batch, residual_outputs, S, H, W)
                from every module, finest first, for deep supervision (eq. 9); "residual", the finest alone;
                "attention" (batch, 1, S, H, W), the mean over channels of sigmoid(O_res) of the last module;
                "features" (batch, 2, S, H, W), the sum over channels of the last module before and after attention
                (Fig. 6). What the decoder does not provide (``provides``) is left out.

        Returns:
            dict of logits (attention: weights in 0..1) under the wanted names.
        """
        modules, size = self._outputs_of_modules(features, image), image.shape[2:]
        fine = modules[0]
        compute = {
            "segmentation": lambda: self.segmentation_head(fine.segmentation),
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
        """What every context residual module gives, finest first."""
        *skips, deepest = features
        x, residual = self.bottleneck(deepest), None
        if "residual" in self.provides:
            residual = resize(context_residual(image, self.axis), skips[-1].shape[2:])
        outputs: list[ModuleOutput] = []
        for scale, skip in zip(reversed(self._scales), reversed(skips), strict=True):
            outputs.insert(0, getattr(self, f"decoder_{scale}")(x, skip, residual))
            x, residual = outputs[0].segmentation, outputs[0].residual
        return outputs
