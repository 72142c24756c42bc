"""Plans: made from the data, edited, and refused if invalid."""

from dataclasses import replace

import pytest
import yaml

from conresnet.errors import UserError
from conresnet.package import parse_description
from conresnet.package.store import read_model
from conresnet_training.data.layouts import read_data_set
from conresnet_training.planning import plan as plan_module
from conresnet_training.planning.plan import parse_yaml, read_plan, with_settings, write_plan, yaml_text
from conresnet_training.planning.planner import make_plan
from conresnet_training.training import steps_of_run
from training.commands import refused


@pytest.fixture
def plan_file(data_set, tmp_path):
    path = tmp_path / "plan.yaml"
    write_plan(make_plan(read_data_set(data_set), data_set)[0], path)
    return path


def test_model_of_a_plan_is_parsed_once(plan_file, monkeypatch):
    parsed = []

    def counted(*given, **more):
        parsed.append(given)
        return parse_description(*given, **more)

    monkeypatch.setattr(plan_module, "parse_description", counted)
    read = read_plan(plan_file)
    assert read.mirrored_segments == [0, 1]
    assert len(parsed) == 1


def test_plan_follows_the_data_and_is_read_back_unchanged(data_set, plan_file):
    plan = read_plan(plan_file)
    assert plan == make_plan(read_data_set(data_set), data_set)[0]
    description = plan.model
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
    assert plan.model.system.networks[0].arguments["base_width"] == 8


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (lambda plan: plan["training"].update(steps=-1), "training.steps"),
        (lambda plan: plan["training"].update(stepz=9), "training.stepz"),
        (lambda plan: plan["targets"].pop("Far box"), "segments Near box, Far box"),
        (lambda plan: plan["targets"].update({"Far box": []}), r"targets\.Far box must have at least 1 item, but is"),
        (lambda plan: plan["targets"].update({"Far box": [0]}), r"targets\.Far box\.0 .* greater than or equal to 1"),
        (lambda plan: plan["targets"].update({"Far box": [256]}), r"targets\.Far box\.0 .* less than or equal to 255"),
        (
            lambda plan: plan["targets"].update({"Far box": [3, 1, 1]}),
            "targets Near box and Far box share the label value 1",
        ),
        (
            lambda plan: plan["augmentation"].update(swapped_segments=[["Near box", "Third box"]]),
            "augmentation.swapped_segments",
        ),
        (
            lambda plan: plan["augmentation"].update(swapped_segments=[["Near box", "Near box"]]),
            "augmentation.swapped_segments",
        ),
        (lambda plan: plan["model"]["inference"].update(window=[0, 8, 8]), "inference.window"),
        (
            lambda plan: plan["model"]["system"].update(type="foo"),
            "model.system.type must be one of coarse_to_fine, single, not foo",
        ),
        (lambda plan: plan["model"]["system"].update(type="ensemble"), "not ensemble"),
        (lambda plan: plan.pop("model"), "model"),
    ],
)
def test_invalid_line_is_named(plan_file, edit, names):
    content = yaml.safe_load(plan_file.read_text(encoding="utf-8"))
    edit(content)
    plan_file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UserError, match=names) as raised:
        read_plan(plan_file)
    assert str(plan_file) in raised.value.message


def test_paired_segments_are_swapped_by_mirroring(plan_file):
    plan = read_plan(plan_file)
    assert plan.mirrored_segments == [0, 1]
    swapped = with_settings(plan, ["augmentation.swapped_segments=[[Far box, Near box]]"])
    assert swapped.mirrored_segments == [1, 0]
    write_plan(swapped, plan_file)
    assert read_plan(plan_file) == swapped


def test_regions_may_share_values(plan_file):
    content = yaml.safe_load(plan_file.read_text(encoding="utf-8"))
    content["targets"]["Far box"] = [1, 2]
    content["model"]["output"]["kind"] = "regions"
    content["model"]["system"]["networks"][0]["arguments"]["outputs"] = 2
    plan_file.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert read_plan(plan_file).targets["Far box"] == [1, 2]


