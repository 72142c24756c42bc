"""The context residual module, which joins a segmentation decoder to a residual decoder (paper III-C, Fig. 2b)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from conresnet.networks.blocks import PreActivatedConv, StandardizedConv3d, resize
from conresnet.residual import context_residual

AXES = {"S": 2, "H": 3, "W": 4}
"""Tensor dimension of each name a residual axis may have."""


class ModuleOutput(NamedTuple):
    """What one context residual module gives; all (batch, channels, S', H', W')."""

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

    Where the paper's text and what its authors trained differ, the latter is built: the text has each Conv as
    convolution, norm, ReLU; trained was norm, ReLU, convolution. The inner Conv of eq. 5 is a bare 1x1x1 convolution.
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
