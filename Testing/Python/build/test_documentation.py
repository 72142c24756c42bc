"""The documentation matches the repository: links, paths, commands, options, panel texts and metrics."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

import conresnet.cli
import conresnet_training.cli
from conresnet.cli.cases import read_case_list
from conresnet.package.outputs import MAPS
from conresnet_training.data.layouts import read_data_set
from conresnet_training.planning.plan import Training
from conresnet_training.planning.systems import SYSTEMS

MOST_README_LINES = 150
TOP_FOLDERS = r"ConResSegmentation|ConResTraining|Testing|Screenshots|Utilities|docs|requirements|\.github|\.ci"
PATH = re.compile(rf"(?<![\w/.~-])(?:{TOP_FOLDERS})/[\w./-]*\w")
PROGRAMS = {
    "conresnet": conresnet.cli.conresnet,
    "conresnet_training": conresnet_training.cli.conresnet_training,
}


def pages_of(repository: Path) -> list[Path]:
    """The pages for readers: those at the root and in docs/, and the README of each folder."""
    root, docs = sorted(repository.glob("*.md")), sorted((repository / "docs").glob("*.md"))
    return [*root, *docs, *sorted((repository / "Testing").rglob("README.md"))]


@pytest.fixture(scope="module")
def pages(repository: Path) -> dict[str, str]:
    """Text of every page by its path from the root."""
    found = {path.relative_to(repository).as_posix(): path.read_text(encoding="utf-8") for path in pages_of(repository)}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/command-line.md", "docs/training.md"} <= found.keys()
    return found


def code_of(text: str) -> list[str]:
    """Code blocks and code spans, with continuation lines joined."""
    code = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    code += re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [re.sub(r"\\\n\s*", " ", part).replace("\\|", "|") for part in code]


def slugs_of(text: str) -> set[str]:
    """Anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_short(pages: dict[str, str]) -> None:
    assert len(pages["README.md"].splitlines()) <= MOST_README_LINES


def test_lines_are_not_longer_than_those_of_the_code(pages: dict[str, str]) -> None:
    """Except rows of tables, which cannot be wrapped, and links to pictures and commands to copy in the README."""
    long = {
        name: [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]
        for name, text in pages.items()
        if name != "README.md"
    }
    assert not {name: lines for name, lines in long.items() if lines}


def test_every_link_has_an_existing_file_and_heading(pages: dict[str, str], repository: Path) -> None:
    broken, followed = [], 0
    for page, text in pages.items():
        for target, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
            followed += 1
            path = (repository / page).parent / target if target else repository / page
            if not path.exists():
                broken.append(f"{page}: {target}")
            elif anchor and anchor not in slugs_of(path.read_text(encoding="utf-8")):
                broken.append(f"{page}: {target}#{anchor}")
    assert followed > 50
    assert broken == []


def test_readme_links_to_every_page_of_docs(pages: dict[str, str]) -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", pages["README.md"]))
    assert linked == {page for page in pages if page.startswith("docs/")}


def test_every_repository_path_in_the_documentation_exists(pages: dict[str, str], repository: Path) -> None:
    named = {(page, path) for page, text in pages.items() for path in PATH.findall(text)}
    assert len(named) > 20
    assert [f"{page}: {path}" for page, path in sorted(named) if not (repository / path).exists()] == []


