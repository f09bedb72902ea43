"""featstore.toml as people write it, and the options that stand in for it."""

import os
import pickle
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.backbones import PACKAGED, BackboneName, Card, Output, WeightsPolicy
from featstore.config import Config, LabelsConfig, TensorSpec, choose_tensors, packaged_tensors, parse_tensor
from featstore.errors import BackboneError, ConfigError
from featstore.identity import Segment
from featstore.photos.views import GRID, WHOLE, View
from featstore.support import parse_scale
from featstore.toml import find_config, read_config, write_config


def config_of(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "featstore.toml"
    file.write_text(text, encoding="utf-8")
    return read_config(file)


# ---- the file that `featstore init` writes


def test_what_init_writes_is_what_is_read(tmp_path: Path) -> None:
    file = tmp_path / "featstore.toml"
    write_config(
        file, photos=Path("photos"), labels=Path("labels.csv"), tasks=("joy", "awe"), scale=(1.0, 7.0), group="name"
    )
    config = read_config(file)
    assert config.photos == tmp_path / "photos"
    assert config.store == tmp_path / "cache" / "features.zarr"
    assert config.tensors == packaged_tensors()
    assert config.labels is not None
    assert config.labels.file == tmp_path / "labels.csv"
    assert (config.labels.tasks, config.labels.scale, config.labels.group) == (("joy", "awe"), (1, 7), "name")
    assert "scale = [1, 7]" in file.read_text()


def test_init_without_labels_leaves_them_out(tmp_path: Path) -> None:
    write_config(tmp_path / "featstore.toml", photos=tmp_path / "my photos", labels=None)
    config = find_config(tmp_path)
    assert (config.photos, config.labels, config.dtype) == (tmp_path / "my photos", None, "float16")


def test_a_cell_that_writes_the_file_can_run_again(tmp_path: Path) -> None:
    file = tmp_path / "featstore.toml"
    write_config(str(file), photos="photos", scale=(1, 7))
    before = file.read_text()
    with pytest.raises(ConfigError, match="exists already"):
        write_config(file, photos="photos")
    write_config(file, photos="photos", exist_ok=True)
    assert file.read_text() == before
    with pytest.raises(ConfigError, match=r"is about the photos in .*photos; edit it"):
        write_config(file, photos="others", exist_ok=True)


# ---- a configuration made in Python


def test_paths_may_be_text() -> None:
    said = Config(photos="photos", runs="runs", weights=WeightsPolicy("w"), labels=LabelsConfig("l.csv"))
    assert (said.photos, said.runs, said.weights.folder) == (Path("photos"), Path("runs"), Path("w"))
    assert said.labels is not None
    assert said.labels.file == Path("l.csv")
    assert replace(said, photos="~/x").photos == Path.home() / "x"
    assert replace(said, photos="~no such user/x").photos == Path("~no such user/x")
    assert Config().photos is None
    assert Config().runs == Path("cache/runs")
    assert pickle.loads(pickle.dumps(said)) == said
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'file'"):
        LabelsConfig()
    with pytest.raises(FrozenInstanceError):
        said.photos = Path("others")  # type: ignore[misc]


def test_a_configuration_is_shown_as_the_call_that_makes_it() -> None:
    spec = TensorSpec("whole", "concat", ("lite0",))
    said = Config(photos="photos", store="s.zarr", tensors=(spec,), weights=WeightsPolicy(hub=True))
    assert repr(said) == (
        "Config(photos='photos', store='s.zarr', weights=WeightsPolicy(hub=True), "
        "tensors=(TensorSpec(name='whole', kind='concat', segments=('lite0',)),))"
    )
    assert eval(repr(said)) == said
    assert repr(Config()) == "Config()"


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12)


@given(
    photos=names,
    tasks=st.lists(names, max_size=3),
    scale=st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)).filter(lambda ends: ends[0] < ends[1]),
    group=names,
)
def test_any_name_and_any_number_survives_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    photos: str,
    tasks: list[str],
    scale: tuple[float, float],
    group: str,
) -> None:
    file = tmp_path_factory.mktemp("config") / "featstore.toml"
    folder = Path("/photos") / photos
    write_config(file, photos=folder, labels=folder, tasks=tuple(tasks), scale=scale, group=group)
    config = read_config(file)
    assert config.photos == folder
    assert config.labels is not None
    assert (config.labels.tasks, config.labels.scale, config.labels.group) == (tuple(tasks), scale, group)


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "featstore.toml"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="exists already; edit it, or remove it"):
        write_config(file, photos=Path("photos"), labels=None)
    assert file.read_text() == "mine"


