"""Slicer's own Python layer in place of the stand-ins, by ``SLICER_PY``; tried here with a layer of a few lines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slicer_host import slicer_python

PROBE = """
from slicer_host import start_application
start_application()
import ctk, slicer
from slicer.i18n import tr
print(tr("x"), slicer.parameterNodeWrapper.MARK, slicer.util.MARK, slicer.ScriptedLoadableModule.MARK)
try:
    ctk.ctkUnheardOfButton()
except AttributeError as error:
    print(error)
"""


def made_layer(folder: Path) -> Path:
    """A folder with a ``slicer`` package that has the files that are taken from it."""
    package = folder / "slicer"
    (package / "parameterNodeWrapper").mkdir(parents=True)
    connector = "import ctk\n\n\ndef connect(widget: ctk.ctkUnheardOfButton): ...\n\n\nMARK = 'wrapper'\n"
    (package / "parameterNodeWrapper" / "__init__.py").write_text(connector)
    (package / "i18n.py").write_text("def tr(text):\n    return 'translated ' + text\n")
    (package / "ScriptedLoadableModule.py").write_text("MARK = 'module'\n")
    return folder


def test_slicers_own_files_are_taken_where_the_variable_names_them(tmp_path: Path, repository: Path) -> None:
    layer = made_layer(tmp_path)
    (layer / "slicer" / "util.py").write_text("MARK = 'util'\n")
    environment = os.environ | {"SLICER_PY": str(layer), "PYTHONPATH": str(repository / "Testing" / "SlicerHost")}
    ended = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=300)
    lines = ended.stdout.splitlines()
    assert lines == ["translated x wrapper util module", "The stand-in application has no ctkUnheardOfButton."], ended


def test_a_folder_without_slicers_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLICER_PY", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="SLICER_PY"):
        slicer_python.folder()


def test_without_the_variable_the_stand_ins_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLICER_PY", raising=False)
    assert slicer_python.folder() is None
