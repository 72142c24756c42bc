"""Imports go in one direction: Slicer modules, their Lib, a process boundary, conresnet_training, conresnet."""

from __future__ import annotations

import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from build.imports import Import, import_graph, imports_of, module_name

SLICER = {"slicer", "vtk", "vtkmodules", "qt", "ctk", "PySide6"}
TRAINING = {"monai", "lightning_fabric", "tensorboard", "conresnet_training"}

# Modules of the engine that Slicer's process uses, including everything they import.
CORE = [
    "conresnet",
    "conresnet.errors",
    "conresnet.images.preparation",
    "conresnet.images.geometry",
    "conresnet.images",
    "conresnet.images.files",
    "conresnet.intensity",
    "conresnet.package.store",
    "conresnet.package",
    "conresnet.worker",
    "conresnet.images.inputs",
    "conresnet.results",
]
# Libraries that only the processes of the engine and the training backend load, never Slicer's process.
HEAVY = {"torch", "safetensors", "click", "nibabel", "yaml", "pydantic", *TRAINING}
ENGINE = ["conresnet.__main__", "conresnet.networks", "conresnet.inference.segmentation", "conresnet.worker"]

# Modules that a Slicer module file may import when it is loaded: those of a fresh Slicer installation.
SLICER_MODULE_MAY_IMPORT = {*sys.stdlib_module_names, "slicer", "vtk", "qt", "ctk", "SimpleITK", "numpy"}


def sources(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def offending(root: Path, files: list[Path], is_wrong) -> list[str]:
    """``file:line name`` for each import below ``root`` for which ``is_wrong`` is true."""
    return [
        f"{path.relative_to(root)}:{entry.line} {entry.module}"
        for path in files
        for entry in imports_of(path, root)
        if is_wrong(entry)
    ]


@pytest.fixture(scope="module")
def segmentation(repository: Path) -> Path:
    return repository / "ConResSegmentation"


@pytest.fixture(scope="module")
def training(repository: Path) -> Path:
    return repository / "ConResTraining"


def run_blocked(modules: list[str], blocked: set[str], folder: Path) -> None:
    """Import ``modules`` in a new interpreter in which ``blocked`` cannot be imported."""
    code = "\n".join(
        [
            "import sys, importlib",
            "class Blocked:",
            "    def find_spec(self, name, path=None, target=None):",
            f"        if name.split('.')[0] in {sorted(blocked)!r}:",
            "            raise ImportError(name + ' is blocked')",
            "sys.meta_path.insert(0, Blocked())",
            f"for name in {modules!r}:",
            "    importlib.import_module(name)",
        ]
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=300
    )
    assert finished.returncode == 0, finished.stderr


def test_engine_imports_neither_slicer_nor_training_libraries(segmentation: Path) -> None:
    files = sources(segmentation / "conresnet")
    assert offending(segmentation, files, lambda entry: entry.top in SLICER | TRAINING) == []


def test_engine_does_not_import_slicer_modules(segmentation: Path) -> None:
    files = sources(segmentation / "conresnet")
    assert offending(segmentation, files, lambda entry: entry.top.startswith("ConRes")) == []


def test_training_backend_does_not_import_slicer(training: Path) -> None:
    files = sources(training / "conresnet_training")
    assert files
    assert offending(training, files, lambda entry: entry.top in SLICER or entry.top.startswith("ConRes")) == []


def slicer_files(module: Path) -> list[Path]:
    """Files of a module that Slicer's process loads."""
    return [*module.glob("*.py"), *sources(module / f"{module.name}Lib")]


@pytest.mark.parametrize("name", ["ConResSegmentation", "ConResTraining"])
def test_slicer_modules_import_only_libraries_of_a_fresh_slicer(repository: Path, name: str) -> None:
    # The training module depends on the segmentation module, never the reverse.
    training = {"conresnet_training", "ConResTrainingLib"} if name == "ConResTraining" else set()
    own_packages = {"conresnet", "ConResSegmentationLib", *training}

    def is_wrong(entry: Import) -> bool:
        return entry.at_file_level and entry.top not in own_packages and entry.top not in SLICER_MODULE_MAY_IMPORT

    files = slicer_files(repository / name)
    assert files
    assert offending(repository / name, files, is_wrong) == []


@pytest.mark.parametrize("name", ["ConResSegmentation", "ConResTraining"])
def test_slicer_modules_never_import_torch(repository: Path, name: str) -> None:
    """Not inside functions, either: torch is only used in the processes of the engine and of the training backend."""
    heavy = HEAVY - {"click", "conresnet_training"}
    files = slicer_files(repository / name)
    assert offending(repository / name, files, lambda entry: entry.top in heavy) == []


@pytest.mark.parametrize("name", ["ConResSegmentation", "ConResTraining"])
def test_packages_used_by_slicer_modules_need_no_torch(
    repository: Path, segmentation: Path, training: Path, tmp_path: Path, name: str
) -> None:
    own_packages = {module_name(path, segmentation) for path in sources(segmentation / "conresnet")}
    own_packages |= {module_name(path, training) for path in sources(training / "conresnet_training")}
    taken = set()
    for path in slicer_files(repository / name):
        for entry in imports_of(path, repository / name):
            taken |= own_packages & {entry.module, f"{entry.module}.{entry.name}"}
    assert taken
    run_blocked(sorted(taken), HEAVY - {"conresnet_training"}, tmp_path)


def test_there_are_no_circular_imports(segmentation: Path, training: Path) -> None:
    graph = import_graph([segmentation, training])
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("circular import: " + " <- ".join(error.args[1]))


def test_processes_that_make_samples_or_start_folds_load_no_lightning(training: Path) -> None:
    """Each of a training's sample processes would take seconds longer to start, and need more memory."""
    graph, taken = import_graph([training]), set()
    left = [f"conresnet_training.{name}" for name in ("data.samples", "runs.cross_validation", "training.stopping")]
    assert graph.keys() >= set(left)
    while left:
        taken.add(module := left.pop())
        left += graph[module] - taken
    files = [path for path in sources(training) if module_name(path, training) in taken]
    assert offending(training, files, lambda entry: entry.at_file_level and entry.top == "lightning_fabric") == []


def test_core_can_be_imported_without_torch(tmp_path: Path) -> None:
    run_blocked(CORE, {"torch", "nibabel", *SLICER, *TRAINING}, tmp_path)


def test_engine_can_be_imported_without_slicer_and_training_libraries(tmp_path: Path) -> None:
    run_blocked(ENGINE, {"nibabel", "scipy", *SLICER, *TRAINING}, tmp_path)


def test_importing_the_package_loads_no_large_libraries(tmp_path: Path) -> None:
    run_blocked(["conresnet"], {"torch", "numpy", "SimpleITK", "click"}, tmp_path)


def test_module_names_are_unique(repository: Path, segmentation: Path, training: Path) -> None:
    """When installed, all modules of all extensions share one folder, so names must be specific and unique."""
    names = [path.stem for folder in (segmentation, training) for path in folder.glob("*.py")]
    names += [path.name for folder in (segmentation, training) for path in folder.iterdir() if path.is_dir()]
    names = [name for name in names if name not in {"Resources", "__pycache__"}]
    assert len(set(names)) == len(names)
    assert [name for name in names if "conres" not in name.lower()] == []
    assert not (segmentation / "__init__.py").exists()
    assert not (training / "__init__.py").exists()