def test_a_folder_that_is_not_there_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        write_config(tmp_path / "nowhere" / "featstore.toml", photos=Path("photos"), labels=None)


# ---- reading


def test_a_folder_without_the_file_has_the_defaults(tmp_path: Path) -> None:
    assert find_config(tmp_path) == Config()


def test_paths_are_relative_to_the_file_and_home_is_home(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        """
        photos = "../photos"
        store = "/data/features.zarr"
        runs = "~/runs"
        [labels]
        file = "labels/all.csv"
        [backbones.legacy_xception]
        weights = "weights/xception.pth"
        batch_norm_eps = 1e-3
        [backbones.resnet50]
        weights = "random:3"
        """,
    )
    assert config.photos == tmp_path / "../photos"
    assert config.store == Path("/data/features.zarr")
    assert config.runs == Path.home() / "runs"
    assert config.labels is not None
    assert config.labels.file == tmp_path / "labels" / "all.csv"
    assert config.weights.named == {
        "legacy_xception": str(tmp_path / "weights" / "xception.pth"),
        "resnet50": "random:3",
    }
    assert config.batch_norm_eps == {"legacy_xception": 1e-3}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('fotos = "photos"', "fotos: unknown key; did you mean 'photos'?"),
        ("[tensors.mine]\nlayout = 'stack'\nsegmnts = ['lite0']", r"tensors.mine.segmnts: unknown key; .*'segments'"),
        ("[labels]\nfile = 'l.csv'\ntask = ['joy']", r"labels.task: unknown key; did you mean 'tasks'"),
        ("[views.fine]\nsizes = [1, 1]", r"views.fine.sizes: unknown key; did you mean 'size'"),
        ("[backbones.lite0]\nweight = 'x'", r"backbones.lite0.weight: unknown key; did you mean 'weights'"),
        ("photos = 3", r"photos: .*path.* \(found 3\)"),
        ("hub = 'perhaps'", r"hub: .*boolean.* \(found 'perhaps'\)"),
        ("dtype = 'float61'", r"dtype: .*'float16' or 'float32' \(found 'float61'\)"),
        (
            "[tensors.mine]\nlayout = 'pile'\nsegments = ['lite0']",
            r"tensors.mine.layout: .*'stack', 'concat' or 'pixels'",
        ),
        ("[tensors.mine]\nlayout = 'stack'", r"tensors.mine.segments: Field required"),
        ("[tensors.'my-own']\nlayout = 'stack'\nsegments = ['lite0']", "'my-own' should be letters, digits and"),
        ("[labels]\nfile = 'l.csv'\nscale = [7, 1]", r"labels.scale: .*the first end has to be below the second"),
        ("[labels]\nfile = 'l.csv'\nscale = [1, inf]", "labels.scale"),
        ("[views.fine]\ngrid = [7, 7]", "featstore.toml, views.fine: a view of 600x400 pixels cannot be cut"),
        ("photos = ", "cannot be read: Invalid value"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_the_way_out(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        config_of(tmp_path, text)
    assert str(tmp_path / "featstore.toml") in str(caught.value)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, "photos = 3\nhub = 'perhaps'\nrun = 'x'")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[1:]] == ["  - photos", "  - hub", "  - run"]


def test_a_file_that_is_not_there_or_not_text_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.toml cannot be read: .*No such file"):
        read_config(tmp_path / "nowhere.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary.toml cannot be read"):
        read_config(tmp_path / "binary.toml")


# ---- segments


