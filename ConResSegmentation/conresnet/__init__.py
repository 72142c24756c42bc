"""ConResNet: inter-slice context residual learning for 3D medical image segmentation (Zhang et al., IEEE TMI 2021).

The public API is ``segment``, ``read_model`` and ``load_network``. Each is imported on first use, so that importing
this package loads neither torch nor SimpleITK: Slicer's own process uses parts of it where torch is not installed.
"""

__version__ = "0.2.0.dev0"

__all__ = ["load_network", "read_model", "segment"]

_HOMES = {"load_network": "systems.predictors", "read_model": "package.store", "segment": "api"}


def __getattr__(name: str):
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