def test_make_targets_match_the_documentation(pages: dict[str, str], repository: Path) -> None:
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    targets = {name for name in phony.split() if re.search(rf"^{name}:", makefile, re.MULTILINE)}
    assert targets == set(phony.split())

    def named(text: str) -> set[str]:
        return set(re.findall(r"^make (?:[A-Z]+=\S+ )*([a-z-]+)", "\n".join(code_of(text)), re.MULTILINE))

    assert set().union(*map(named, pages.values())) <= targets
    assert named(pages["docs/development.md"]) == targets - {"help"}
    workflow = yaml.safe_load((repository / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    commands = "\n".join(step.get("run", "") for step in workflow["jobs"]["test"]["steps"])
    assert {"lint", "test"} <= set(re.findall(r"\bmake PYTHON=python ([a-z-]+)$", commands, re.MULTILINE))


def all_options(command: click.Command) -> set[str]:
    """Options of a command and its subcommands."""
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            options |= all_options(command.get_command(context, name))
    return options | {"--help", "--version"}


def command_lines(pages: dict[str, str]) -> Iterator[tuple[str, str, list[str]]]:
    """(page, program, words after it) of every command line of conresnet and conresnet_training."""
    for page, text in pages.items():
        for part in code_of(text):
            for line in part.splitlines():
                if match := re.search(r"python -m (conresnet(?:_training)?) (.+)", line.partition("  #")[0]):
                    yield page, match[1], match[2].split()


def test_every_documented_command_line_is_valid(pages: dict[str, str]) -> None:
    wrong, checked = [], set()
    for page, program, words in command_lines(pages):
        command: click.Command = PROGRAMS[program]
        line_text = " ".join([program, *words])
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            name, *words = words
            found = command.get_command(click.Context(command), name)
            if found is None:
                wrong.append(f"{page}: {line_text}")
                break
            command = found
            checked.add((program, name))
        else:
            options = {word.partition("=")[0] for word in words if word.startswith("--")}
            wrong += [f"{page}: {line_text}: {option}" for option in options - all_options(command)]
    assert {("conresnet", "segment"), ("conresnet", "import"), ("conresnet_training", "plan")} <= checked
    assert wrong == []


def test_every_documented_option_exists(pages: dict[str, str], repository: Path) -> None:
    own_options = set().union(*map(all_options, PROGRAMS.values()))
    folders = [repository / "Testing" / name for name in ("Benchmarks", "Robustness")]
    scripts = "\n".join(path.read_text(encoding="utf-8") for folder in folders for path in folder.glob("*.py"))
    of_dask = {"--port", "--nthreads", "--nworkers", "--memory-limit"}
    known = own_options | set(re.findall(r"--[a-z][a-z0-9-]+", scripts)) | {"--index-url"} | of_dask
    named = {
        (page, option)
        for page, text in pages.items()
        for part in code_of(text)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", part)
    }
    assert len(named) > 30
    assert sorted(f"{page}: {option}" for page, option in named if option not in known) == []


def test_every_command_option_is_documented(pages: dict[str, str]) -> None:
    text = "\n".join(part for page in pages if page.startswith("docs/") for part in code_of(pages[page]))
    described = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))
    offered = {name for program in PROGRAMS.values() for name in all_options(program) if name.startswith("--")}
    # --remote is for Slicer, which starts the worker.
    assert offered - described == {"--remote"}


def test_documented_benchmark_commands_have_valid_options(pages: dict[str, str], repository: Path) -> None:
    wrong, checked = [], 0
    for page, text in pages.items():
        for part in code_of(text):
            for script, rest in re.findall(r"python (Testing/Benchmarks/\w+\.py)(.*)", part):
                source = (repository / script).read_text(encoding="utf-8")
                options = set(re.findall(r"(?<!\S)--[a-z][a-z-]+", rest))
                wrong += [f"{page}: {script} {option}" for option in options if f'"{option}"' not in source]
                checked += 1
    assert checked > 5
    assert wrong == []


def test_every_documented_plan_setting_exists(pages: dict[str, str]) -> None:
    named = {key for text in pages.values() for key in re.findall(r"--set training\.(\w+)=", text)}
    assert len(named) > 5
    assert named <= Training.model_fields.keys()


def test_every_system_and_every_map_is_documented(pages: dict[str, str]) -> None:
    table = pages["docs/training.md"].partition("## Systems")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for cell in cells for name in re.findall(r"`([a-z-]+)`", cell)} == SYSTEMS.keys()
    guide = pages["docs/user-guide.md"].partition("### Maps")[2].partition("\n### ")[0]
    titles = {kind.title for kind in MAPS.values()}
    assert set(re.findall(r"^\| ([A-Z][\w ]+) \|", guide, re.MULTILINE)) == titles
    table = pages["docs/maps-and-review.md"].partition("## Maps")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == MAPS.keys()


