"""Detect objects in images from a text prompt: `Model`, `load` and `detect`.

All arguments of the public functions are validated here. The network behind `Model.forward` assumes valid input.

H, W rows and columns of an image, T text tokens, Q queries, N detections.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, TypeGuard, Unpack, overload

import numpy as np
from PIL.Image import Image

from . import image as images
from . import tiles
from .cache import Cache, content_key
from .checkpoints import hub
from .checkpoints.config import Config
from .checkpoints.json_file import absolute, is_folder, status
from .checkpoints.parameters import random_tensors
from .checkpoints.published import suggestion
from .checkpoints.reading import read_directory
from .checkpoints.saving import save_checkpoint
from .checkpoints.weights import build, checked, first_non_finite, mapped_files, on_device
from .chunks import chunks
from .errors import ArgumentError, CheckpointError, Error, ImageError, PromptError, brief
from .extras import require
from .image import ImageSettings
from .missing import check_order
from .network.losses import Losses, losses, stages, total
from .network.matching import match
from .network.model import Output, forward
from .network.phrases import PUBLISHED_DELIMITERS
from .options import DetectOptions, Score, Threshold, checked_size
from .options import checked as checked_options
from .prompt import Prompt, Tokenizer
from .results import Detections, joined, post_process
from .runtime import precision as precisions
from .runtime.device import find_device
from .runtime.flops import image_tokens
from .runtime.kernels import mode, traced
from .targets import image_targets

EMBEDDED = Path(__file__).parent / "models"
EMBEDDED_MODELS = ("shapes",)  # as a str, these names take precedence over a folder of the same name
ATTRIBUTES = ("tensors", "config", "tokenizer", "settings", "source")  # of a loaded model; they can be assigned
IMAGE_CACHE = 2  # images whose features a model caches
TEXT_CACHE = 2**26  # bytes of text features; those of 256 prompts of 256 tokens in the published models

ImageLike: TypeAlias = "str | os.PathLike[str] | Image | np.ndarray | bytes | bytearray | BinaryIO"
Images: TypeAlias = "ImageLike | Sequence[ImageLike] | Iterator[ImageLike]"
Text: TypeAlias = "str | Sequence[str] | Sequence[Sequence[str]]"
Result: TypeAlias = "Detections | ImageError"


class LoadAndDetectOptions(DetectOptions, total=False):
    """Options of `detect` that do not change the type of its result."""

    model: str | Path | Model | None
    device: str


class Model:
    """A loaded checkpoint that detects objects. Several threads may share one model.

    Create a model with `load` (a checkpoint) or `Model.random` (random weights). `Model(...)` takes the tensors
    themselves.

    `detect` caches backbone features of the 2 images used most recently, and 64 MiB of text features. These are enough
    for 256 prompts of 256 tokens, or a list of some 15,000 phrases. A new prompt for a cached image skips the image
    backbone. A new image with a cached prompt skips BERT. Results do not depend on the caches. `clear` empties them.
    `forward` does not use them, nor does `detect` while `minigdino.trace` records.

    A model can be pickled. A loaded one is loaded again from its path, so that processes share the mapped weights; any
    other is pickled with its tensors. Settings or a tokenizer that you assigned are pickled too. `copy.copy` and
    `copy.deepcopy` share the weights, but not the caches.

    The tensors of a model must not be changed. Create a new model for other tensors.

    Args:
        tensors: {published name: array} on the host, float32. 16-bit floats are converted.
        config: geometry of the model.
        tokenizer: tokenizer of the checkpoint. Without one, only `forward` works.
        settings: image settings of the checkpoint; None for those of the published checkpoints.
        source: origin of the tensors, used in error messages.
        device: "cpu", "cuda" (the first GPU) or "cuda:N".
        precision: precision of the matrix products, as in `load`.

    Attributes:
        tensors: the tensors under their published names, on the host. Those of layers are read-only.
        weights: the tensors as a tree of layers, on the device.
        config: geometry of the model.
        tokenizer: the tokenizer, or None.
        settings: the image settings.
        source: origin of the tensors.
        device: "cpu" or "cuda:N".
        precision: "highest", "high" or "medium".

    Raises:
        CheckpointError: if a tensor is missing, unknown, or does not fit `config`.
        ArgumentError: if the device is not available, or an argument has the wrong type.
    """

    _loaded_from: tuple | None = None  # arguments of `_load` but the precision; None for a model that was not loaded
    _as_loaded: dict  # attributes that `_load` set; others may be assigned later

    def __init__(self, tensors: dict[str, np.ndarray], config: Config, *, tokenizer: Tokenizer | None = None,
                 settings: ImageSettings | None = None, source: str | Path = "tensors", device: str = "cpu",
                 precision: str | None = None):
        named = isinstance(tensors, Mapping) and all(isinstance(name, str) for name in tensors)
        if not named or not all(isinstance(array, (np.ndarray, np.generic)) for array in tensors.values()):
            raise ArgumentError(f"tensors must be a dict from names to NumPy arrays; got {brief(tensors)}")
        _check_type(config, "config", Config)
        _check_type(tokenizer, "tokenizer", Tokenizer, optional=True)
        _check_type(settings, "settings", ImageSettings, optional=True)
        self._device, self.precision = find_device(device), precision
        self.tensors = checked(tensors, config, source)
        self.weights = on_device(build(self.tensors, config), self._device.send)
        self._files = mapped_files(self.weights)
        self._finite = False  # True once the tensors that `_check_finite` reads are known to be finite
        self.config, self.source, self.device = config, source, self._device.name
        self.tokenizer, self.settings = tokenizer, settings or ImageSettings()
        self._image_cache, self._text_cache = _caches()

    @property
    def precision(self) -> str:
        """Precision of the matrix products: "highest", "high" or "medium"."""
        return self._precision

    @precision.setter
    def precision(self, precision: str | None) -> None:
        """Set the precision, as in `load`.

        Args:
            precision: the precision; None for the default.

        Raises:
            ArgumentError: for any other value.
        """
        self._precision = precisions.checked(precision)

    def __repr__(self) -> str:
        return f"Model({self.config.model_type}, {str(self.source)!r})"

    def __copy__(self) -> Model:
        new = object.__new__(type(self))
        new.__dict__ |= self.__dict__
        new._image_cache, new._text_cache = _caches()
        return new

    def __deepcopy__(self, memo) -> Model:
        return copy.copy(self)  # nothing but the caches ever changes

    def __reduce__(self):
        if self._loaded_from:
            now = {name: getattr(self, name) for name in self._as_loaded}
            assigned = {name: value for name, value in now.items() if value is not self._as_loaded[name]}
            return _load, (*self._loaded_from, self.precision), assigned or None
        return partial(type(self), tokenizer=self.tokenizer, settings=self.settings, source=self.source,
                       device=self.device, precision=self.precision), (self.tensors, self.config)

    @classmethod
    def random(cls, config: Config | None = None, seed: int = 0, *, tokenizer: Tokenizer | None = None,
               settings: ImageSettings | None = None, device: str = "cpu", precision: str | None = None) -> Model:
        """Create a model with random weights, for tests and for teaching.

        Every parameter has a scale at which it affects the output. The detections have no meaning.

        Args:
            config: geometry of the model; None for grounding-dino-tiny.
            seed: seed of the random weights.
            tokenizer: as in `Model`; without one, only `forward` works.
            settings: as in `Model`.
            device: as in `Model`.
            precision: as in `load`.

        Returns:
            The model.

        Raises:
            ArgumentError: if the device is not available, or an argument has the wrong type.
        """
        config = Config() if config is None else config
        _check_type(config, "config", Config)
        try:
            generator = np.random.default_rng(seed)
        except Exception as error:  # NumPy's for a seed that it does not accept
            raise ArgumentError(f"seed must be an int that is not negative; got {brief(seed)} "
                                f"({brief(error)})") from None
        tensors = random_tensors(config, generator)
        return cls(tensors, config, tokenizer=tokenizer, settings=settings, source="random", device=device,
                   precision=precision)

    def save(self, directory: str | Path) -> None:
        """Write the model as a directory that `load` and transformers can read.

        An existing checkpoint in the directory is replaced. Every file is written under another name and then renamed.
        So no reader sees part of a file, and processes that have mapped the old weights keep them. Other files in the
        directory stay, such as a tokenizer if the model has none.

        Saves into one directory wait for each other, for up to a minute. This needs file locks, which Windows and some
        network file systems lack. A save removes the temporary folders of killed ones. Without locks, it removes only
        those that `load` refuses, once they are a minute old.

        A save that fails leaves the old checkpoint in place. It puts back the files that it has replaced, by means of
        hard links. If a file system or its rules forbid these links, the error says so.

        While its files replace the old ones, a save has a folder `.minigdino-moving-*` in the directory. `load` waits
        for its end, and refuses the directory if the save was interrupted. The metadata of the weights holds
        config.json too. `load` refuses the two if they belong to different models.

        Args:
            directory: folder to write to; created if it does not exist.

        Raises:
            CheckpointError: if the directory cannot be written, another save into it does not end, or a mapped weight
                file has changed.
        """
        _check_type(directory, "directory", (str, os.PathLike))
        _check_type(os.fspath(directory), "directory", str)
        self._check_files()
        save_checkpoint(directory, self.tensors, self.config, self.settings.to_dict(), self.tokenizer)

    def preprocess(self, image: ImageLike, *, size: Sequence[int] | None = None) -> np.ndarray:
        """Open, resize and normalise an image, with the settings of the checkpoint.

        Args:
            image: one image, as in `detect`.
            size: (shortest, longest) edge in pixels, instead of the checkpoint's. The shorter edge becomes `shortest`,
                or less if the longer edge would exceed `longest`. With shortest >= longest, the longer edge always
                becomes `longest`, up to rounding.

        Returns:
            pixels [3, H, W] float32, the input of `forward`.

        Raises:
            ImageError: if the image cannot be read, or its size after resizing is not usable.
            ArgumentError: if `size` is invalid.
        """
        return images.preprocess(images.open_image(image), self.settings, checked_size(size))

    def tokenize(self, text: str | Sequence[str]) -> Prompt:
        """Tokenize a prompt.

        Args:
            text: a str with phrases that end in dots, such as "a cat. a remote control.", or a list of phrases.

        Returns:
            A `Prompt`: token ids [T] from [CLS] to [SEP], the phrases, and the span of tokens of each phrase.

        Raises:
            PromptError: if the prompt has no phrase, is too long, or is ambiguous (see `Tokenizer.encode`).
            CheckpointError: if the model has no tokenizer, or a corrupted one.

        Warns:
            PromptWarning: if a word is unknown, or a phrase seems to be several ones (see `Tokenizer.encode`).
        """
        prompt = self._checked_tokens(self._tokenizer().encode(text))
        if len(prompt.ids) > self.config.max_text_len:
            advice = ("Give its phrases as a list (on the command line, by --phrase or --phrases), which detect() "
                      "splits over several prompts" if isinstance(text, str)
                      else "Use fewer phrases; only detect() splits a list over several prompts")
            raise PromptError(f"a prompt must have at most {self.config.max_text_len} tokens for this model; got "
                              f"{len(prompt.ids)}. {advice}")
        return prompt

    def _tokenizer(self):
        if self.tokenizer is None:
            raise CheckpointError(f"{self.source}: tokenizing text needs tokenizer.json or vocab.txt; the model has "
                                  "neither. Copy one of them from the published checkpoint to the model's directory. "
                                  "forward() works without one")
        return self.tokenizer

    def _checked_tokens(self, prompt):
        if max(prompt.ids) >= (n := self.config.text_config.vocab_size):
            raise CheckpointError(f"{self.source}: the vocabulary must have at most {n} tokens, as in config.json; the "
                                  f"tokenizer gives the id {max(prompt.ids)}. Download the checkpoint again")
        return prompt

    def forward(self, pixels: np.ndarray, token_ids: Sequence[int] | np.ndarray, *,
                selected: Sequence[int] | np.ndarray | None = None, details: bool = False) -> Output:
        """Run the network: one forward pass, without preprocessing, thresholds or caches.

        Args:
            pixels: [3, H, W] float32, normalised, on the host, as `preprocess` returns them.
            token_ids: [T] ints from [CLS] to [SEP], as in `tokenize(text).ids`.
            selected: [Q] indices of image tokens, best first, to use instead of the model's own query selection.
            details: whether to compute the optional fields of `Output` too, such as the logits and boxes of every
                decoder layer and of every image token.

        Returns:
            An `Output`, with logits [Q, T], boxes [Q, 4] as (cx, cy, w, h) in fractions of the image, and intermediate
            results. For a model on a GPU these are CuPy arrays; `.get()` copies one to the host.

        Raises:
            ArgumentError: if an array has a wrong dtype, shape or range.
            ImageError: if the image has fewer image tokens than the model has queries.
            CheckpointError: if a mapped weight file has changed since it was loaded.
        """
        _check_type(details, "details", (bool, np.bool_))
        pixels, ids = self._checked_inputs(pixels, token_ids)
        if selected is not None:
            selected = self._checked_selection(selected, pixels)
        return self._forward(pixels, ids, selected=selected, details=details)

    def _forward(self, pixels, ids, **more):
        delimiters = self.tokenizer.delimiters if self.tokenizer else PUBLISHED_DELIMITERS
        self._check_files()
        with self._device.computing(), precisions.computing(self.precision):
            output = forward(pixels, ids, delimiters, self.weights, self.config, **more)
        self._check_files()  # during the pass, too
        return output

    def _check_files(self):
        for file in self._files:
            file.check()

    def loss(self, image: ImageLike, phrases: str | Sequence[str], boxes: Sequence[Sequence[float]] | np.ndarray,
             labels: Sequence[str | int] | np.ndarray, *, size: Sequence[int] | None = None,
             details: bool = False) -> Losses:
        """Compute the training loss for one annotated image, without gradients or caches.

        Boxes are clipped to the image. An image without boxes is valid: all its queries should then have low scores.

        Args:
            image: one image, as in `detect`.
            phrases: the prompt, as in `tokenize`. It may name objects that the image does not contain.
            boxes: [N, 4] annotated boxes, (left, top, right, bottom) in pixels of the original image.
            labels: for each box, one of the phrases or its index.
            size: as in `detect`.
            details: whether the result has the matches and their costs too.

        Returns:
            `Losses`: the total, and each of its terms.

        Raises:
            ArgumentError: if boxes and labels do not fit together, a box has no area inside the image, a label is no
                phrase of the prompt, or SciPy is not installed.
            ImageError: as in `detect`.
            PromptError: as in `tokenize`.
            CheckpointError: as in `detect`.

        Warns:
            PromptWarning: as `tokenize` does.
        """
        _check_type(details, "details", (bool, np.bool_))
        require("scipy.optimize", "a loss", "scipy")  # before the forward pass, which takes seconds
        prompt, picture = self.tokenize(phrases), images.open_image(images.read_file(image))
        targets = image_targets(boxes, labels, prompt, picture.size, phrases)
        pixels = images.preprocess(picture, self.settings, checked_size(size))
        output = self._forward(*self._checked_inputs(pixels, prompt.ids), details=True)
        with self._device.computing():
            predictions = {stage: tuple(map(self._device.fetch, prediction))
                           for stage, prediction in stages(output, self.config.auxiliary_loss).items()}
        for prediction in predictions.values():
            self._check_finite(*prediction)
        matches, costs = match(predictions, targets, self.config)
        terms = losses(predictions, targets, matches, self.config)
        values = {name: float(value) for name, value in terms.items()}
        return Losses(float(total(terms, self.config)), values, *((matches, costs) if details else ()))

    def clear(self) -> None:
        """Empty the caches of backbone features, and free their memory."""
        self._image_cache.clear()
        self._text_cache.clear()

    # A str is also a sequence of str, and a file an iterator of bytes; the first overload that fits applies.
    @overload
    def detect(self, image: ImageLike, text: Text, *,  # type: ignore[overload-overlap]
               errors: Literal["raise"] = ..., **options: Unpack[DetectOptions]) -> Detections: ...

    @overload
    def detect(self, image: ImageLike, text: Text, *,  # type: ignore[overload-overlap]
               errors: Literal["return"], **options: Unpack[DetectOptions]) -> Result: ...

    @overload
    def detect(self, image: Sequence[ImageLike], text: Text, *, errors: Literal["raise"] = ...,
               **options: Unpack[DetectOptions]) -> list[Detections]: ...

    @overload
    def detect(self, image: Sequence[ImageLike], text: Text, *, errors: Literal["return"],
               **options: Unpack[DetectOptions]) -> list[Result]: ...

    @overload
    def detect(self, image: Iterator[ImageLike], text: Text, *, errors: Literal["raise"] = ...,
               **options: Unpack[DetectOptions]) -> Iterator[Detections]: ...

    @overload
    def detect(self, image: Iterator[ImageLike], text: Text, *, errors: Literal["return"],
               **options: Unpack[DetectOptions]) -> Iterator[Result]: ...

    def detect(self, image: Images, text: Text, *, threshold: Threshold = 0.25, text_threshold: float = 0.25,
               size: Sequence[int] | None = None, errors: Literal["raise", "return"] = "raise",
               chunk: int | None = None, score: Score = "max", max_area: float | None = None, nms: float | None = None,
               class_agnostic: bool = False, max_detections: int | None = None, tile: int | None = None,
               ) -> Result | list[Detections] | list[Result] | Iterator[Result]:
        """Detect the objects that a prompt names.

        The images of a list or an iterator are processed one by one, so a result does not depend on the other images.
        Results of an iterator are lazy: each image is taken from it when its result is requested, and then released,
        except by `Detections.image`. All other arguments are checked at the call.

        The filters apply in this order: `threshold`, `max_area`, `nms`, `max_detections`.

        Args:
            image: one image, a list of images, or an iterator of images, such as a generator. An image is one of

                - a path;
                - a str that starts with `http://` or `https://`, downloaded from a public address (see below);
                - a PIL image of any mode;
                - a uint8 array [H, W, 3] in RGB order;
                - the contents of an image file, as `bytes`, a `bytearray` or an `io.BytesIO`;
                - a binary file object, which is read from its position to its end, and not closed.

                An EXIF orientation is applied, that of a file and that of a PIL image. So `Image.open(path)` gives the
                result of the path, and boxes are in pixels of the upright image. A PIL image that you have rotated must
                have no orientation any more; `PIL.ImageOps.exif_transpose` rotates and removes it.

                A download has at most 100 MB, 30 seconds and 5 redirects, and uses no proxy. Private and local
                addresses are refused, unless the environment variable `MINIGDINO_PRIVATE_URLS` is 1.
            text: the prompt, one of

                - a str with phrases that end in dots: "a cat. a remote control.";
                - a list of phrases: ["a cat", "a remote control"];
                - one list of phrases per image: [["a cat"], ["a dog", "a hat"]]. An iterator of images has one prompt
                  for all.

                A list may have any number of phrases. If they have more tokens than a prompt may have, they are split
                over several prompts, with a forward pass for each; the image backbone runs once. Scores depend on the
                other phrases of a prompt.
            threshold: score that a detection must exceed, 0 to 1; or a dict from phrases of the prompt to such scores,
                where other phrases have 0.25.
            text_threshold: probability that a token must exceed to become part of `Detections.phrases`, 0 to 1. It does
                not affect labels.
            size: (shortest, longest) edge in pixels to which images are resized, instead of the checkpoint's.
            errors: how to handle an image that cannot be used.

                - "raise": raise its ImageError.
                - "return": return its ImageError in place of its detections. All other errors are raised, also those
                  of an iterator.
            chunk: largest number of phrases of a prompt, for a list of phrases; None for as many as fit.
            score: how the probabilities of tokens become the score of a detection.

                - "max": the highest probability of any token of the prompt.
                - "mean": the mean probability of the tokens of a phrase, for the phrase with the highest one, which is
                  the label. The evaluations of the papers score phrases in this way.
            max_area: largest fraction of the image that a box may cover, above 0 and at most 1.
            nms: non-maximum suppression: a detection is removed if its box overlaps that of a kept one with the same
                label and a higher score by an intersection over union of more than this, 0 to 1.
            class_agnostic: whether `nms` removes detections with another label, too.
            max_detections: largest number of detections of an image; those with the highest scores are kept.
            tile: side in pixels, at least 64, of square tiles in which small objects are searched, in addition to the
                whole image. Tiles overlap by a quarter or more. Boxes that end at the inner edge of a tile are
                removed. All boxes are merged with `nms`, which is then 0.5 by default. Each tile is resized as an image
                is, and takes a forward pass per prompt.

        Returns:
            The detections, with boxes [N, 4] in pixels of the original image, by descending score. `label_ids` are
            indices in the whole list of phrases. For a list of images, a list of `Detections`; for an iterator, an
            iterator. `Detections.image` is the image as given, or the bytes of a file object or a URL.

        Raises:
            ImageError: if an image cannot be read, or is too small or too elongated for the model.
            PromptError: if a prompt has no phrase or is ambiguous, a str or a phrase is too long, or there is not one
                prompt per image.
            ArgumentError: if another argument is invalid, a threshold is that of no phrase, or image and text are
                swapped.
            CheckpointError: if the model has no tokenizer, its weights give a non-finite output, or a mapped weight
                file has changed since it was loaded.

        Warns:
            PromptWarning: as `tokenize` does, once per prompt.
        """
        options = checked_options(threshold=threshold, text_threshold=text_threshold, size=size, chunk=chunk,
                                  score=score, max_area=max_area, nms=nms, class_agnostic=class_agnostic,
                                  max_detections=max_detections, tile=tile)
        if not isinstance(errors, str) or errors not in ("raise", "return"):
            raise ArgumentError(f'errors must be "raise" or "return"; got {brief(errors)}')
        check_order(image, text)
        self.settings.target(64, 48, options.size)  # an edge out of range is not an error of an image
        detect_one = partial(self._detect, options=options, errors=errors)
        if _is_iterator(image):  # `map` keeps no image, unlike a generator with a loop
            return map(detect_one, image, self._tokenize_all(text, None, options))
        if isinstance(image, (list, tuple)):
            return list(map(detect_one, image, self._tokenize_all(text, len(image), options)))
        return detect_one(image, next(iter(self._tokenize_all(text, 1, options))))

    def _detect(self, image, prompts, options, errors):
        try:
            image = images.read_file(image)
            picture = images.open_image(image)
            parts = tiles.views(picture.size, options.tile)
            found = tiles.merged(((part, self._detect_in(picture, part, prompts, options)) for part in parts),
                                 picture.size)
        except ImageError as error:
            if errors == "raise":
                raise
            return type(error)(*error.args)  # without the traceback, which holds the image
        return replace(options.select(found), image=image)

    def _detect_in(self, picture, part, prompts, options):
        """Detect in a part of a picture. Boxes are in pixels of the part."""
        assert self.tokenizer is not None  # it made the prompts
        view = picture if part.size == picture.size else picture.crop(part)
        pixels = images.preprocess(view, self.settings, options.size)
        found, first = [], 0
        for prompt, (logits, boxes) in zip(prompts, self._predict(pixels, [prompt.ids for prompt in prompts])):
            found.append((post_process(logits, boxes, prompt, self.tokenizer.decode, part.size,
                                       options.thresholds(prompt.phrases), options.text_threshold,
                                       score=options.score), first))
            first += len(prompt.phrases)
        return joined(found)

    def _predict(self, pixels, prompts):
        """Forward passes of an image with cached backbone features: yields logits [Q, T] and boxes [Q, 4] of each.

        They are finite, or it raises CheckpointError. The image backbone runs at most once, also while a trace records.
        """
        kind = mode(), self.precision
        cached = not traced()  # features of opened references differ from those of twins in the last bits
        image_key = (*content_key(pixels), *kind) if cached else None
        image_features = self._image_cache.get(image_key) if cached else None
        for token_ids in prompts:
            pixels, ids = self._checked_inputs(pixels, token_ids)
            text_key = (*content_key(ids), *kind)
            output = self._forward(pixels, ids, image_features=image_features,
                                   text_features=self._text_cache.get(text_key) if cached else None)
            image_features = output.image_features
            if cached:
                self._image_cache.put(image_key, image_features)
                self._text_cache.put(text_key, output.text_features)
            with self._device.computing():
                both = np.concatenate([output.logits, output.boxes], axis=1)  # one copy from the device, not two
            logits, boxes = np.split(self._device.fetch(both), [len(ids)], axis=1)
            self._check_finite(logits, boxes)
            yield logits, boxes

    def _check_finite(self, logits, boxes):
        """Refuse an output with NaN or infinity, and weights that could have changed it without a trace."""
        is_finite = np.isfinite(logits).all() and np.isfinite(boxes).all()
        if is_finite and self._finite:
            return
        self._check_weights(hidden=is_finite)
        if not is_finite:
            raise CheckpointError(f"{self.source}: the network's output must be finite; it overflowed float32, so some "
                                  "weights are probably corrupted. Download the checkpoint again")
        self._finite = True

    def _check_weights(self, hidden=False):
        """Refuse weights with NaN or infinity, in all tensors or in those of which the output may show none."""
        if bad := first_non_finite(self.tensors, hidden):
            raise CheckpointError(f"{self.source}: weights must be finite; tensor {bad} holds NaN or infinity. "
                                  "Download the checkpoint again")

    def _tokenize_all(self, text, n_images, options):
        """An iterable of the prompts of each image. The number of images is None if it is unknown."""
        differ = isinstance(text, (list, tuple)) and any(isinstance(t, (list, tuple)) for t in text)
        if differ and n_images is None:
            raise PromptError("expected one prompt for all images of an iterator; got one list of phrases per "
                              "image. Give a list of images, or call detect for each image")
        if differ and len(text) != n_images:
            raise PromptError("expected one list of phrases for all images, or one list per image; got "
                              f"{len(text)} prompt{'s' * (len(text) != 1)} for {n_images} "
                              f"image{'s' * (n_images != 1)}")
        found = [prompts(self, phrases, options.chunk) for phrases in (text if differ else [text])]
        options.check_phrases(phrase for of_image in found for prompt in of_image for phrase in prompt.phrases)
        return found if differ else itertools.repeat(found[0])

    def _checked_inputs(self, pixels, token_ids):
        pixels, ids = _array(pixels, "pixels"), _array(token_ids, "token_ids")
        if pixels.dtype != np.float32 or pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
            raise ArgumentError(f"pixels must be float32 [3, H, W], as preprocess() returns them; got {pixels.dtype} "
                                f"{list(pixels.shape)}")
        config, bert = self.config, self.config.text_config
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or not 1 <= len(ids) <= config.max_text_len:
            raise ArgumentError(f"token_ids must be a 1-D array of 1 to {config.max_text_len} ints, as in "
                                f"tokenize(text).ids; got {ids.dtype} {list(ids.shape)}")
        if ids.min() < 0 or ids.max() >= bert.vocab_size:
            raise ArgumentError(f"token_ids must be in 0..{bert.vocab_size - 1}; got {ids.min()}..{ids.max()}")
        if len(ids) > bert.max_position_embeddings:
            raise ArgumentError(f"token_ids must have at most {bert.max_position_embeddings} elements, the text "
                                f"positions of this model; got {len(ids)}. Use a shorter prompt")
        if (n := image_tokens(config, *pixels.shape[1:])) < config.num_queries:
            height, width = pixels.shape[1:]
            raise ImageError(f"an image must give at least {config.num_queries} image tokens, one per query, and so "
                             f"must each of its tiles; {width} x {height} pixels after resizing give {n}. Use a larger "
                             "`size`, or an image that is less elongated")
        return np.ascontiguousarray(pixels), ids.astype(np.int64)

    def _checked_selection(self, selected, pixels):
        selected, Q = _array(selected, "selected"), self.config.num_queries
        n = image_tokens(self.config, *pixels.shape[1:])
        expected = f"selected must be {Q} indices of image tokens, in 0..{n - 1}"
        if selected.shape != (Q,) or selected.dtype.kind not in "iu":
            raise ArgumentError(f"{expected}; got {selected.dtype} {list(selected.shape)}")
        if not 0 <= selected.min() <= selected.max() < n:
            raise ArgumentError(f"{expected}; got {selected.min()}..{selected.max()}")
        return selected


def prompts(model: Model, text: str | Sequence[str], chunk: int | None = None) -> list[Prompt]:
    """Tokenize the text for an image, as `Model.detect` does: a list of phrases may become several prompts.

    Args:
        model: the model.
        text: a str, or a list of phrases.
        chunk: as in `Model.detect`.

    Returns:
        The prompts, as from `chunks.chunks`.

    Raises:
        PromptError: as `Model.detect` does.
        ArgumentError: if there is a `chunk` for a str.
        CheckpointError: as `Model.tokenize` does.

    Warns:
        PromptWarning: as `Model.tokenize` does.
    """
    if isinstance(text, (list, tuple)):
        return [model._checked_tokens(prompt)
                for prompt in chunks(text, model._tokenizer(), model.config.max_text_len, chunk)]
    if chunk is not None:
        raise ArgumentError(f"chunk needs the phrases of the prompt as a list; got {brief(text)}. Give a list")
    return [model.tokenize(text)]


def load(source: str | Path | None = None, *, device: str = "cpu", mmap: bool = True,
         precision: str | None = None) -> Model:
    """Load a checkpoint. Weights in float32 are memory-mapped, so processes on one machine share them.

    A mapped file must not change while the model is in use. Replace it by renaming, as `Model.save` does: the model
    keeps the old file. Each forward pass checks size and modification time. A file that is truncated during a pass ends
    the process with SIGBUS. With `mmap=False`, later changes have no effect.

    Args:
        source: one of

            - a directory with `config.json`, the weights (one or several safetensors files) and `tokenizer.json` or
              `vocab.txt`;
            - a .safetensors file, with the other files in the same directory;
            - a model id such as "IDEA-Research/grounding-dino-tiny", read from the local hub cache, or downloaded
              once. The thirteen published models have short names, such as "grounding-dino-tiny". A file or folder
              of that name takes precedence;
            - "shapes", the small checkpoint inside the package;
            - None, for $MINIGDINO_MODEL if it is set, else "IDEA-Research/grounding-dino-tiny".

        device: "cpu", "cuda" (the first GPU) or "cuda:N". The weights are copied to a GPU once, by this call.
        mmap: whether to map the weights. Without it, they are read into memory, which each process then needs.
        precision: precision of the matrix products on a CPU; None for $MINIGDINO_PRECISION if it is set, else
            "highest". All other steps stay in float32.

            - "highest": float32.
            - "high": about 16 bits of each factor.
            - "medium": bfloat16, 8 bits of each factor.

            Sums are in float32. Lower precisions are faster on CPUs with tile instructions (AMX), and "medium" on AMD
            CPUs with AVX512-BF16. Products with few rows, and the scores and sums of attention, stay in float32. Where
            a precision has no instructions, on a GPU, and with `use("reference")`, all products do.

    Returns:
        The model.

    Raises:
        CheckpointError: if the checkpoint is missing or corrupted, cannot be downloaded, or does not match its
            `config.json`.
        ConfigError: if `config.json` has unsupported or inconsistent values.
        ArgumentError: if `source` is not a str or a path, the device is not available, or the precision is unknown.
    """
    find_device(device)  # fail before anything is downloaded or read
    _check_type(mmap, "mmap", bool)
    precision = precisions.checked(precision)
    source = _checked_source(source)
    if source in EMBEDDED_MODELS:
        return _load(source, source, device, mmap, precision)
    place = hub.find(str(source)) if hub.is_model_id(source) else Path(source)
    try:
        return _load(place, source, device, mmap, precision)
    except Error as error:
        if not (hidden := hub.hidden(source)):
            raise
        reason = str(error).rstrip(".")
        raise type(error)(f"{reason}. {str(source)!r} exists in the working directory, so it was not read as the short "
                          f"name of a published model. For that, give its id: {hidden}") from None


def _load(place, source, device, mmap, precision):
    """Load the checkpoint at a path, or the embedded one of a name. Unpickling a model calls this, too."""
    path = EMBEDDED / place if place in EMBEDDED_MODELS else place
    if status(path) is None:
        raise CheckpointError(f"{source}: {_why_missing(source)} A model must be a directory with config.json, "
                              "model.safetensors and tokenizer.json, a .safetensors file in such a directory, a model "
                              'id (owner/name) or its short name (`minigdino models` lists them), or "shapes"')
    directory = path if is_folder(path) else path.parent
    try:
        tensors, config, tokenizer, settings = read_directory(path, directory, mmap)
        model = Model(tensors, config, tokenizer=tokenizer, settings=settings, source=source, device=device,
                      precision=precision)
    except MemoryError:
        raise CheckpointError(f"{source}: loading needs more memory than there is. Use a machine with more memory; "
                              "float32 weights with mmap=True need the least") from None
    if place not in EMBEDDED_MODELS:  # absolute, because another process may have another working directory
        place = Path(absolute(directory)) / path.relative_to(directory)
    model._loaded_from = place, source, model.device, mmap
    model._as_loaded = {name: getattr(model, name) for name in ATTRIBUTES}
    return model


def _why_missing(source):
    """Part of a message: whether a source that does not exist was read as a path or as a name."""
    text = os.fspath(source)
    if (full := os.path.expanduser(text)) != text:
        return f'no such file or directory; "~" is not expanded. Give the full path, {full!r}.'
    if isinstance(source, Path) or re.search(r"[/\\]|\.safetensors$", text):
        return "no such file or directory. It was read as a path, because it is no model id."
    return f"no such file or directory, and no published model has this name.{suggestion(text)}"


def default_source() -> str:
    """Return the default source of `load` and `detect`: $MINIGDINO_MODEL if it is set, else grounding-dino-tiny."""
    return os.environ.get("MINIGDINO_MODEL") or hub.DEFAULT


_models: dict[tuple, Model] = {}  # {(source, device, precision): model}
# For each model that is being loaded: a lock, and type and arguments of the error if loading fails. The error itself
# would keep the frames of the load.
_loading: dict[tuple, tuple[threading.RLock, list[tuple[type[Error], tuple]]]] = {}

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_loading.clear)  # the threads that hold these locks are not in the child


# See the comment above Model.detect.
@overload
def detect(image: ImageLike, text: Text, *,  # type: ignore[overload-overlap]
           errors: Literal["raise"] = ..., **options: Unpack[LoadAndDetectOptions]) -> Detections: ...


@overload
def detect(image: ImageLike, text: Text, *,  # type: ignore[overload-overlap]
           errors: Literal["return"], **options: Unpack[LoadAndDetectOptions]) -> Result: ...


@overload
def detect(image: Sequence[ImageLike], text: Text, *, errors: Literal["raise"] = ...,
           **options: Unpack[LoadAndDetectOptions]) -> list[Detections]: ...


@overload
def detect(image: Sequence[ImageLike], text: Text, *, errors: Literal["return"],
           **options: Unpack[LoadAndDetectOptions]) -> list[Result]: ...


@overload
def detect(image: Iterator[ImageLike], text: Text, *, errors: Literal["raise"] = ...,
           **options: Unpack[LoadAndDetectOptions]) -> Iterator[Detections]: ...


@overload
def detect(image: Iterator[ImageLike], text: Text, *, errors: Literal["return"],
           **options: Unpack[LoadAndDetectOptions]) -> Iterator[Result]: ...


def detect(image: Images, text: Text, *, model: str | Path | Model | None = None, threshold: Threshold = 0.25,
           text_threshold: float = 0.25, size: Sequence[int] | None = None, device: str = "cpu",
           errors: Literal["raise", "return"] = "raise", chunk: int | None = None, score: Score = "max",
           max_area: float | None = None, nms: float | None = None, class_agnostic: bool = False,
           max_detections: int | None = None, tile: int | None = None,
           ) -> Result | list[Detections] | list[Result] | Iterator[Result]:
    """Detect the objects that a prompt names, in one call. A model is loaded once per process, source and device.

    $MINIGDINO_PRECISION sets the precision, as in `load`. After a CheckpointError, the next call loads the model again.
    Threads that wait for a load share its error.

    Args:
        image: as in `Model.detect`.
        text: as in `Model.detect`.
        model: a `Model`, or a source as in `load`.
        threshold: as in `Model.detect`.
        text_threshold: as in `Model.detect`.
        size: as in `Model.detect`.
        device: as in `load`. Ignored if `model` is a `Model`.
        errors: as in `Model.detect`.
        chunk: as in `Model.detect`.
        score: as in `Model.detect`.
        max_area: as in `Model.detect`.
        nms: as in `Model.detect`.
        class_agnostic: as in `Model.detect`.
        max_detections: as in `Model.detect`.
        tile: as in `Model.detect`.

    Returns:
        The detections; for a list of images, a list of `Detections`; for an iterator of images, an iterator.

    Raises:
        Error: as `load` and `Model.detect` do.

    Warns:
        PromptWarning: as `Model.detect` does.
    """
    options: dict[str, Any] = {"threshold": threshold, "text_threshold": text_threshold, "size": size, "errors": errors,
                               "chunk": chunk, "score": score, "max_area": max_area, "nms": nms,
                               "class_agnostic": class_agnostic, "max_detections": max_detections, "tile": tile}
    if isinstance(model, Model):
        return model.detect(image, text, **options)
    key = _checked_source(model), find_device(device).name, precisions.checked(None)
    with _loaded_again_after_error(key):
        found = _loaded(key).detect(image, text, **options)
    return _Guarded(found, key) if isinstance(found, Iterator) else found


class _Guarded(Iterator):
    """Results of an iterator. Unlike a generator, it goes on after an error."""

    def __init__(self, results, key):
        self._results, self._key = results, key

    def __next__(self):
        with _loaded_again_after_error(self._key):
            return next(self._results)


@contextlib.contextmanager
def _loaded_again_after_error(key):
    """Forget a model after a CheckpointError, because the checkpoint may be repaired before the next call."""
    try:
        yield
    except CheckpointError:
        _models.pop(key, None)
        raise


def _loaded(key):
    """The model of a source, device and precision, loaded by the first thread that needs it. All share the result."""
    if (model := _models.get(key)) is not None:
        return model
    lock, failed = entry = _loading.setdefault(key, (threading.RLock(), []))
    with lock:  # threads that need another model do not wait
        try:
            if (model := _models.get(key)) is None:
                for kind, args in failed:
                    raise kind(*args)
                model = _models[key] = load(key[0], device=key[1], precision=key[2])
        except Error as error:  # not the exception of a signal handler, which is of no concern to other threads
            failed.append((type(error), error.args))
            raise
        finally:
            if _loading.get(key) is entry:
                _loading.pop(key, None)
    return model


def _checked_source(source):
    source = default_source() if source is None else source
    if not isinstance(source, (str, os.PathLike)) or not isinstance(os.fspath(source), str):
        raise ArgumentError(f"a model must be a str or a path; got {type(source).__name__}")
    if not os.fspath(source):
        raise ArgumentError("a model must be a path, a model id or a name; got an empty text. Omit it for the default")
    return hub.resolved(source) if isinstance(source, str) else Path(source)


def _caches():
    """New caches of image and of text features."""
    return Cache(IMAGE_CACHE), Cache(TEXT_CACHE, lambda features: features.nbytes)


def _is_iterator(image: Images) -> TypeGuard[Iterator[ImageLike]]:
    return isinstance(image, Iterator) and not hasattr(image, "read")  # file objects are iterators of lines


def _check_type(value, name, kinds, optional=False):
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, kinds) and not (optional and value is None):
        expected = " or ".join(kind.__name__ for kind in kinds) + " or None" * optional
        raise ArgumentError(f"{name} must be {expected}; got {brief(value)}")


def _array(values, name):
    try:
        return np.asarray(values)
    except ValueError:
        raise ArgumentError(f"{name} must be a rectangular array; got rows of different lengths") from None
    except Exception as error:  # the conversion runs methods of the caller's type, such as CuPy's, which refuses
        raise ArgumentError(f"{name} must be an array on the host; got {type(values).__name__} "
                            f"({brief(error)})") from None