def test_a_segment_is_a_backbone_a_pooling_and_a_view(tmp_path: Path) -> None:
    config = config_of(tmp_path, "[views.fine]\nsize = [800, 800]\ngrid = [8, 8]\ninterpolation = 'bicubic'")
    fine = View((800, 800), rows=8, columns=8, interpolation="bicubic")
    for text, name, view in [
        ("lite0", "tf_efficientnet_lite0", GRID),
        ("lite0:max", "tf_efficientnet_lite0:max", GRID),
        ("lite0@whole", "tf_efficientnet_lite0", WHOLE),
        ("resnet50:max@fine", "resnet50:max", fine),
    ]:
        (segment,) = config.segments(text, default_view="grid")
        assert isinstance(segment, Segment)
        assert (segment.name, segment.view) == (name, view)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lite0@wohle", "unknown view 'wohle' in 'lite0@wohle'; did you mean 'whole'"),
        ("lite0:mux", "did you mean 'max'"),
    ],
)
def test_a_segment_that_means_nothing_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Config().segments(text, default_view="grid")


def test_an_epsilon_of_the_file_changes_the_card_and_so_the_identity() -> None:
    for key in ("resnet50", "tf_efficientnet_lite0", "lite0"):
        config = Config(batch_norm_eps={key: 0.5})
        assert card_of(config, key).facts()["batch_norm_eps"] == 0.5
    assert "batch_norm_eps" not in card_of(Config(), "lite0").facts()


def card_of(config: Config, backbone: str) -> Card:
    (segment,) = config.segments(backbone, default_view="grid")
    assert isinstance(segment, Segment)
    return segment.card


# ---- options


def test_tensor_options() -> None:
    assert parse_tensor("amtl=stack/2048:lite0,lite1:max") == TensorSpec("amtl", "stack", ("lite0", "lite1:max"), 2048)
    assert parse_tensor("all=concat: lite0@grid , lite1,") == TensorSpec("all", "concat", ("lite0@grid", "lite1"))
    assert parse_tensor("a=stack:b").default_view == "grid"
    assert parse_tensor("a=concat:b").default_view == "whole"


@pytest.mark.parametrize(
    "text",
    [
        *["", "amtl", "amtl=stack", "amtl=stack:", "amtl=stack:,", "=stack:lite0", "my-own=stack:lite0", "stack:lite0"],
        *["amtl=pile:lite0", "amtl=stack/wide:lite0", "amtl=stack/-1:lite0", "amtl=stack/²:lite0"],
    ],
)
def test_tensor_options_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not of the form NAME=LAYOUT"):
        parse_tensor(text)


def test_scale_options() -> None:
    assert parse_scale("1:7") == (1.0, 7.0)
    assert parse_scale("-0.5:0.5") == (-0.5, 0.5)


@pytest.mark.parametrize("text", ["", "1", "1-7", "a:b", "1:2:3", "7:1", "1:1", "nan:1", "1:inf"])
def test_scale_options_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--scale"):
        parse_scale(text)


def test_choosing_tensors() -> None:
    mine = TensorSpec("mine", "stack", ("resnet50",))
    configured = Config(tensors=(mine,))

    def names(config: Config) -> list[str]:
        return [plan.name for plan in config.tensors]

    assert choose_tensors(configured, "all", {}).tensors == (mine,)
    assert names(choose_tensors(Config(), "all", {})) == ["amtl", "mtl", "mediaeval"]
    assert choose_tensors(configured, "packaged", {}).tensors == packaged_tensors()
    assert choose_tensors(configured, "lite0, resnet50", {}).tensors == (
        TensorSpec("model", "concat", ("lite0@model", "resnet50@model")),
    )
    assert choose_tensors(configured, "lite0, resnet50", {}, views=("grid", "whole")).tensors == (
        TensorSpec("grid", "stack", ("lite0@grid", "resnet50@grid")),
        TensorSpec("whole", "concat", ("lite0@whole", "resnet50@whole")),
    )
    assert choose_tensors(configured, "lite0@grid,resnet50", {}).tensors == (
        TensorSpec("grid", "stack", ("lite0@grid",)),
        TensorSpec("model", "concat", ("resnet50@model",)),
    )
    with pytest.raises(ConfigError, match="--view is for backbones named one by one"):
        choose_tensors(configured, "packaged", {}, views=("grid",))
    assert names(choose_tensors(configured, "packaged", {"mine": mine})) == ["amtl", "mtl", "mine"]
    assert names(choose_tensors(configured, "", {"mine": mine})) == ["mine"]
    other = TensorSpec("mine", "concat", ("lite0",))
    assert choose_tensors(configured, "all", {"mine": other}).tensors == (other,)
    with pytest.raises(ConfigError, match="no backbones named"):
        choose_tensors(configured, "", {})


