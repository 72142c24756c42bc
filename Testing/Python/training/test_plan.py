"""Plans: made from the data, edited, refused when wrong."""

import json

import pytest
import yaml

from conresnet.errors import UserError
from conresnet_training.data_sets import read_data_set
from conresnet_training.plan import read_plan, write_plan
from conresnet_training.planning import make_plan


@pytest.fixture
def plan_file(data_set, tmp_path):
    path = tmp_path / "plan.yaml"
    write_plan(make_plan(read_data_set(data_set), data_set), path)
    return path


def test_plan_follows_the_data_and_comes_back_from_its_file(data_set, plan_file):
    plan = read_plan(plan_file)
    assert plan == make_plan(read_data_set(data_set), data_set)
    description = plan.description
    # The files are 20 x 18 x 16 voxels along right, anterior, superior.
    assert description.inference.window == (16, 24, 24)
    assert [segment.name for segment in description.output.segments] == ["Near box", "Far box"]
    assert description.system.networks[0].arguments["outputs"] == 3
    assert description.residual_axis == "axial"


def test_every_line_may_be_edited(plan_file):
    content = yaml.safe_load(plan_file.read_text(encoding="utf-8"))
    content["training"]["learning_rate"] = 0.02
    content["model"]["system"]["networks"][0]["arguments"]["base_width"] = 8
    plan_file.write_text(yaml.safe_dump(content), encoding="utf-8")
    plan = read_plan(plan_file)
    assert plan.training.learning_rate == 0.02
    assert plan.description.system.networks[0].arguments["base_width"] == 8


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (lambda plan: plan["training"].update(steps=-1), "training.steps"),
        (lambda plan: plan["training"].update(stepz=9), "training.stepz"),
        (lambda plan: plan["targets"].pop("Far box"), "targets must name the segments"),
        (lambda plan: plan["model"]["inference"].update(window=[0, 8, 8]), "inference.window"),
        (lambda plan: plan.pop("model"), "model"),
    ],
)
def test_wrong_line_is_named(plan_file, edit, names):
    content = yaml.safe_load(plan_file.read_text(encoding="utf-8"))
    edit(content)
    plan_file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UserError, match=names) as raised:
        read_plan(plan_file)
    assert str(plan_file) in raised.value.message


def test_file_that_is_no_plan(plan_file, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_plan(tmp_path / "none.yaml")
    plan_file.write_text("a: [1", encoding="utf-8")
    with pytest.raises(UserError, match="is not YAML"):
        read_plan(plan_file)


def test_shipped_recipe_is_a_plan(repository, tmp_path):
    recipe = repository / "ConResTraining" / "conresnet_training" / "recipes" / "hippocampus.yaml"
    plan = read_plan(recipe, tmp_path)
    assert plan.data == tmp_path
    assert plan.description.name == "hippocampus"


def test_data_set_without_a_description_or_a_file(data_set, tmp_path):
    with pytest.raises(UserError, match=r"holds no dataset\.json"):
        read_data_set(tmp_path)
    (data_set / "labelsTr" / "case_3.nii.gz").unlink()
    with pytest.raises(UserError, match=r"case_3\.nii\.gz is named in dataset\.json but does not exist"):
        read_data_set(data_set)


def test_description_that_says_too_little(data_set):
    path = data_set / "dataset.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["labels"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="is not a data set description"):
        read_data_set(data_set)
