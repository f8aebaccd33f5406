"""Model geometry, under the field names of a published `config.json`. Unknown keys in the file are ignored."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError, brief
from .json_file import read_json

GROUPS = 32  # channel groups of the group norm that follows each feature map projection
FAMILIES = ("grounding-dino", "mm-grounding-dino")  # LLMDet checkpoints use "mm-grounding-dino"


@dataclass(frozen=True)
class SwinConfig:
    """Image backbone: Swin Transformer (arXiv 2103.14030), Table 7. Defaults: Swin-T.

    Attributes:
        embed_dim: channels of the first stage; each later stage has twice as many.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        window_size: side of a window, in pixels of the feature map.
        mlp_ratio: hidden channels of a feed-forward network ÷ channels of its stage.
        out_indices: stages whose feature maps are used, counted from 1.
        hidden_act: activation of the feed-forward networks, "gelu" or "relu".
        layer_norm_eps: added to the variance in layer norms.
    """

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    out_indices: tuple[int, ...] = (2, 3, 4)
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5

    @property
    def channels(self) -> tuple[int, ...]:
        """Number of channels of each stage."""
        return tuple(self.embed_dim * 2**i for i in range(len(self.depths)))


@dataclass(frozen=True)
class BertConfig:
    """Text backbone: BERT (arXiv 1810.04805). Defaults: bert-base-uncased.

    Attributes:
        vocab_size: number of tokens in the vocabulary.
        hidden_size: channels of a token.
        num_hidden_layers: encoder layers.
        num_attention_heads: attention heads per layer.
        intermediate_size: hidden channels of the feed-forward networks.
        max_position_embeddings: number of learned positions.
        type_vocab_size: number of learned segment embeddings; only the first is used.
        hidden_act: activation of the feed-forward networks, "gelu" or "relu".
        layer_norm_eps: added to the variance in layer norms.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12


