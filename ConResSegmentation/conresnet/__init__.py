"""ConResNet: inter-slice context residual learning for 3-D medical image segmentation (Zhang et al., IEEE TMI 2020).

Importing this package imports neither torch nor SimpleITK: Slicer's own process uses its package reader, protocol and
model list where torch is absent. ``load_network`` is resolved on first use for the same reason.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "load_network":
        from conresnet.networks.loading import load_network

        return load_network
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
