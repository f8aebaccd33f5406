"""Reading config.json: unknown keys are ignored, unsupported options are rejected."""

import json

import pytest
import tiny

from minigdino import CheckpointError, Config, ConfigError
from minigdino.checkpoints.config import LOSS_FIELDS
from minigdino.checkpoints.parameters import box_head, parameters
from minigdino.detector import EMBEDDED

PUBLISHED_PARAMETERS = {  # number of parameters in the released files
    ("grounding-dino", "tiny"): 172_249_090,
    ("grounding-dino", "base"): 232_313_216,
    ("mm-grounding-dino", "tiny"): 172_912_157,
    ("mm-grounding-dino", "base"): 232_976_283,
    ("mm-grounding-dino", "large"): 343_052_631,
}


@pytest.mark.parametrize(("family", "size"), PUBLISHED_PARAMETERS)
def test_published_geometries_have_the_published_number_of_parameters(family, size):
    config = Config.published(family, size)
    count = sum(product(shape) for shape in parameters(config).values())
    heads = 6 if family == "mm-grounding-dino" else 1
    count += heads * sum(product(shape) for shape in box_head(256).values()) + 6 * (family == "mm-grounding-dino")
    assert count == PUBLISHED_PARAMETERS[family, size]


def product(shape):
    n = 1
    for side in shape:
        n *= side
    return n


def test_default_config_is_grounding_dino_tiny():
    assert Config.from_dict({"model_type": "grounding-dino"}) == Config() == Config.published("grounding-dino")


def test_missing_backbone_keys_take_the_defaults_of_swin():
    got = Config.from_dict(
        {
            "model_type": "grounding-dino",
            "num_feature_levels": 2,
            "backbone_config": {"model_type": "swin", "embed_dim": 128, "num_heads": [4, 8, 16, 32]},
        }
    )
    assert got.backbone_config.depths == (2, 2, 6, 2)
    assert got.backbone_config.out_indices == (4,)  # Swin's own default, not the detector's


def test_legacy_and_unknown_keys_are_ignored():
    got = Config.from_dict(
        {
            "model_type": "mm-grounding-dino",
            "backbone": None,
            "use_timm_backbone": False,
            "backbone_kwargs": None,
            "torch_dtype": "float32",
            "dropout": 0.1,
            "auxiliary_loss": False,
            "decoder_bbox_embed_share": False,
            "text_config": {"model_type": "bert"},
            "hidden_size": 256,
            "something_new": {"a": 1},
            "backbone_config": {
                "model_type": "swin",
                "path_norm": True,
                "out_features": ["stage2", "stage3", "stage4"],
                "out_indices": [2, 3, 4],
                "window_size": 7,
            },
        }
    )
    assert got == Config("mm-grounding-dino")


def test_out_features_replace_missing_out_indices():
    backbone = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    assert Config.from_dict(
        {"model_type": "mm-grounding-dino", "num_feature_levels": 5, "backbone_config": backbone}
    ).backbone_config.out_indices == (1, 2, 3, 4)


def test_to_dict_and_from_dict_are_inverse():
    config = tiny.config("mm-grounding-dino", stages=(1, 2, 3, 4), levels=5)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "owlvit"}, "model_type must be 'grounding-dino' or 'mm-grounding-dino'; got 'owlvit'"),
        ({"model_type": None}, "model_type must be .*; got None"),
        ({"two_stage": False}, "two_stage must be True; got False. Other values are not supported"),
        ({"embedding_init_target": False}, "embedding_init_target must be True; got False"),
        ({"query_dim": 2}, "query_dim must be 4; got 2"),
        ({"position_embedding_type": "learned"}, "position_embedding_type must be 'sine'; got 'learned'"),
        (
            {"backbone_config": {"model_type": "resnet"}},
            "backbone_config.model_type must be 'swin'; got 'resnet'",
        ),
        ({"text_config": {"model_type": "roberta"}}, "'roberta'"),
        ({"backbone_config": {"use_absolute_embeddings": True}}, "use_absolute_embeddings"),
        ({"backbone_config": {"out_indices": [5]}}, "out_indices must be increasing stages in 1..4"),
        ({"backbone_config": {"depths": [2, 2]}}, "depths and num_heads must have the same length"),
        ({"backbone_config": {"depths": "2222"}}, "must look like"),
        ({"backbone_config": 7}, "must be JSON objects"),
        ({"d_model": 100}, "multiple of 32"),
        ({"d_model": "wide"}, "config.d_model must look like 256; got 'wide'"),
        ({"num_queries": 0}, "num_queries must be positive"),
        ({"num_queries": 10**12}, "num_queries must be positive and at most 4096; got 1000000000000"),
        ({"encoder_attention_heads": 7}, "must divide 256 channels evenly; got 7"),
        ({"encoder_attention_heads": 1}, "must divide 256 channels evenly; got 0"),
        ({"num_feature_levels": 2}, "must be at least the backbone's 3 feature maps; got 2"),
        ({"activation_function": "swish"}, "must be 'relu' or 'gelu'"),
        ({"auxiliary_loss": 1}, "config.auxiliary_loss must look like False; got 1"),
        ({"class_cost": -1}, r"class_cost must be from 0 to 1e\+07; got -1"),
        ({"giou_loss_coefficient": float("nan")}, "giou_loss_coefficient must be from 0 to .*; got nan"),
        ({"focal_alpha": 1.5}, "focal_alpha must be from 0 to 1; got 1.5"),
    ],
)
def test_unsupported_values_are_rejected_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_dict({"model_type": "grounding-dino", **change})


def test_fields_for_losses_are_read_and_may_be_zero():
    values = {"auxiliary_loss": True, "class_cost": 0, "bbox_cost": 0.0, "giou_cost": 3, "bbox_loss_coefficient": 0,
              "giou_loss_coefficient": 1.5, "focal_alpha": 0}
    assert values.keys() == set(LOSS_FIELDS)
    config = Config.from_dict({"model_type": "grounding-dino", **values})
    assert {name: getattr(config, name) for name in values} == values
    published = json.loads((EMBEDDED / "shapes" / "config.json").read_text())
    defaults = {name: getattr(Config(), name) for name in values}
    assert {name: published[name] for name in values} == defaults


def test_options_without_effect_are_accepted():
    Config.from_dict(
        {
            "model_type": "grounding-dino",
            "two_stage_bbox_embed_share": True,
            "fusion_droppath": 0.3,
            "disable_custom_kernels": True,
            "max_text_len": 128,
        }
    )


def test_files_without_a_valid_config_are_rejected(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: no such file. A model directory holds"):
        Config.from_file(tmp_path / "config.json")
    for text in ("{", "\ud83d".encode("utf-8", "surrogatepass"), "[" * 100_000):
        (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(CheckpointError, match="not a readable JSON file"):
            Config.from_file(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="must be a JSON object; got list"):
        Config.from_file(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="size must be one of tiny, base, large"):
        Config.published("grounding-dino", "huge")
