"""Model geometry. Field names are those of a published `config.json`; unknown keys there are ignored."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError, brief
from .json_file import read_json

GROUPS = 32  # of the group norm behind every projected feature map
FAMILIES = ("grounding-dino", "mm-grounding-dino")  # LLMDet is published as the second


@dataclass(frozen=True)
class SwinConfig:
    """Image backbone: Swin Transformer (arXiv 2103.14030), Table 7. Defaults: Swin-T."""

    embed_dim: int = 96  # channels of the first stage; each later stage doubles them
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    out_indices: tuple[int, ...] = (2, 3, 4)  # stages handed on, counted from 1
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.embed_dim * 2**i for i in range(len(self.depths)))


@dataclass(frozen=True)
class BertConfig:
    """Text backbone: BERT (arXiv 1810.04805). Defaults: bert-base-uncased."""

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
    """Geometry of a Grounding DINO or MM Grounding DINO. Defaults: grounding-dino-tiny.

    Nested configs may be given as dicts. Raises ConfigError for a geometry that cannot be built.
    """

    model_type: str = "grounding-dino"
    backbone_config: SwinConfig = field(default_factory=SwinConfig)
    text_config: BertConfig = field(default_factory=BertConfig)
    d_model: int = 256  # C
    num_queries: int = 900  # Q
    num_feature_levels: int = 4  # L
    encoder_layers: int = 6
    encoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    encoder_n_points: int = 4  # P
    decoder_layers: int = 6
    decoder_attention_heads: int = 8
    decoder_ffn_dim: int = 2048
    decoder_n_points: int = 4
    activation_function: str = "relu"
    positional_embedding_temperature: float = 20
    max_text_len: int = 256
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        for name, kind in (("backbone_config", SwinConfig), ("text_config", BertConfig)):
            if isinstance(value := getattr(self, name), dict):
                object.__setattr__(self, name, _known(kind, value))
        _check(self)

    @classmethod
    def published(cls, family: str, size: str = "tiny") -> Config:
        """Geometry of a published checkpoint: family "grounding-dino" (tiny, base) or "mm-grounding-dino"
        (tiny, base, large; LLMDet shares it)."""
        if size not in tuple(SIZES):
            raise ConfigError(f"size must be one of {', '.join(SIZES)}; got {size!r}")
        backbone = SIZES[size]
        return cls(family, backbone_config=backbone, num_feature_levels=len(backbone.out_indices) + 1)

    @classmethod
    def from_dict(cls, values: dict) -> Config:
        """Read a parsed `config.json`, ignoring keys without effect on inference.

        Raises ConfigError for an unknown model type and for options no published checkpoint uses.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"config must be a JSON object; got {type(values).__name__}")
        for key, (supported, default) in REQUIRED.items():
            if (found := values.get(key, default)) not in supported:
                expected = " or ".join(map(repr, supported))
                raise ConfigError(f"{key}={brief(found)} is not supported; expected {expected}")
        backbone = values.get("backbone_config") or {"out_indices": (2, 3, 4)}
        text = values.get("text_config") or {}
        if not isinstance(backbone, dict) or not isinstance(text, dict):
            raise ConfigError("backbone_config and text_config must be JSON objects")
        for key, sub, expected in (("backbone_config", backbone, "swin"), ("text_config", text, "bert")):
            if (found := sub.get("model_type", expected)) != expected:
                raise ConfigError(f"{key} has model_type {brief(found)}; this implementation reads only {expected!r}")
        if backbone.get("use_absolute_embeddings"):
            raise ConfigError("backbone_config.use_absolute_embeddings=true is not supported; published "
                              "checkpoints use relative positions only")
        if not backbone.get("out_indices"):  # then named by out_features, else only the last stage
            for key, example in (("depths", [2, 2, 6, 2]), ("out_features", ["stage4"])):
                if not isinstance(backbone.get(key) or [], (list, tuple)):
                    raise ConfigError(f"backbone_config.{key} must look like {example}; got {brief(backbone[key])}")
            last = f"stage{len(backbone.get('depths') or SwinConfig.depths)}"
            stages = [re.fullmatch(r"stage(\d\d?)", str(name)) for name in backbone.get("out_features") or [last]]
            backbone = {**backbone, "out_indices": [int(stage[1]) for stage in stages if stage]}
        aliases = {"d_model": "hidden_size", "encoder_attention_heads": "num_attention_heads"}
        renamed = {new: values[old] for new, old in aliases.items() if old in values and new not in values}
        return _known(cls, {**values, **renamed, "backbone_config": backbone, "text_config": text})

    @classmethod
    def from_file(cls, path: str | Path) -> Config:
        """Read `config.json`. Raises CheckpointError if it is not JSON, ConfigError as `from_dict` does."""
        try:
            return cls.from_dict(read_json(path))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_dict(self) -> dict:
        """What `config.json` holds; transformers reads it too."""
        values = dataclasses.asdict(self)
        values["backbone_config"]["model_type"] = "swin"
        values["text_config"]["model_type"] = "bert"
        return values