def test_file_that_is_not_a_plan_is_refused(plan_file, tmp_path):
    for text, path, code in (("", tmp_path / "none.yaml", "plan-not-found"), ("a: [1", plan_file, "plan-not-yaml")):
        plan_file.write_text(text, encoding="utf-8")
        with refused(code):
            read_plan(path)


def test_plan_in_windows_encodings_is_read_and_errors_have_line_numbers(plan_file):
    text, plan = plan_file.read_text(encoding="utf-8"), read_plan(plan_file)
    for encoding in ("utf-16", "utf-8-sig"):
        plan_file.write_text(text, encoding=encoding)
        assert read_plan(plan_file) == plan
    for content, code, reason in (
        (b"\xff\xff\xff", "plan-not-text", None),
        (b"data: \xe4\n", "plan-not-text", None),
        (b"data: x\ntargets: [1, 2\ntraining: {}\n", "plan-not-yaml", "line 3: "),
        (b"data: x\ntargets:\n\ta: 1\n", "plan-not-yaml", "line 3: use spaces instead of tabs"),
        (b"data: x\n---\ndata: y\n", "plan-not-yaml", "line 2: expected a single document"),
        (b"- 1\n", "plan-invalid", "the plan must be a group of settings, but is [1]"),
        (b"data: x\n", "plan-invalid", "targets is missing; add it, or make a new plan"),
        (text.encode() + b"stepz: 5\n", "plan-invalid", "stepz is not a setting; correct its name, or remove it"),
    ):
        plan_file.write_bytes(content)
        with pytest.raises(UserError) as raised:
            read_plan(plan_file)
        assert raised.value.code == code and raised.value.values.get("reason", "").startswith(reason or "")


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("  seed: 0", "  seed:0", "{line}: put a space after the colon (column 7)"),
        ("  seed: 0", "  seed = 0", "{line}: there is no colon; write KEY: VALUE"),
        ("  batch: 2", "   batch: 2", "{line}: it is not indented like"),
        ("  - W", "  -W", "{line}: put a space after the hyphen (column 3)"),
        ("title: Boxes", "title: 'Boxes", "{line}: a quotation mark here is not closed (column 10)"),
        ("description: ''", "description: 'the patient's scan'", "{line}: the value ends before this point; put all"),
        ("description: ''", "description: Study: boxes", "{line}: put text that contains a colon in quotation marks"),
        ("description: ''", "description: %90", "{line}: put text that begins with % in quotation marks (column 16)"),
        ("description: ''", "description: *best* model", "{line}: put text that begins with * in quotation marks"),
        ("description: ''", "description: > 90 %", "{line}: put text that begins with > in quotation marks"),
        ("swapped_segments: []", "swapped_segments: [[a, b]", "{next}: the bracket opened in line {number}, column 21"),
        ("swapped_segments: []", "swapped_segments: []]", "{line}: the bracket ] was never opened"),
        ("title: Boxes", 'title: "C:\\Users"', "{line}: a backslash in double quotation marks has a special meaning"),
        ("title: Boxes", "title: Bo\x07xes", "{line}: remove the control character U+0007 (column 12)"),
        ("title: Boxes", "title: !!bool maybe", "it has a value that is not of the type named by !! before it"),
        ("  seed: 0", "  seed: " + "9" * 5000, "a number in it is too long"),
    ],
)
def test_yaml_error_is_explained_in_plain_language(plan_file, right, wrong, message):
    text = plan_file.read_text(encoding="utf-8")
    number = text[: text.index(right)].count("\n") + 1
    plan_file.write_text(text.replace(right, wrong, 1), encoding="utf-8")
    with pytest.raises(UserError) as raised:
        read_plan(plan_file)
    expected = message.format(line=f"line {number}", next=f"line {number + 1}", number=number)
    assert raised.value.code == "plan-not-yaml" and raised.value.values["reason"].startswith(expected)


