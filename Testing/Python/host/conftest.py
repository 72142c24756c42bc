"""The host's tests run in the stand-in application."""

from pytest_plugin import slicer_app, slicer_session

__all__ = ["slicer_app", "slicer_session"]