SIZES = {
    "tiny": SwinConfig(),
    "base": SwinConfig(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window_size=12),
    "large": SwinConfig(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window_size=12,
                        out_indices=(1, 2, 3, 4)),
}

# key of config.json -> (values we can honour, value when absent)
REQUIRED = {
    "model_type": (FAMILIES, None),
    "two_stage": ((True,), True),
    "embedding_init_target": ((True,), True),
    "query_dim": ((4,), 4),
    "position_embedding_type": (("sine",), "sine"),
}


def _known(kind, values):
    """Build a dataclass from the keys it knows."""
    taken = {f.name: values[f.name] for f in dataclasses.fields(kind) if values.get(f.name) is not None}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in taken.items()})


def _fits(value, kind):
    """Whether a value is what a field's annotation says; a whole number is a float too."""
    if kind == "tuple[int, ...]":
        return isinstance(value, tuple) and all(type(v) is int for v in value)
    return type(value) in KINDS[kind]


KINDS = {"int": (int,), "float": (int, float), "str": (str,), "SwinConfig": (SwinConfig,), "BertConfig": (BertConfig,)}


# Fields that count layers: a mistyped one must not make a parts list that fills the memory.
LAYERS = ("depths", "num_hidden_layers", "num_feature_levels", "encoder_layers", "decoder_layers")
MOST_LAYERS = 200


def _check(c: Config):
    swin, bert = c.backbone_config, c.text_config

    def need(condition, message):
        if not condition:
            raise ConfigError(f"config: {message}")

    for where, part in (("config", c), ("backbone_config", swin), ("text_config", bert)):
        for f in dataclasses.fields(part):
            value, most = getattr(part, f.name), MOST_LAYERS if f.name in LAYERS else 1e7
            if not _fits(value, f.type):
                example = f"a {f.type} or a dict" if f.default is dataclasses.MISSING else repr(f.default)
                raise ConfigError(f"{where}.{f.name} must look like {example}; got {brief(value)}")
            for number in value if isinstance(value, tuple) else (value,):
                need(not isinstance(number, (int, float)) or 1e-30 < number <= most,
                     f"{f.name} must be positive and of a sane size, at most {most:g}; got {brief(value)}")
    need(c.model_type in FAMILIES, f"model_type must be one of {FAMILIES}; got {brief(c.model_type)}")
    for name, act in (("activation_function", c.activation_function), ("backbone hidden_act", swin.hidden_act),
                      ("text hidden_act", bert.hidden_act)):
        need(act in ("relu", "gelu"), f"{name} must be 'relu' or 'gelu'; got {brief(act)}")
    stages = len(swin.depths)
    need(0 < stages == len(swin.num_heads),
         f"depths {brief(swin.depths)} and num_heads {brief(swin.num_heads)} differ in length")
    need(stages <= 16, f"depths must be of a sane length, at most 16; got {stages} stages")
    need(swin.out_indices and sorted(set(swin.out_indices)) == list(swin.out_indices)
         and swin.out_indices[-1] <= stages, f"out_indices must rise within 1..{stages}; got {brief(swin.out_indices)}")
    need(c.num_feature_levels >= len(swin.out_indices),
         f"num_feature_levels ({c.num_feature_levels}) is less than the backbone's {len(swin.out_indices)} maps")
    need(c.d_model % GROUPS == 0, f"d_model must be a multiple of {GROUPS}; got {c.d_model}")
    for name, width, heads in [("encoder_attention_heads", c.d_model, c.encoder_attention_heads),
                               ("decoder_attention_heads", c.d_model, c.decoder_attention_heads),
                               ("encoder_attention_heads // 2", c.d_model, c.encoder_attention_heads // 2),
                               ("encoder_attention_heads // 2", c.encoder_ffn_dim // 2, c.encoder_attention_heads // 2),
                               ("text num_attention_heads", bert.hidden_size, bert.num_attention_heads),
                               *(("backbone num_heads", *pair) for pair in zip(swin.channels, swin.num_heads))]:
        need(heads > 0 and width % heads == 0, f"{name}: {heads} heads do not divide {width} channels")
