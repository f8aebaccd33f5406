"""Image and text in, detections out. The one place that checks what a caller hands over."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL.Image import Image

from . import image as images
from .cache import Cache, content_key
from .checkpoints import hub
from .checkpoints.config import Config
from .checkpoints.parameters import random_tensors
from .checkpoints.weights import INDEX, build, on_device, read_checkpoint
from .errors import ArgumentError, CheckpointError, ImageError, PromptError, brief
from .image import ImageSettings
from .network.model import Output, forward
from .network.phrases import PUBLISHED_DELIMITERS
from .prompt import Prompt, Tokenizer
from .results import Detections, post_process
from .runtime.device import find_device
from .runtime.kernels import mode

EMBEDDED = Path(__file__).parent / "models"
EMBEDDED_MODELS = ("shapes",)  # these names win over a folder of the same name

ImageLike: TypeAlias = "str | os.PathLike[str] | Image | np.ndarray"
Images: TypeAlias = "ImageLike | Sequence[ImageLike]"
Text: TypeAlias = "str | Sequence[str] | Sequence[Sequence[str]]"


class Model:
    """A loaded checkpoint, which threads may share.

    `detect` keeps the features of the last two images and sixteen prompts: another prompt on the same image skips the
    image backbone, the same prompt on another image skips BERT. `clear` forgets them; `forward` neither keeps nor uses
    them.
    """

    def __init__(self, tensors: dict[str, np.ndarray], config: Config, *, tokenizer: Tokenizer | None = None,
                 settings: ImageSettings | None = None, source: str | Path = "tensors", device: str = "cpu"):
        """tensors under their published names; `load` and `Model.random` are the usual ways in.

        Raises CheckpointError naming the tensor that does not fit the config, ArgumentError for a device not there.
        """
        self._device = find_device(device)
        self.weights = on_device(build(tensors, config, source), self._device.send)
        self.tensors, self.config, self.source, self.device = tensors, config, source, self._device.name
        self.tokenizer, self.settings = tokenizer, settings or ImageSettings()
        self._images, self._texts = Cache(2), Cache(16)

    def __repr__(self) -> str:
        return f"Model({self.config.model_type}, {str(self.source)!r})"

    @classmethod
    def random(cls, config: Config | None = None, seed: int = 0, *, tokenizer: Tokenizer | None = None,
               settings: ImageSettings | None = None, device: str = "cpu") -> Model:
        """A model of any geometry whose every parameter is random and alive: for tests and for teaching."""
        config = config or Config()
        return cls(random_tensors(config, seed), config, tokenizer=tokenizer, settings=settings, source="random",
                   device=device)

    def save(self, directory: str | Path) -> None:
        """Write a directory that `load` and transformers read. Raises CheckpointError if it cannot be written."""
        from safetensors import SafetensorError

        try:
            self._save(Path(directory))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{directory}: the model cannot be written there ({brief(error)}); give a folder of "
                                  "yours on a disk with room for it") from None

    def _save(self, directory):
        from safetensors.numpy import save_file

        directory.mkdir(parents=True, exist_ok=True)
        shared = not any(name.startswith(("bbox_embed.1.", "model.decoder.bbox_embed.1.")) for name in self.tensors)
        config = {**self.config.to_dict(), "decoder_bbox_embed_share": shared, "decoder_cls_embed_share": shared,
                  "two_stage_bbox_embed_share": False}
        for name, values in (("config.json", config), ("preprocessor_config.json", self.settings.to_dict())):
            (directory / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        tensors = {name: np.asarray(array, order="C") for name, array in self.tensors.items()}
        fresh = directory / "model.safetensors.new"
        save_file(tensors, fresh, {"format": "pt"})
        os.replace(fresh, directory / "model.safetensors")  # whoever has mapped the old file keeps the old weights
        (directory / INDEX).unlink(missing_ok=True)  # of shards that this file replaces
        if self.tokenizer:
            self.tokenizer.save(directory)

    def preprocess(self, image: ImageLike, *, size: Sequence[int] | None = None) -> np.ndarray:
        """Image -> pixels [3, H, W] float32, resized and normalised as the checkpoint asks.

        size (shortest, longest) edge in pixels replaces the checkpoint's. Raises ImageError, ArgumentError.
        """
        return images.preprocess(images.open_image(image), self.settings, _checked_size(size))

    def tokenize(self, text: str | Sequence[str]) -> Prompt:
        """Text, or a list of phrases -> Prompt. Raises PromptError if there is nothing, or too much, to look for, and
        CheckpointError if the model has no tokenizer."""
        if self.tokenizer is None:
            raise CheckpointError(f"{self.source}: holds neither tokenizer.json nor vocab.txt, needed to read text; "
                                  "copy one of them there from the published checkpoint. forward() works without")
        prompt = self.tokenizer.encode(text)
        if len(prompt.ids) > self.config.max_text_len:
            raise PromptError(f"the prompt has {len(prompt.ids)} tokens; {self.config.max_text_len} is the most this "
                              "model reads. Ask for fewer phrases at a time")
        return prompt

    def forward(self, pixels: np.ndarray, token_ids: Sequence[int], *, selected: Sequence[int] | None = None,
                details: bool = False) -> Output:
        """The pure network.

        pixels [3, H, W] float32 normalised; token_ids [T] ints, [CLS] and [SEP] included; selected [Q] image tokens,
        best first, to use instead of the model's own choice; details: keep the large intermediates too.
        A model on a GPU takes the same host arrays; what it returns are CuPy arrays, which `.get()` fetches.
        Raises ArgumentError for arrays that do not fit the model, ImageError for too small an image.
        """
        pixels, ids = self._checked_inputs(pixels, token_ids)
        if selected is not None:
            selected = self._checked_selection(selected, pixels)
        return self._forward(pixels, ids, selected=selected, details=details)

    def _forward(self, pixels, ids, **more):
        delimiters = self.tokenizer.delimiters if self.tokenizer else PUBLISHED_DELIMITERS
        with self._device.computing():
            return forward(pixels, ids, delimiters, self.weights, self.config, **more)

    def clear(self) -> None:
        """Forget the features that `detect` keeps, and free their memory."""
        self._images.clear()
        self._texts.clear()

    def detect(self, image: Images, text: Text, *, threshold: float = 0.25, text_threshold: float = 0.25,
               size: Sequence[int] | None = None) -> Detections | list[Detections]:
        """Find what the text names.

        image: a path, a PIL image, a uint8 array [H, W, 3] in RGB, or a list of these (then a list comes back).
        text: "a cat. a remote control." or ["a cat", "a remote control"], for every image; a list of such lists is
        one prompt per image.
        threshold: boxes that score above it are kept; text_threshold: tokens above it make up `phrases`; size:
        (shortest, longest) edge in pixels to resize to instead of the checkpoint's.
        Raises ImageError, PromptError, ArgumentError, and CheckpointError if the model has no tokenizer.
        """
        for name, value in (("threshold", threshold), ("text_threshold", text_threshold)):
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value <= 1:
                raise ArgumentError(f"{name} is a probability from 0 to 1; got {value!r}")
        if not isinstance(image, (list, tuple)):
            prompt, = self._prompts(text, 1)
            return self._detect(image, prompt, float(threshold), float(text_threshold), size)
        prompts = self._prompts(text, len(image))
        return [self._detect(one, prompt, float(threshold), float(text_threshold), size)
                for one, prompt in zip(image, prompts)]

    def _detect(self, image, prompt, threshold, text_threshold, size):
        picture = images.open_image(image)
        pixels = images.preprocess(picture, self.settings, _checked_size(size))
        logits, boxes = self._answer(*self._checked_inputs(pixels, prompt.ids))
        if not np.isfinite(logits).all():
            raise CheckpointError(self._broken())
        return post_process(logits, boxes, prompt, self.tokenizer.decode, picture.size,
                            threshold, text_threshold, image)

    def _answer(self, pixels, ids):
        """`forward`, less the backbones that have seen this image or this prompt before -> logits, boxes on the host"""
        image, text = (*content_key(pixels), mode()), (*content_key(ids), mode())
        output = self._forward(pixels, ids, image_features=self._images.get(image), text_features=self._texts.get(text))
        self._images.put(image, output.image_features)
        self._texts.put(text, output.text_features)
        with self._device.computing():
            answer = np.concatenate([output.logits, output.boxes], axis=1)  # to leave the device in one piece
        return np.split(self._device.fetch(answer), [len(ids)], axis=1)

    def _broken(self):
        """Why the network's answer is no number."""
        bad = next((name for name, array in self.tensors.items() if not np.isfinite(array).all()), None)
        return (f"{self.source}: tensor {bad} holds NaN or infinity; download it again" if bad else
                f"{self.source}: numbers outgrew 32-bit floats inside the network; some weights must be damaged: "
                "download it again")

    def _prompts(self, text, n_images):
        if isinstance(text, (list, tuple)) and any(isinstance(t, (list, tuple)) for t in text):
            if len(text) != n_images:
                raise PromptError(f"got {len(text)} prompts for {n_images} image{'s' * (n_images != 1)}; "
                                  "give one list of phrases for all, or one list per image")
            return [self.tokenize(phrases) for phrases in text]
        return [self.tokenize(text)] * n_images

    def _checked_inputs(self, pixels, token_ids):
        pixels, ids = _array(pixels, "pixels"), _array(token_ids, "token_ids")
        if pixels.dtype != np.float32 or pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
            raise ArgumentError(f"pixels must be float32 [3, H, W], as preprocess() makes them; got {pixels.dtype} "
                                f"{list(pixels.shape)}")
        config, bert = self.config, self.config.text_config
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or not 1 <= len(ids) <= config.max_text_len:
            raise ArgumentError(f"token_ids must be 1 to {config.max_text_len} ints, as tokenize().ids; got "
                                f"{ids.dtype} {list(ids.shape)}")
        if ids.min() < 0 or ids.max() >= bert.vocab_size:
            raise ArgumentError(f"token_ids must lie in 0..{bert.vocab_size - 1}; got {ids.min()}..{ids.max()}")
        if len(ids) > bert.max_position_embeddings:
            raise ArgumentError(f"this model has {bert.max_position_embeddings} text positions; got {len(ids)} tokens")
        if (n := self._n_image_tokens(pixels)) < config.num_queries:
            raise ImageError(f"an image of {pixels.shape[2]} x {pixels.shape[1]} pixels after resizing gives {n} "
                             f"tokens, and this model chooses {config.num_queries} of them; use a larger `size`, or an "
                             "image that is less elongated")
        return np.ascontiguousarray(pixels), ids.astype(np.int64)

    def _checked_selection(self, selected, pixels):
        chosen, n, Q = _array(selected, "selected"), self._n_image_tokens(pixels), self.config.num_queries
        if chosen.shape != (Q,) or chosen.dtype.kind not in "iu" or not 0 <= chosen.min() <= chosen.max() < n:
            raise ArgumentError(f"selected must be {Q} image tokens in 0..{n - 1}; got {chosen.dtype} "
                                f"{list(chosen.shape)}")
        return chosen

    def _n_image_tokens(self, pixels):
        """S: pixels of all levels together."""
        stages = self.config.backbone_config.out_indices
        n = 0
        for level in range(self.config.num_feature_levels):
            stage = stages[level] if level < len(stages) else stages[-1] + level - len(stages) + 1
            stride = 2 ** (stage + 1)
            n += -(-pixels.shape[1] // stride) * -(-pixels.shape[2] // stride)
        return n


def load(source: str | Path | None = None, *, device: str = "cpu") -> Model:
    """Read a checkpoint: a directory, a .safetensors file with its config.json beside it, a model id such as
    "IDEA-Research/grounding-dino-tiny" (from the local hub cache, else downloaded once), or "shapes", the small
    checkpoint inside the package.

    Without a source, $MINIGDINO_MODEL names it, else it is grounding-dino-tiny.
    device: "cpu", "cuda" (the first GPU) or "cuda:N"; the weights are sent there once, now.
    Raises CheckpointError, ConfigError, ArgumentError.
    """
    find_device(device)  # before anything is downloaded or read
    source = source or default_source()
    if not isinstance(source, (str, os.PathLike)):
        raise ArgumentError(f"a model is named by a str or a path; got {type(source).__name__}")
    if source in EMBEDDED_MODELS:
        path = EMBEDDED / source
    else:
        path = hub.find(source) if hub.is_model_id(source) else Path(source)
    if not os.path.exists(path):  # unlike Path's own, it says no where it may not look
        raise CheckpointError(f"{source}: no such file or directory. A model is a directory with config.json, "
                              "model.safetensors and tokenizer.json, a .safetensors file in one, a model id "
                              '(owner/name), or "shapes"')
    directory = path if path.is_dir() else path.parent
    config = Config.from_file(directory / "config.json")
    return Model(read_checkpoint(path), config, tokenizer=Tokenizer.from_directory(directory),
                 settings=ImageSettings.from_directory(directory), source=source, device=device)


def default_source() -> str:
    """What `load` and `detect` read when nobody says: $MINIGDINO_MODEL, else grounding-dino-tiny."""
    return os.environ.get("MINIGDINO_MODEL") or hub.DEFAULT


_models: dict[tuple[str | os.PathLike, str], Model] = {}
_loading = threading.Lock()


def detect(image: Images, text: Text, *, model: str | Path | Model | None = None, threshold: float = 0.25,
           text_threshold: float = 0.25, size: Sequence[int] | None = None,
           device: str = "cpu") -> Detections | list[Detections]:
    """Find what the text names, in one call: `Model.detect` on a model that is loaded once and kept.

    model: a Model, or what `load` takes. The other arguments and errors are those of `load` and `Model.detect`.
    """
    if not isinstance(model, Model):
        key = model or default_source(), find_device(device).name
        if key not in _models:
            with _loading:  # one thread loads, the others wait for it; models that are there wait for nobody
                if key not in _models:
                    _models[key] = load(model, device=device)
        model = _models[key]
    return model.detect(image, text, threshold=threshold, text_threshold=text_threshold, size=size)


def _array(values, name):
    try:
        return np.asarray(values)
    except ValueError:
        raise ArgumentError(f"{name} must be an array; got rows of different lengths") from None


def _checked_size(size):
    if size is None:
        return None
    edges = list(size) if isinstance(size, (list, tuple)) else [size]
    whole = all(isinstance(edge, (int, np.integer)) and not isinstance(edge, bool) for edge in edges)
    if len(edges) != 2 or not whole or min(edges) < 1:
        raise ArgumentError(f"size is (shortest, longest) edge in pixels, for example (800, 1333); got {size!r}")
    return tuple(map(int, edges))