def test_misspelled_network_argument_gets_a_suggestion(plan_file):
    plan = with_settings(read_plan(plan_file), [])
    arguments = plan.model.system.networks[0].arguments
    arguments["base_widht"] = arguments.pop("base_width")
    with pytest.raises(UserError) as raised:
        steps_of_run(plan)
    reason = raised.value.values["reason"]
    assert reason == 'The network "conresnet" has no argument "base_widht"; the closest match is "base_width"'


def test_empty_plan_has_no_settings(plan_file):
    plan_file.write_text("# later\n", encoding="utf-8")
    with refused("plan-invalid", reason="there are no settings; make a new plan"):
        read_plan(plan_file)


@pytest.mark.parametrize(
    "note",
    [
        "[" * 2000 + "]" * 2000,
        "9" * 10000,
        "\n".join(f"  - &a{level} [{', '.join([f'*a{level - 1}'] * 9) if level else 'x'}]" for level in range(12)),
    ],
)
def test_invalid_text_in_a_plan_is_refused_immediately(plan_file, note):
    plan_file.write_text(plan_file.read_text(encoding="utf-8") + f"note:\n{note}\n", encoding="utf-8")
    with refused("plan-not-yaml"):
        read_plan(plan_file)


@pytest.mark.parametrize("name", ["hippocampus", "brain-structures", "brain-tissue", "head-neck-organs"])
def test_shipped_recipe_describes_the_shipped_model(repository, tmp_path, name):
    recipe = repository / "ConResTraining" / "conresnet_training" / "recipes" / f"{name}.yaml"
    plan = read_plan(recipe, tmp_path)
    assert plan.data == tmp_path
    shipped = read_model(name).description
    # `export` adds volumes, sides and checksums; the window may grow from one training stage to the next.
    segments = [replace(segment, volume_ml=None) for segment in shipped.output.segments]
    output = replace(shipped.output, segments=tuple(segments), swapped_segments=None)
    inference = replace(shipped.inference, window=plan.model.inference.window)
    assert plan.model == replace(shipped, output=output, inference=inference, files=plan.model.files)


