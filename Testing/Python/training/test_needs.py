"""What training finds of its needs in the Python that runs it."""

import sys

import monai

from conresnet_training.cli.needs import PACKAGES, report


def test_a_package_that_is_too_old_is_a_problem(monkeypatch):
    fine = report()
    assert fine["problems"] == {} and list(fine["packages"]) == list(PACKAGES)
    monkeypatch.setattr(monai, "__version__", "1.3.2")
    assert report()["problems"] == {"monai": "1.3.2 is too old"}


def test_what_a_removal_has_left_of_a_package_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "jinja2").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "jinja2", raising=False)
    assert report()["problems"]["Jinja2"] == "only parts of it are there"