def test_every_documented_control_exists(pages: dict[str, str], repository: Path) -> None:
    texts = {
        "".join(element.itertext()).strip().rstrip(":.")
        for file in repository.glob("ConRes*/Resources/UI/*.ui")
        for element in ElementTree.parse(file).iter("property")
        if element.get("name") in ("text", "title")
    }
    modules = {"ConRes Segmentation", "ConRes Training"}
    tutorial = pages["README.md"].partition("## Tutorial")[2].partition("\n## ")[0]
    named = set(re.findall(r"\*\*([^*]+)\*\*", tutorial + pages["docs/user-guide.md"]))
    assert {"Segment", "Cancel", "Check", "Start"} <= named
    assert sorted(name for name in named - modules if name.rstrip(":.") not in texts) == []


def test_documented_metrics_match_the_shipped_models(pages: dict[str, str], repository: Path) -> None:
    models = repository / "ConResSegmentation" / "conresnet" / "models"
    summary = re.findall(r"^\| \[([\w-]+)\]\(docs/models\.md.*\| (0\.\d{3}), mean", pages["README.md"], re.MULTILINE)
    versions = re.findall(r"^\| \[([\w-]+)\]\(#[\w-]+\) \| ([\d.]+) \|", pages["docs/models.md"], re.MULTILINE)
    names = sorted(path.name for path in models.iterdir())
    assert sorted(name for name, _ in summary) == sorted(name for name, _ in versions) == names
    for name, dice in summary:
        metrics = json.loads((models / name / "metrics.json").read_text(encoding="utf-8"))
        section = pages["docs/models.md"].partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert float(dice) == round(metrics["mean_dice"], 3), name
        assert dice in section
        for value in metrics["mean_dice_a_segment"].values():
            assert f" {value:.3f} |" in section, (name, value)
    for name, version in versions:
        assert json.loads((models / name / "model.json").read_text(encoding="utf-8"))["version"] == version


def test_example_of_a_data_set_is_valid(pages: dict[str, str], tmp_path: Path) -> None:
    section = pages["docs/training.md"].partition("**Your own cases.**")[2].partition("\n**")[0]
    files = re.findall(r"^MyData/(\S+)$", section, re.MULTILINE)
    (content,) = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(content if file == "dataset.json" else "")
    data_set = read_data_set(tmp_path)
    assert [(case.name, case.missing) for case in data_set.cases] == [("case1", ())]
    assert data_set.channels == ("T1",) and data_set.labels == {1: "tumor"}


def test_example_of_a_list_of_cases_is_valid(pages: dict[str, str], tmp_path: Path) -> None:
    (example,) = re.findall(r"```\n(name,.*?)```", pages["docs/command-line.md"], re.DOTALL)
    (tmp_path / "list.csv").write_text(example, encoding="utf-8")
    cases = read_case_list(tmp_path / "list.csv", ["T1"])
    assert [case.name for case in cases] == ["patient-1", "patient-2"]
    assert cases[1].roi


def test_python_examples_run(pages: dict[str, str], repository: Path, tmp_path: Path) -> None:
    """All examples in one process, in a folder from which the test data have the paths given on the page."""
    blocks = re.findall(r"```python\n(.*?)```", pages["docs/python.md"], re.DOTALL)
    assert blocks
    (tmp_path / "Testing").symlink_to(repository / "Testing", target_is_directory=True)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_generated_part_of_model_package_page_is_marked(pages: dict[str, str]) -> None:
    before, begin, rest = pages["docs/model-package.md"].partition("<!-- begin generated -->")
    generated, end, after = rest.partition("<!-- end generated -->")
    assert begin and end and "begin generated" not in before + after
    assert all(field in generated for field in ("inputs", "preparation", "system", "output", "files"))


def test_every_screenshot_with_image_data_has_a_license_in_the_readme(pages: dict[str, str], repository: Path) -> None:
    section = pages["README.md"].partition("## License")[2].partition("\n## ")[0]
    # The other screenshots show panels and curves and contain no image data.
    own = {"panel.png", "training_curves.png", "training_panel.png"}
    pictures = {path.name for path in (repository / "Screenshots").iterdir()} - own
    assert pictures and [name for name in sorted(pictures) if f"`Screenshots/{name}`" not in section] == []