def test_the_packaged_tensors_need_no_weights_but_those_installed() -> None:
    for plan in packaged_tensors():
        assert plan.segments == PACKAGED
        assert all(card.package for card in Config().cards(plan))


def test_a_misspelt_backbone_section_is_not_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "featstore.toml"
    file.write_text('[backbones.legacy_xeption]\nweights = "x.safetensors"\n')
    with pytest.raises(BackboneError, match="did you mean 'legacy_xception'"):
        read_config(file)


def test_model_is_no_name_for_a_view_of_ones_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"views\.model: each network has its own view of this name"):
        config_of(tmp_path, "[views.model]\nsize = [224, 224]")


def test_names_of_backbones_layers_and_sources() -> None:
    for text, parts in (
        ("resnet50", ("resnet50", "", "")),
        ("resnet50.a1_in1k:max", ("resnet50.a1_in1k", "", "max")),
        ("resnet50/layer3:avg", ("resnet50", "layer3", "avg")),
        ("vit_base_patch16_clip_224.openai/blocks.6:cls", ("vit_base_patch16_clip_224.openai", "blocks.6", "cls")),
        ("resnet50/*", ("resnet50", "*", "")),
        ("resnet50:mean", ("resnet50", "", "mean")),
    ):
        assert BackboneName.parse(text) == BackboneName(*parts)
    with pytest.raises(ConfigError, match="a network pools only its last layer by itself"):
        Config().segments("resnet50/layer3:own", default_view="model")
    with pytest.raises(ConfigError, match="the view model is a network's"):
        Config().segments("pixels@model", default_view="whole")
    assert [each.name for each in Config().segments("test_resnet/*:max", default_view="model")] == [
        f"test_resnet/{layer}:max" for layer in ("act1", "layer1", "layer2", "layer3", "layer4")
    ]
    for text in ("lite0", "lite0:own", "lite0:avg"):
        (segment,) = Config().segments(text, default_view="whole")
        assert isinstance(segment, Segment)
        assert (segment.output, segment.name) == (Output(pooling="avg"), "tf_efficientnet_lite0")


def test_sections_of_backbones_may_have_short_names(tmp_path: Path) -> None:
    config = config_of(tmp_path, "[backbones.dinov2_small]\nweights = 'random:1'\nbatch_norm_eps = 0.5")
    assert config.weights.named == {"vit_small_patch14_dinov2.lvd142m": "random:1"}
    assert config.batch_norm_eps == {"vit_small_patch14_dinov2.lvd142m": 0.5}
    with pytest.raises(ConfigError, match="two sections of backbone 'tf_efficientnet_lite0'"):
        config_of(tmp_path, "[backbones.lite0]\n[backbones.tf_efficientnet_lite0]")


def test_tokens_of_several_layers_make_a_tensor_for_each_number(tmp_path: Path) -> None:
    specs = choose_tensors(Config(), "test_resnet/*:tokens,test_vit:tokens", {}).tensors
    assert {spec.name: spec.segments for spec in specs} == {
        "tokens_6400": ("test_resnet/act1:tokens@model",),
        "tokens_1600": ("test_resnet/layer1:tokens@model",),
        "tokens_400": ("test_resnet/layer2:tokens@model",),
        "tokens_100": ("test_resnet/layer3:tokens@model", "test_vit:tokens@model"),
        "tokens_25": ("test_resnet/layer4:tokens@model",),
    }
    assert {spec.kind for spec in specs} == {"stack"}


@pytest.mark.parametrize(
    "text",
    ["x = " + "[" * 20_000, "a." * 5_000 + "b = 1", "# " + "x" * (2 << 20), "max_megapixels = nan", "photos = 1e999"],
)
def test_a_strange_file_is_a_message(tmp_path: Path, text: str) -> None:
    (tmp_path / "featstore.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"featstore\.toml"):
        find_config(tmp_path)


def test_a_pipe_is_no_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "featstore.toml")
    with pytest.raises(ConfigError, match="named pipe"):
        find_config(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '[tensors.t]\nlayout = "concat"\nsegments = ["python:evil:make@whole"]',
        '[backbones."python:evil:make"]\nweights = "own"',
        '[backbones."python:evil:make"]\nweights = "x.pth"',
    ],
)
def test_a_file_names_no_code(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="which is code"):
        config_of(tmp_path, text)
