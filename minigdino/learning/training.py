"""Train a model on annotated images: one step after the other, with the losses of §3.5 and AdamW.

A batch is a loop over images, whose gradients are averaged; see the first rule of the design: no axis for batches, and
no padding. Every random number depends on the seed, the number of the step and the image, and on nothing else. So the
same run has the same bits, also if it was interrupted and resumed in between.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .. import image as images
from ..checkpoints.fingerprint import fingerprint
from ..checkpoints.saving import remove_folder
from ..checkpoints.weights import build
from ..detector import Model
from ..errors import ArgumentError, ImageError, brief
from ..extras import require
from ..network.bert import bert
from ..network.losses import losses, stages, total
from ..network.matching import match
from ..network.model import forward
from ..network.swin import swin
from ..prompt import Tokenizer
from ..runtime import precision as precisions
from ..targets import image_targets, one_per_object
from ..version import __version__
from ..writing import encoded, replace_file
from . import state as states
from .annotations import Sample, checked
from .augmentation import SIDE, augmented, flipped, sizes_of
from .average_precision import AveragePrecision
from .curve import curve
from .distillation import distillation
from .features import FeatureStore, prompt_features
from .gradients import value_and_gradients
from .optimizer import (
    NEW_WORDS,
    TRAINED,
    adamw,
    clip_factor,
    decays,
    global_norm,
    learning_rate,
    relative_rate,
    trained_names,
)
from .prompts import check, check_each, mixed, new_tokens
from .recording import values
from .state import State

CURVE = "curve.png"
EMBEDDINGS = "model.text_backbone.embeddings.word_embeddings.weight"
FEATURES, PHRASES = "features", "phrases"
AUGMENTS = "none", "flip", "crop"
ORDER, IMAGE = range(2)  # what a random generator is for
CLIP = 0.1  # largest norm of all gradients (arXiv 2303.05499, Table 8)


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of a run. Together with the model and the annotations, they determine its result.

    Attributes:
        steps: number of steps.
        rate: highest learning rate; the two backbones have a tenth of it.
        batch: images of a step.
        train: tensors that are trained, a key of `optimizer.TRAINED`.

            - "detector": all but the image and the text backbone.
            - "decoder": the decoder, the query selection and the heads.
            - "heads": the box and class heads only.
            - "all": everything.

        augment: random changes of images.

            - "flip": half of the images are flipped. A frozen image backbone runs once for each of the two variants.
            - "crop": flip, random crop and, unless `size` is given, random size. The image backbone runs in every step.
            - "none": no changes.

        size: (shortest, longest) edge of the resized images; None for the checkpoint's.
        phrases: largest number of phrases in a prompt: those of the image, and others, which it does not contain.
        weight_decay: weight decay of matrices.
        warm_up: steps in which the rate rises; None for a twentieth of the steps.
        seed: seed of all random numbers.
        recompute: whether the backward pass computes inner steps again. This takes less memory and more time.
        keep: share of the starting weights in the model that is written and validated, 0 to 1. It keeps old abilities
            (arXiv 2109.01903, §3), and does not change the training itself.
        remember: phrases for which the model should detect the same as before (arXiv 1606.09282). Each image gets a
            second prompt of random ones, for which the starting model supplies the targets. The word embeddings of
            tokens that only other phrases have are trained, too (arXiv 2208.01618).
    """

    steps: int = 1000
    rate: float = 1e-4
    batch: int = 1
    train: str = "detector"
    augment: str = "flip"
    size: tuple[int, int] | None = None
    phrases: int = 20
    weight_decay: float = 1e-4
    warm_up: int | None = None
    seed: int = 0
    recompute: bool = False
    keep: float = 0.0
    remember: tuple[str, ...] = ()

    def __post_init__(self):
        for name, low in (("steps", 1), ("batch", 1), ("phrases", 1), ("warm_up", 0), ("seed", 0)):
            value = getattr(self, name)
            if not (type(value) is int and value >= low) and not (name == "warm_up" and value is None):
                raise ArgumentError(f"{name} must be an int of {low} or more; got {brief(value)}")
        for name in ("rate", "weight_decay", "keep"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise ArgumentError(f"{name} must be a number from 0 to 1; got {brief(value)}")
        for name, known in (("train", tuple(TRAINED)), ("augment", AUGMENTS)):
            if getattr(self, name) not in known:
                raise ArgumentError(f"{name} must be one of {', '.join(known)}; got {brief(getattr(self, name))}")
        if type(self.remember) is not tuple or not all(isinstance(phrase, str) for phrase in self.remember):
            raise ArgumentError(f"remember must be a tuple of phrases; got {brief(self.remember)}")

    def rate_of(self, step: int) -> float:
        """Return the learning rate of a step, from 0."""
        warm_up = self.steps // 20 if self.warm_up is None else min(self.warm_up, self.steps)
        return learning_rate(step, self.steps, self.rate, warm_up)


@dataclasses.dataclass(frozen=True)
class Step:
    """What happened in a step.

    Attributes:
        number: number of the step, from 1.
        loss: mean of the images' losses, before the step.
        rate: learning rate.
        seconds: time that the step took, with the writing of its state and the validation.
        precision: AP50 on the validation set after the step; None where it was not measured.
    """

    number: int
    loss: float
    rate: float
    seconds: float
    precision: float | None = None


def train(model: Model, samples: Sequence[Sample], directory: str | Path, options: Options | None = None, *,
          validation: Sequence[Sample] = (), save_every: int = 1, validate_every: int | None = None,
          resume: bool = False) -> Iterator[Step]:
    """Train a model, and write the result as a folder that `load` and transformers read.

    The steps run as the result is iterated. During the run, the folder has the state, the cached features of frozen
    backbones and, after a validation, a picture of the loss. The model is written at the end, and the picture also if
    the run stops before. `model` does not change.

    Intermediate decoder layers and the encoder have losses in any case, as in the paper; `auxiliary_loss` of the
    checkpoint does not matter.

    Args:
        model: where to start, on a CPU.
        samples: annotated images, with at least one box.
        directory: folder of the run. It must be new or empty, or have a run of the same settings if `resume` is set.
        options: settings of the run.
        validation: annotated images on which AP50 is measured, with at least one box; none for no measurement. They
            change no weight, so a run that is resumed may have others.
        save_every: steps between two states on disk, of which a killed run loses the last ones.
        validate_every: steps between two measurements; None for a tenth of the steps. The last step has one, too.
        resume: whether to continue a run, at the state that was written last.

    Returns:
        An iterator of the steps that are done.

    Raises:
        ArgumentError: if an argument is not valid, the folder cannot be used, SciPy is not installed, or a loss or a
            gradient is not finite. The last good weights are written then.
        ImageError: if an image cannot be used.
        PromptError: if a phrase in `remember` is no valid phrase.
        CheckpointError: if the model has no tokenizer, a weight is not finite, or a file of the run is damaged.
    """
    require("scipy.optimize", "training", "scipy")
    options = Options() if options is None else options
    if model.device != "cpu":
        raise ArgumentError(f'training needs a model on a CPU; got {model.device}. Load it with device="cpu"')
    if not isinstance(options, Options):
        raise ArgumentError(f"options must be an Options; got {brief(options)}. Give Options(steps=1000)")
    for name, value in (("save_every", save_every), ("validate_every", validate_every)):
        if not (type(value) is int and value >= 1) and not (name == "validate_every" and value is None):
            raise ArgumentError(f"{name} must be an int of 1 or more; got {brief(value)}")
    samples, validation = checked(samples, "samples"), checked(validation, "validation") if validation else []
    labels = sorted({label for sample in samples for label in sample.labels})
    model._check_weights()
    model.preprocess(np.zeros((64, 64, 3), np.uint8), size=options.size)  # an invalid size is an error before all files
    check(samples, _tokenizer(model), model.config.max_text_len)
    check(validation, _tokenizer(model), model.config.max_text_len, together=False)
    check_each(options.remember, _tokenizer(model), model.config.max_text_len)
    settings = {"minigdino": __version__, "model": str(model.source),
                "fingerprint": fingerprint(model.tensors, model.config, model.settings.to_dict()),
                "precision": model.precision, "data": states.digest(samples), "validation": states.digest(validation),
                **dataclasses.asdict(options)}
    states.open_folder(directory, settings, resume)
    run = _Run(model, samples, labels, Path(directory), options)
    return run.steps(validation, save_every, validate_every or max(1, options.steps // 10))


class _Run:
    """A run of `train`."""

    def __init__(self, model, samples, labels, directory, options):
        self._model, self._samples, self._labels = model, samples, labels
        self._directory, self._options = directory, options
        names = set(trained_names(model.tensors, options.train))
        self._start = {name: array for name, array in model.tensors.items() if name in names}
        self._frozen = {name: array for name, array in model.tensors.items() if name not in names}
        self._new = new_tokens(labels, options.remember, _tokenizer(model)) if options.remember else []
        self._rows = np.arange(len(model.tensors[EMBEDDINGS]))  # of tokens, in the table of embeddings
        if self._new:
            self._start[NEW_WORDS] = model.tensors[EMBEDDINGS][self._new]
            self._rows[self._new] = len(self._rows) + np.arange(len(self._new))
        self._images = self._phrases = None
        if options.train != "all":
            folder = directory / states.FOLDER / FEATURES
            self._phrases = FeatureStore(folder / PHRASES, 1)
            if options.augment != "crop":  # the same crop hardly comes again
                self._images = FeatureStore(folder, len(model.config.backbone_config.out_indices))

    def steps(self, validation, save_every, validate_every):
        """Yield the steps of the run that are not done yet, then write the model."""
        with states.held(self._directory):
            yield from self._steps(validation, save_every, validate_every)

    def _steps(self, validation, save_every, validate_every):
        options, state = self._options, states.read(self._directory, states.initial(self._start))
        try:
            while state.step < options.steps:
                start, rate = time.monotonic(), options.rate_of(state.step)
                state = self._next(state, rate)
                precision = None
                if validation and (state.step % validate_every == 0 or state.step == options.steps):
                    precision = evaluate(self.model(state), validation, self._labels).mean()
                    state = dataclasses.replace(state, precisions=(*state.precisions, (state.step, precision)))
                    self._draw(state)
                if state.step % save_every == 0 or state.step == options.steps:
                    states.write(self._directory, state)
                yield Step(state.step, state.losses[-1], rate, time.monotonic() - start, precision)
        except BaseException:  # such as an interrupt; the curve is less important than the reason of the stop
            with contextlib.suppress(ArgumentError):
                self._draw(state)
            raise
        self._draw(state)
        self.model(state).save(self._directory)
        remove_folder(self._directory / states.FOLDER / FEATURES)

    def model(self, state):
        """The model with the tensors of a state, and the share of the starting ones that it keeps."""
        model, tensors, keep = self._model, state.tensors, np.float32(self._options.keep)
        if keep:
            tensors = {name: keep * self._start[name] + (1 - keep) * array for name, array in tensors.items()}
        tensors = {**model.tensors, **tensors}
        if self._new:
            tensors[EMBEDDINGS] = tensors[EMBEDDINGS].copy()
            tensors[EMBEDDINGS][self._new] = tensors.pop(NEW_WORDS)
        return Model(tensors, model.config, tokenizer=model.tokenizer,
                     settings=model.settings, source=self._directory, precision=model.precision)

    def _draw(self, state):
        path = self._directory / CURVE
        replace_file(path, encoded(curve(state.losses, state.precisions), path))

    def _next(self, state, rate):
        """The state after one more step."""
        options, step = self._options, state.step
        loss, gradients = 0.0, {}
        chosen = [self._sample(step * options.batch + i) for i in range(options.batch)]
        for sample, rng in chosen:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what is not finite is reported below
                value, found = self._gradients(state, sample, rng)
                loss += value / options.batch
                gradients = {name: gradients.get(name, 0) + g / options.batch for name, g in found.items()}
                norm = global_norm(gradients)
            if not (math.isfinite(value) and math.isfinite(norm)):
                self._stop(state, sample, value)
        return updated(state, loss, gradients, norm, rate, options.weight_decay)

    def _stop(self, state, sample, loss):
        """Keep the weights before the step, and raise an error that names the image."""
        states.write(self._directory, state)
        self.model(state).save(self._directory)
        what = "its gradients hold NaN or infinity" if math.isfinite(loss) else f"it is {loss}"
        raise ArgumentError(f"{sample.path}: the loss of an image and its gradients must be finite; in step "
                            f"{state.step + 1}, {what}. Check the boxes of this image, or train in another folder with "
                            f"a lower rate than {self._options.rate:g}. {self._directory} has the weights from before "
                            "this step")

    def _sample(self, number):
        """The sample that a run takes as image `number`, and its random generator. An epoch takes each sample once."""
        epoch, place = divmod(number, len(self._samples))
        order = np.random.default_rng([self._options.seed, ORDER, epoch]).permutation(len(self._samples))
        return self._samples[order[place]], np.random.default_rng([self._options.seed, IMAGE, number])

    def _gradients(self, state, sample, rng):
        """The loss of a sample, with that of remembered phrases, and its gradients {published name: array}."""
        model, options = self._model, self._options
        picture, boxes, labels, size = self._varied(sample, rng)
        phrases = mixed(labels, self._labels, rng, options.phrases, model.tokenizer, model.config.max_text_len)
        prompt = model.tokenize(phrases)
        targets = one_per_object(image_targets(boxes, labels, prompt, picture.shape[1::-1], phrases))
        with _naming(sample):
            pixels, ids = model._checked_inputs(model.preprocess(picture, size=size), prompt.ids)
        features = self._images.get(pixels, self._image_backbone) if self._images else None
        rows, words = self._rows[ids], self._words(ids)

        def loss(trained):
            return total_loss(self._completed(trained), model.config, pixels, rows, model.tokenizer.delimiters,
                              targets, features, words)

        value, gradients = self._pulled(loss, state)
        if options.remember:
            more, others = self._pulled(self._distillation(pixels, features, rng), state)
            value, gradients = value + more, {name: g + others[name] for name, g in gradients.items()}
        return value, gradients

    def _completed(self, trained):
        """All tensors. The table of embeddings has further rows for new words, since the others are not trained."""
        tensors = {**self._frozen, **trained}
        if self._new:
            tensors[EMBEDDINGS] = np.concatenate([tensors[EMBEDDINGS], tensors[NEW_WORDS]])
        return tensors

    def _pulled(self, loss, state):
        """The value of a function of the trained tensors, and its gradients."""
        with precisions.computing(self._model.precision):
            value, gradients = value_and_gradients(loss, state.tensors, recompute=self._options.recompute)
        return float(value), gradients

    def _distillation(self, pixels, features, rng):
        """The loss of a prompt of remembered phrases, as a function of the trained tensors."""
        model, options = self._model, self._options
        phrases = mixed([], options.remember, rng, options.phrases, model.tokenizer, model.config.max_text_len)
        ids = model.tokenize(phrases).ids
        inputs = pixels, ids, model.tokenizer.delimiters
        kept = {"details": True, "image_features": features, "bert_features": self._words(ids)}
        with precisions.computing(model.precision):
            wanted = forward(*inputs, model.weights, model.config, **kept)

        def loss(trained):
            weights = build(self._completed(trained), model.config)
            output = forward(*inputs, weights, model.config, wanted.selected, **kept)
            return total(distillation(output, wanted, model.config), model.config)

        return loss

    def _varied(self, sample, rng):
        """A random variant of a sample: picture [H, W, 3], boxes [B, 4], labels, and the size for `preprocess`."""
        size, labels = self._options.size, sample.labels
        picture = np.asarray(images.open_image(images.read_file(sample.path)))
        if self._options.augment == "crop":
            sizes = [size] if size else sizes_of(self._model.settings)
            picture, boxes, kept, size = augmented(picture, sample.boxes, rng, sizes, labels)
            return picture, boxes, [labels[i] for i in kept], size
        if self._options.augment == "flip" and rng.random() < 0.5 and not any(map(SIDE.search, labels)):
            return *flipped(picture, sample.boxes), labels, size
        return picture, sample.boxes, labels, size

    def _image_backbone(self, pixels):
        with precisions.computing(self._model.precision):
            return swin(pixels, **self._model.weights["backbone"], config=self._model.config.backbone_config)

    def _words(self, ids):
        """The features of BERT for a prompt; None if its weights or a word of the prompt are trained."""
        store = self._phrases
        if store is None or np.isin(ids, self._new).any():
            return None
        return prompt_features(ids, self._model.tokenizer.delimiters,
                               lambda phrase: store.get(phrase, self._text_backbone)[0])

    def _text_backbone(self, ids):
        t = len(ids)
        with precisions.computing(self._model.precision):
            return [bert(ids, np.ones((t, t), bool), np.arange(t), **self._model.weights["text_backbone"],
                         config=self._model.config.text_config)]


def total_loss(tensors, config, pixels, ids, delimiters, targets, image_features=None, bert_features=None):
    """Loss of one image (§3.5) as a function of the tensors, with terms for the encoder and every decoder layer.

    Args:
        tensors: {published name: array}, all that the model uses. The recorded ones get gradients.
        config: `Config`.
        pixels [3, H, W], ids [T], delimiters: as in `network.model.forward`.
        targets: `network.losses.Targets`.
        image_features, bert_features: features of frozen backbones; computed if None.

    Returns:
        The weighted sum of all terms, one number.
    """
    output = forward(pixels, ids, delimiters, build(tensors, config), config, details=True,
                     image_features=image_features, bert_features=bert_features)
    predictions = stages(output, auxiliary=True)
    matches, _ = match(values(predictions), targets, config)
    return total(losses(predictions, targets, matches, config), config)


def updated(state, loss, gradients, norm, rate, weight_decay):
    """Clip the gradients of a step, and change each tensor by AdamW, at the rate of its group.

    Args:
        state: `State` before the step.
        loss: loss of the step.
        gradients: {published name: array}.
        norm: their `global_norm`.
        rate: learning rate.
        weight_decay: weight decay of matrices.

    Returns:
        The `State` after the step.
    """
    factor, tensors, moments = clip_factor(norm, CLIP), {}, {}
    for name, array in state.tensors.items():
        tensors[name], moments[name] = adamw(
            array, factor * gradients[name], state.moments[name], state.step, rate * relative_rate(name),
            weight_decay if decays(name, array.shape) else 0.0)
    return State(tensors, moments, (*state.losses, loss), state.precisions)


def evaluate(model: Model, samples: Sequence[Sample], labels: Sequence[str]) -> AveragePrecision:
    """Measure average precision. Each query counts for the label that has its highest score.

    Args:
        model: the model.
        samples: annotated images.
        labels: the labels to detect, in as few prompts as their tokens allow; all labels of the samples are added.

    Returns:
        The `AveragePrecision`, for all labels together and for each.

    Raises:
        ImageError: if an image cannot be used.
        PromptError: if a label is no valid phrase.
    """
    tokens = functools.cache(_tokenizer(model).tokens)
    names: dict[tuple[int, ...], str] = {}  # wordings such as "Cat" and "cat" are one phrase for the model
    for label in (*labels, *(label for sample in samples for label in sample.labels)):
        names.setdefault(tokens(label), label)
    prompts, result = _prompts(names, model.config.max_text_len), AveragePrecision()
    for sample in samples:
        picture = images.open_image(images.read_file(sample.path))
        actual = np.array([names[tokens(label)] for label in sample.labels], object)
        for phrases in prompts:
            with _naming(sample):
                found = model.detect(picture, phrases, threshold=0.0)
            for i, phrase in enumerate(phrases):
                chosen = found.label_ids == i
                result.add(phrase, found.boxes[chosen], found.scores[chosen], sample.boxes[actual == phrase])
    return result


@contextlib.contextmanager
def _naming(sample):
    """An error of a picture gets the name of its file."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{sample.path}: {error}") from None


def _tokenizer(model: Model) -> Tokenizer:
    if model.tokenizer is None:
        model.tokenize("a")  # the error says which file is missing
    assert model.tokenizer is not None
    return model.tokenizer


def _prompts(names, limit):
    """Lists of phrases, each as long as the model allows, from {tokens: phrase}."""
    prompts, length = [], limit
    for tokens, name in names.items():
        length += len(tokens) + 1  # and a dot
        if length > limit:
            prompts.append([])
            length = 2 + len(tokens) + 1  # [CLS] and [SEP]
        prompts[-1].append(name)
    return prompts