@dataclass(frozen=True)
class Config:
    """Geometry of a Grounding DINO or MM Grounding DINO model. Defaults: grounding-dino-tiny.

    Attributes:
        model_type: "grounding-dino" or "mm-grounding-dino"; LLMDet is the second.
        backbone_config: image backbone, a `SwinConfig` or a dict of its fields.
        text_config: text backbone, a `BertConfig` or a dict of its fields.
        d_model: C, channels of image tokens, text tokens and queries.
        num_queries: Q, queries of the decoder.
        num_feature_levels: L, number of feature maps in the enhancer.
        encoder_layers: layers of the feature enhancer.
        encoder_attention_heads: heads of deformable attention in the enhancer; fusion and text attention have half as
            many.
        encoder_ffn_dim: hidden channels of the image feed-forward networks in the enhancer; those for text have half as
            many.
        encoder_n_points: P, sampling points per head and level in the enhancer.
        decoder_layers: N, layers of the decoder.
        decoder_attention_heads: heads of each attention in the decoder.
        decoder_ffn_dim: hidden channels of the feed-forward networks in the decoder.
        decoder_n_points: P, sampling points per head and level in the decoder.
        activation_function: activation of enhancer and decoder, "relu" or "gelu".
        positional_embedding_temperature: temperature of the sine embedding of image positions.
        max_text_len: maximum number of tokens in a prompt.
        layer_norm_eps: added to the variance in layer norms of enhancer and decoder.
        auxiliary_loss: whether the decoder layers before the last one have losses. This and the next fields are used by
            `Model.loss` only.
        class_cost: weight of the class cost in matching.
        bbox_cost: weight of the L1 cost in matching.
        giou_cost: weight of the GIoU cost in matching.
        bbox_loss_coefficient: weight of the L1 loss; that of the classification loss is 2.
        giou_loss_coefficient: weight of the GIoU loss.
        focal_alpha: weight, from 0 to 1, of the tokens of a phrase in the focal loss and in the class cost; the other
            tokens have the weight 1 - focal_alpha.

    Raises:
        ConfigError: if no model of this geometry can be built, or a value exceeds its limit in `LIMITS`.
    """

    model_type: str = "grounding-dino"
    backbone_config: SwinConfig = field(default_factory=SwinConfig)
    text_config: BertConfig = field(default_factory=BertConfig)
    d_model: int = 256
    num_queries: int = 900
    num_feature_levels: int = 4
    encoder_layers: int = 6
    encoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    encoder_n_points: int = 4
    decoder_layers: int = 6
    decoder_attention_heads: int = 8
    decoder_ffn_dim: int = 2048
    decoder_n_points: int = 4
    activation_function: str = "relu"
    positional_embedding_temperature: float = 20
    max_text_len: int = 256
    layer_norm_eps: float = 1e-5
    auxiliary_loss: bool = False
    class_cost: float = 1.0
    bbox_cost: float = 5.0
    giou_cost: float = 2.0
    bbox_loss_coefficient: float = 5.0
    giou_loss_coefficient: float = 2.0
    focal_alpha: float = 0.25

    def __post_init__(self):
        for name, kind in (("backbone_config", SwinConfig), ("text_config", BertConfig)):
            if isinstance(value := getattr(self, name), dict):
                object.__setattr__(self, name, _from_known_keys(kind, value))
        _check(self)

    @classmethod
    def published(cls, family: str, size: str = "tiny") -> Config:
        """Return the geometry of a published checkpoint.

        Args:
            family: "grounding-dino" (published as tiny and base) or "mm-grounding-dino" (tiny, base and large; LLMDet
                has the same geometry).
            size: "tiny", "base" or "large".

        Returns:
            The geometry.

        Raises:
            ConfigError: for an unknown family or size.
        """
        if size not in tuple(SIZES):
            raise ConfigError(f"size must be one of {', '.join(SIZES)}; got {size!r}")
        backbone = SIZES[size]
        return cls(family, backbone_config=backbone, num_feature_levels=len(backbone.out_indices) + 1)

    @classmethod
    def from_dict(cls, values: dict) -> Config:
        """Build a Config from a parsed `config.json`. Keys that do not affect inference are ignored.

        Args:
            values: the JSON object.

        Returns:
            The geometry.

        Raises:
            ConfigError: for an unknown model type, or an option that no published checkpoint uses.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"config must be a JSON object; got {type(values).__name__}")
        for key, (supported, default) in REQUIRED.items():
            if (found := values.get(key, default)) not in supported:
                expected = " or ".join(map(repr, supported))
                raise ConfigError(f"{key} must be {expected}; got {brief(found)}. Other values are not supported")
        backbone = values.get("backbone_config") or {"out_indices": (2, 3, 4)}
        text = values.get("text_config") or {}
        if not isinstance(backbone, dict) or not isinstance(text, dict):
            raise ConfigError("backbone_config and text_config must be JSON objects")
        for key, sub, expected in (("backbone_config", backbone, "swin"), ("text_config", text, "bert")):
            if (found := sub.get("model_type", expected)) != expected:
                raise ConfigError(f"{key}.model_type must be {expected!r}; got {brief(found)}. Other values are not "
                                  "supported")
        if backbone.get("use_absolute_embeddings"):
            raise ConfigError("backbone_config.use_absolute_embeddings must be false, as in every published "
                              "checkpoint; got true")
        if not backbone.get("out_indices"):  # use out_features instead, by default only the last stage
            for key, example in (("depths", [2, 2, 6, 2]), ("out_features", ["stage4"])):
                if not isinstance(backbone.get(key) or [], (list, tuple)):
                    raise ConfigError(f"backbone_config.{key} must look like {example}; got {brief(backbone[key])}")
            last = f"stage{len(backbone.get('depths') or SwinConfig.depths)}"
            stages = [re.fullmatch(r"stage(\d\d?)", str(name)) for name in backbone.get("out_features") or [last]]
            backbone = {**backbone, "out_indices": [int(stage[1]) for stage in stages if stage]}
        aliases = {"d_model": "hidden_size", "encoder_attention_heads": "num_attention_heads"}
        renamed = {new: values[old] for new, old in aliases.items() if old in values and new not in values}
        return _from_known_keys(cls, {**values, **renamed, "backbone_config": backbone, "text_config": text})

    @classmethod
    def from_file(cls, path: str | Path) -> Config:
        """Read a `config.json` file.

        Args:
            path: the file.

        Returns:
            The geometry.

        Raises:
            CheckpointError: if the file is missing or is not JSON.
            ConfigError: as in `from_dict`.
        """
        try:
            return cls.from_dict(read_json(path))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_dict(self) -> dict:
        """Return the contents of a `config.json`, which transformers can read too."""
        values = dataclasses.asdict(self)
        values["backbone_config"]["model_type"] = "swin"
        values["text_config"]["model_type"] = "bert"
        return values


# Backbone of each published size.
SIZES = {
    "tiny": SwinConfig(),
    "base": SwinConfig(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window_size=12),
    "large": SwinConfig(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window_size=12,
                        out_indices=(1, 2, 3, 4)),
}

# key of config.json -> (supported values, default)
REQUIRED = {
    "model_type": (FAMILIES, None),
    "two_stage": ((True,), True),
    "embedding_init_target": ((True,), True),
    "query_dim": ((4,), 4),
    "position_embedding_type": (("sine",), "sine"),
}


def _from_known_keys(kind, values):
    """Build a dataclass from the keys that are its fields. A null value means the default."""
    taken = {f.name: values[f.name] for f in dataclasses.fields(kind) if values.get(f.name) is not None}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in taken.items()})


def _has_type(value, kind):
    """Return whether a value has the type in a field's annotation. An int is accepted for a float."""
    if kind == "tuple[int, ...]":
        return isinstance(value, tuple) and all(type(v) is int for v in value)
    return type(value) in KINDS[kind]


