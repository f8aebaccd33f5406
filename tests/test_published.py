"""The table of published models: names, sizes, accuracy, and the command that prints it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

import minigdino
from minigdino import CheckpointError, Config, cli
from minigdino.checkpoints import hub
from minigdino.checkpoints.parameters import box_head, parameters
from minigdino.checkpoints.published import IDS, PUBLISHED, SHAPES, full_name, suggestion
from minigdino.checkpoints.weights import read_checkpoint
from minigdino.detector import EMBEDDED
from minigdino.evaluation import verify

README = Path(minigdino.__file__).parent.parent / "README.md"
NAMES = [*IDS, *IDS.values()]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache for this process, in offline mode, and an empty working directory."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "hub"


def save_to_cache(cache, model_id):
    """Save the tiny model in the layout of the hub cache."""
    folder = cache / f"models--{model_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c0ffee")
    tiny.model().save(folder / "snapshots" / "c0ffee")


# figures


def test_there_are_thirteen_models_with_different_names():
    assert len(PUBLISHED) == len(IDS) == len(set(IDS.values())) == 13
    assert all(hub.is_model_id(model_id) for model_id in IDS.values())
    assert hub.DEFAULT in IDS.values()
    assert {e.model_id for e in verify.PUBLISHED} <= set(IDS.values())


def test_the_table_of_the_readme_has_the_same_figures():
    """Columns are found by their titles, so other columns may be added."""
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.read_text().splitlines()
             if line.startswith("|")]
    start = next(i for i, row in enumerate(table) if {"parameters", "COCO val", "LVIS minival"} <= set(row))
    titles = table[start]
    found = {}
    for row in table[start + 1 :]:
        if match := re.search(r"[\w-]+/[\w-]+", row[0]):
            found[match[0]] = dict(zip(titles, row))
        elif found:
            break
    assert list(found) == [model.id for model in PUBLISHED]
    for model in PUBLISHED:
        row = found[model.id]
        assert row["parameters"] == f"{model.parameters / 1e6:.0f} M"
        assert row["COCO val"] == f"{model.coco or ''}{'*' if model.coco_in_training else ''}"
        assert row["LVIS minival"].rstrip(" †") == f"{model.lvis or ''}"


def size(config):
    """Number of parameters, and bytes of the published file without its header."""
    shapes = [*parameters(config).values()]
    mm = config.model_type == "mm-grounding-dino"
    heads = config.decoder_layers if mm else 1
    shapes += heads * [*box_head(config.d_model).values(), *([()] if mm else [])]
    count = sum(int(np.prod(shape)) for shape in shapes)
    swin = config.backbone_config
    indices = sum(swin.depths) * swin.window_size**4  # integer buffers of 8 bytes, in the file but not parameters
    return count, 4 * count + 8 * indices


@pytest.mark.parametrize("model", PUBLISHED, ids=list(IDS))
def test_parameters_and_bytes_follow_from_the_geometry(model):
    count, data = size(Config.published(model.family, model.size))
    assert model.parameters == count
    assert 90_000 < model.bytes - data < 200_000  # the header: about 120 bytes for each of 990 to 1249 tensors


def test_the_embedded_model_has_its_figures():
    tensors, _ = read_checkpoint(EMBEDDED / "shapes", False)
    assert SHAPES.parameters == sum(tensor.size for tensor in tensors.values())
    assert SHAPES.bytes == (EMBEDDED / "shapes" / "model.safetensors").stat().st_size
    assert "license: apache-2.0" in (EMBEDDED / "shapes" / "README.md").read_text()


# names


@pytest.mark.parametrize("name", IDS)
def test_a_short_name_loads_the_model_of_the_full_name(name, cache, capsys):
    save_to_cache(cache, IDS[name])
    for source in (name, IDS[name]):
        assert minigdino.load(source).source == IDS[name]
        assert hub.find(source) == cache / f"models--{IDS[name].replace('/', '--')}" / "snapshots" / "c0ffee"
    assert full_name(name) == full_name(IDS[name]) == IDS[name]


def test_a_local_folder_takes_precedence_over_a_short_name(cache):
    tiny.model().save("llmdet_tiny")
    assert minigdino.load("llmdet_tiny").source == "llmdet_tiny"
    with pytest.raises(CheckpointError, match="iSEE-Laboratory/llmdet_tiny: HF_HUB_OFFLINE is set"):
        hub.download("llmdet_tiny")  # the name of a model on the hub, never a folder


def test_one_model_is_loaded_for_both_of_its_names(cache, monkeypatch):
    from minigdino import detector

    monkeypatch.setattr(detector, "_models", {})
    save_to_cache(cache, IDS["llmdet_base"])
    for name in ("llmdet_base", IDS["llmdet_base"]):
        minigdino.detect(tiny.photo(40, 40), "a cat", model=name)
    assert len(detector._models) == 1


@given(st.sampled_from([*NAMES, "shapes"]), st.data())
def test_a_name_with_one_wrong_character_is_corrected(name, data):
    at = data.draw(st.integers(0, len(name) - 1))
    new = data.draw(st.sampled_from(["", "x", name[at] * 2, name[at].swapcase(), " "]))
    typo = name[:at] + new + name[at + 1 :]
    expected = "" if typo == name else f" Did you mean {name!r}?"
    assert suggestion(typo) == expected or typo in NAMES


@pytest.mark.parametrize("name", ["", "cat", "tiny", "owner/model", "bert-base-uncased", "/data/models/mine",
                                  "x" * 10**6])
def test_other_names_are_not_corrected(name):
    assert suggestion(name) == ""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("grounding-dino-tinny", "no published model has this name. Did you mean 'grounding-dino-tiny'? A model must"),
        ("void", "void: no such file or directory, and no published model has this name. A model must be"),
        ("IDEA-Reserch/grounding-dino-tiny", "contacted. Did you mean 'IDEA-Research/grounding-dino-tiny'?\nLocal"),
        ("IDEA-Research/grounding-dino-tiny", "so the hub is not contacted.\nLocal cache"),
        ("folder/void", "so the hub is not contacted; the folder 'folder' exists here, but has no 'void'.\nLocal"),
        ("./folder/void", "no such file or directory. It was read as a path, because it is no model id. A model must"),
        ("/void/void", "It was read as a path"),
        ("a/b/c", "It was read as a path"),
        ("void.safetensors", "It was read as a path"),
        (Path("void"), "It was read as a path"),
        ("~/void", "no such file or directory; \"~\" is not expanded. Give the full path, '"),
        (Path("~/void"), "\"~\" is not expanded"),
    ],
)
def test_a_wrong_name_is_distinguished_from_a_missing_path(cache, source, message):
    Path("folder").mkdir()
    with pytest.raises(CheckpointError) as raised:
        minigdino.load(source)
    assert message in str(raised.value)


@pytest.mark.parametrize("content", [None, "file", "{}", "[]"])
def test_a_folder_that_hides_a_short_name_is_named_in_its_error(cache, content):
    """Also in a ConfigError, and only where it matters."""
    Path("llmdet_tiny").mkdir()
    assert hub.hidden("llmdet_tiny") == IDS["llmdet_tiny"]
    assert not any(map(hub.hidden, ("llmdet_base", "shapes", "other", Path("llmdet_tiny"), IDS["llmdet_tiny"])))
    if content == "file":
        Path("llmdet_tiny").rmdir()
        Path("llmdet_tiny").touch()
    elif content:
        Path("llmdet_tiny/config.json").write_text(content)
    for load in (minigdino.load, lambda name: minigdino.detect(tiny.photo(40, 40), "a cat", model=name)):
        with pytest.raises(minigdino.Error) as raised:
            load("llmdet_tiny")
        assert "config.json" in str(raised.value) and ".. " not in str(raised.value)
        assert str(raised.value).endswith(". 'llmdet_tiny' exists in the working directory, so it was not read as the "
                                          "short name of a published model. For that, give its id: "
                                          "iSEE-Laboratory/llmdet_tiny")
    with pytest.raises(minigdino.Error) as raised:
        minigdino.load("./llmdet_tiny")
    assert "published model" not in str(raised.value)


def test_the_list_of_models_names_a_folder_that_hides_a_short_name(cache, capsys):
    note = "llmdet_tiny exists in the working directory, which hides that name here. Give the id: iSEE-Laboratory/"
    for create in (lambda: None, Path("llmdet_tiny").mkdir):
        create()
        assert cli.main(["models"]) == 0
        assert (note in capsys.readouterr().out) == Path("llmdet_tiny").exists()


def test_download_and_verify_say_that_shapes_is_inside_the_package(cache, capsys):
    assert cli.main(["download", "shapes"]) == 1
    assert "'shapes' is inside this package, so it needs no download. Load it by that name: load('shapes'), or " \
           "--model shapes" in capsys.readouterr().err
    assert cli.main(["verify", "shapes"]) == 1
    assert "got 'shapes', which is inside this package and has none. Choose one of " in capsys.readouterr().err


def test_download_and_verify_know_short_names(cache, capsys):
    for command in ("download", "verify"):
        image = ["--image", str(README.parent / "docs/images/scene.jpg")] if command == "verify" else []
        assert cli.main([command, "llmdet_large", *image]) == 1
        assert "iSEE-Laboratory/llmdet_large: HF_HUB_OFFLINE is set" in capsys.readouterr().err
        assert cli.main([command, "llmdet_larg"]) == 1
        assert "Did you mean 'llmdet_large'?" in capsys.readouterr().err


# the command


def test_models_are_listed_with_their_figures(cache, capsys):
    save_to_cache(cache, IDS["llmdet_tiny"])
    assert cli.main(["models"]) == 0
    table = [line.split() for line in capsys.readouterr().out.partition("\n\n")[0].splitlines()]
    assert [row[0] for row in table] == ["name", "shapes", *IDS]
    assert ["grounding-dino-tiny", "689", "172", "M", "48.4", "27.4", "Apache-2.0", "no"] in table
    assert ["mm_grounding_dino_large_all", "1376", "343", "M", "60.3*", "Apache-2.0**", "no"] in table
    assert [row[0] for row in table if row[-1] == "yes"] == ["shapes", "llmdet_tiny"]


def test_models_are_listed_as_json(cache, capsys):
    save_to_cache(cache, IDS["llmdet_tiny"])
    assert cli.main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(m["name"], m["id"], m["parameters"], m["bytes"], m["coco_ap"], m["lvis_ap"]) for m in listed] == [
        (m.name, m.id, m.parameters, m.bytes, m.coco, m.lvis) for m in (SHAPES, *PUBLISHED)]
    assert [m["name"] for m in listed if m["cached"]] == ["shapes", "llmdet_tiny"]
    assert {m["licence"] for m in listed} == {"Apache-2.0"}
    assert [m["name"] for m in listed if m["licence_source"] == "card"] == [
        "shapes", "grounding-dino-tiny", "grounding-dino-base"]
    assert [m["name"] for m in listed if m["coco_in_training"]] == [
        "grounding-dino-base", "mm_grounding_dino_base_all", "mm_grounding_dino_large_all"]
