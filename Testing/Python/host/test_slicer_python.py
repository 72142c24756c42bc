"""``SLICER_PY`` replaces the stand-ins with Slicer's own Python files; tested here with a few lines in their place."""

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


def make_layer(folder: Path) -> Path:
    """Create a folder with a ``slicer`` package that contains the files taken from it."""
    package = folder / "slicer"
    (package / "parameterNodeWrapper").mkdir(parents=True)
    connector = "import ctk\n\n\ndef connect(widget: ctk.ctkUnheardOfButton): ...\n\n\nMARK = 'wrapper'\n"
    (package / "parameterNodeWrapper" / "__init__.py").write_text(connector)
    (package / "i18n.py").write_text("def tr(text):\n    return 'translated ' + text\n")
    (package / "ScriptedLoadableModule.py").write_text("MARK = 'module'\n")
    return folder


def test_slicers_files_are_used_if_the_variable_is_set(tmp_path: Path, repository: Path) -> None:
    layer = make_layer(tmp_path)
    (layer / "slicer" / "util.py").write_text("MARK = 'util'\n")
    environment = os.environ | {"SLICER_PY": str(layer), "PYTHONPATH": str(repository / "Testing" / "SlicerHost")}
    process = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=300
    )
    lines = process.stdout.splitlines()
    assert lines == ["translated x wrapper util module", "The stand-in application has no ctkUnheardOfButton."], process


def test_folder_without_slicers_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLICER_PY", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="SLICER_PY"):
        slicer_python.folder()


def test_stand_ins_are_used_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLICER_PY", raising=False)
    assert slicer_python.folder() is None