KINDS = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "SwinConfig": (SwinConfig,),
         "BertConfig": (BertConfig,)}
LOSS_FIELDS = ("auxiliary_loss", "class_cost", "bbox_cost", "giou_cost", "bbox_loss_coefficient",
               "giou_loss_coefficient", "focal_alpha")  # fields that do not affect a forward pass; they may be 0


# Largest value of each field; MAX for all others. Without these limits, a typo in a count of layers would fill memory
# with the list of parameters. The other fields cost memory, but hardly change the size of the weights.
MAX = 10**7
LIMITS = {
    **dict.fromkeys(("depths", "num_hidden_layers", "encoder_layers", "decoder_layers"), 200),
    **dict.fromkeys(("num_heads", "num_attention_heads", "encoder_attention_heads", "decoder_attention_heads"), 64),
    "window_size": 24,  # a head has window_size**4 position biases; published: 7 and 12
    "num_feature_levels": 16,  # each level halves the resolution; published: 4 and 5
    "num_queries": 4096,  # a head of the decoder compares all pairs of queries; published: 900
    "max_text_len": 4096,  # a head compares all pairs of tokens; published: 256
    "focal_alpha": 1,
}


def _check(c: Config):
    """Raise ConfigError if no model of this geometry can be built."""
    swin, bert = c.backbone_config, c.text_config

    def need(condition, message):
        if not condition:
            raise ConfigError(f"config: {message}")

    for where, part in (("config", c), ("backbone_config", swin), ("text_config", bert)):
        for f in dataclasses.fields(part):
            value, limit = getattr(part, f.name), LIMITS.get(f.name, MAX)
            if not _has_type(value, f.type):
                example = f"a {f.type} or a dict" if f.default is dataclasses.MISSING else repr(f.default)
                raise ConfigError(f"{where}.{f.name} must look like {example}; got {brief(value)}")
            if f.name in LOSS_FIELDS:
                need(0 <= value <= limit, f"{f.name} must be from 0 to {limit:g}; got {brief(value)}")
                continue
            for number in value if isinstance(value, tuple) else (value,):
                need(not isinstance(number, (int, float)) or 1e-30 < number <= limit,
                     f"{f.name} must be positive and at most {limit:g}; got {brief(value)}")
    need(c.model_type in FAMILIES, f"model_type must be one of {FAMILIES}; got {brief(c.model_type)}")
    for name, act in (("activation_function", c.activation_function), ("backbone hidden_act", swin.hidden_act),
                      ("text hidden_act", bert.hidden_act)):
        need(act in ("relu", "gelu"), f"{name} must be 'relu' or 'gelu'; got {brief(act)}")
    stages = len(swin.depths)
    need(0 < stages == len(swin.num_heads),
         f"depths and num_heads must have the same length; got {brief(swin.depths)} and {brief(swin.num_heads)}")
    need(stages <= 16, f"depths must have at most 16 stages; got {stages}")
    need(swin.out_indices and sorted(set(swin.out_indices)) == list(swin.out_indices)
         and swin.out_indices[-1] <= stages,
         f"out_indices must be increasing stages in 1..{stages}; got {brief(swin.out_indices)}")
    need(c.num_feature_levels >= len(swin.out_indices),
         f"num_feature_levels must be at least the backbone's {len(swin.out_indices)} feature maps; "
         f"got {c.num_feature_levels}")
    need(c.d_model % GROUPS == 0, f"d_model must be a multiple of {GROUPS}; got {c.d_model}")
    for name, width, heads in [("encoder_attention_heads", c.d_model, c.encoder_attention_heads),
                               ("decoder_attention_heads", c.d_model, c.decoder_attention_heads),
                               ("encoder_attention_heads // 2", c.d_model, c.encoder_attention_heads // 2),
                               ("encoder_attention_heads // 2", c.encoder_ffn_dim // 2, c.encoder_attention_heads // 2),
                               ("text num_attention_heads", bert.hidden_size, bert.num_attention_heads),
                               *(("backbone num_heads", *pair) for pair in zip(swin.channels, swin.num_heads))]:
        need(width > 0 and heads > 0 and width % heads == 0,
             f"{name} must divide {width} channels evenly; got {heads}")
    need(int(swin.embed_dim * swin.mlp_ratio) > 0,
         f"mlp_ratio must give at least one of {swin.embed_dim} channels; got {swin.mlp_ratio}")