@pytest.mark.parametrize(
    ("added", "key"),
    [
        ("training:\n  steps: 3\n", "training"),
        ("x: {a: 1, b: 2, a: 3}\n", "a"),
        ("x:\n  - a: 1\n    a: 2\n", "a"),
        ("escape: 1\nescape: 2\n", "escape"),
    ],
)
def test_duplicate_keys_are_refused(plan_file, added, key):
    """The last one would silently win, and the other settings in its block would get the defaults."""
    text = plan_file.read_text(encoding="utf-8")
    plan_file.write_text(text + added, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        read_plan(plan_file)
    assert raised.value.code == "plan-not-yaml" and f'the key "{key}" occurs twice' in raised.value.values["reason"]
    line = int(raised.value.values["reason"].split(":")[0].removeprefix("line "))
    assert line > len(text.splitlines())


def test_common_number_formats_are_read(plan_file):
    plan = read_plan(plan_file)
    settings = ["training.learning_rate=1e-5", "training.steps=1_000", "model.preparation.spacing=[1e0, 1.5e+0, .5]"]
    changed = with_settings(plan, settings)
    assert changed.training.learning_rate == 1e-5 and changed.training.steps == 1000
    assert changed.model.preparation.spacing == (1, 1.5, 0.5)
    assert with_settings(plan, ["augmentation.scaling=0"]).augmentation.scaling == 0
    # Names that look like numbers stay names.
    for name in ("1e5", "1:30", "010", "1_0", "yes", "0x1F", "1.e3", "2024-01-01"):
        assert parse_yaml(yaml_text({name: [name]})) == {name: [name]}


def test_error_in_the_model_is_reported_for_the_plan(plan_file):
    with pytest.raises(UserError) as raised:
        with_settings(read_plan(plan_file), ["model.inference.window=[0, 8, 8]"])
    assert "package" not in raised.value.message and '"model.inference.window"' in raised.value.message


def test_left_right_pair_with_unknown_segment_is_refused(plan_file):
    with pytest.raises(UserError) as raised:
        with_settings(read_plan(plan_file), ["augmentation.swapped_segments=[[Nope, Nobody]]"])
    assert "names Nope, which is not a segment" in raised.value.message


def test_settings_change_only_their_values(plan_file):
    plan = read_plan(plan_file)
    changed = with_settings(
        plan,
        [
            "training.steps=500",
            "model.system.networks.0.arguments.attention_mapping=false",
            "augmentation.flip_axes=[S, W]",
            "model.inference.window.1=16",
        ],
    )
    assert changed.training.steps == 500 and changed.augmentation.flip_axes == ["S", "W"]
    assert changed.model.system.networks[0].arguments["attention_mapping"] is False
    assert changed.model.inference.window == (16, 16, 24)
    assert plan.training.steps != 500 and plan.model.system.networks[0].arguments["attention_mapping"]
    same = changed.model_dump() | {key: plan.model_dump()[key] for key in ("training", "model", "augmentation")}
    assert same == plan.model_dump()
    assert with_settings(plan, []) == plan


@pytest.mark.parametrize(
    ("setting", "code", "values"),
    [
        ("training.stepz=5", "setting-unknown", {"nearest": "training.steps"}),
        ("steps=5", "setting-unknown", {"nearest": "training.steps"}),
        ("inference.window=5", "setting-unknown", {"nearest": "model.inference.window"}),
        ("type=x", "setting-unknown", {"nearest": "model.system.type"}),
        (
            "model.system.networks.0.arguments.attention=no",
            "setting-unknown",
            {"nearest": "model.system.networks.0.arguments.attention_mapping"},
        ),
        ("model.system.networks.1.type=x", "setting-unknown", {"nearest": "model.system.networks.0"}),
        ("training.steps.more=1", "setting-too-deep", {"above": "training.steps"}),
        ("training.steps=-5", "setting-invalid", {"reason": "training.steps must be greater than 0, but is -5"}),
        ("training.steps=many", "setting-invalid", {}),
        (
            "training.optimizer=adamw",
            "setting-invalid",
            {"reason": "training.optimizer must be 'adam' or 'sgd', but is \"adamw\""},
        ),
        ("training.workers=-1", "setting-invalid", {}),
        ("training.workers=all", "setting-invalid", {}),
        ("training.workers=100000", "setting-invalid", {}),
        ("training.learning_rate=.inf", "setting-invalid", {}),
        ("augmentation.noise=.nan", "setting-invalid", {}),
        ("training.seed=4294967296", "setting-invalid", {}),
        ("training.steps", "setting-without-value", {"setting": "training.steps"}),
        ("=3", "setting-without-value", {"setting": "=3"}),
        ("training..steps=5", "setting-without-value", {"setting": "training..steps=5"}),
        ("training.steps=5e4", "setting-invalid", {"reason": "training.steps must be a whole number, but is 50000.0"}),
        ("training=3", "setting-invalid", {"reason": "training must be a group of settings, but is 3"}),
        # In YAML 1.1, these mean 1, 1, 90 and 8.
        ("training.steps=true", "setting-invalid", {}),
        ("training.batch=yes", "setting-invalid", {}),
        ("training.steps=1:30", "setting-invalid", {}),
        ("training.seed=010", "setting-invalid", {}),
        ("targets={Near box: [true], Far box: [2]}", "setting-invalid", {}),
        ("training.steps=[1", "setting-not-yaml", {"setting": "training.steps=[1"}),
        ("model.inference.window=[0, 8, 8]", "plan-model-wrong", {"field": "inference.window"}),
    ],
)
def test_invalid_setting_is_named(plan_file, setting, code, values):
    with refused(code, **values):
        with_settings(read_plan(plan_file), [setting])
