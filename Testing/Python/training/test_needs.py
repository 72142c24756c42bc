"""What training finds of its needs in the Python that runs it."""

import monai

from conresnet_training.needs import PACKAGES, report


def test_a_package_that_is_too_old_is_a_problem(monkeypatch):
    fine = report()
    assert fine["problems"] == {} and list(fine["packages"]) == list(PACKAGES)
    monkeypatch.setattr(monai, "__version__", "1.3.2")
    assert report()["problems"] == {"monai": "1.3.2 is too old"}
