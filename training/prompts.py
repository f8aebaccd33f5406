"""Random prompts: phrases such as "a red star.", "star.", "red shape." and "the red thing.", in any order."""

from dataclasses import dataclass

import numpy as np

from training.outlines import SHAPES
from training.world import COLOURS, HELD_OUT, Thing

ARTICLES = ("a", "an", "the")
ANYTHING = ("shape", "thing")  # "red shape" and "red thing" match every red object


@dataclass(frozen=True)
class Meaning:
    """The objects that a phrase refers to: those of this colour and this shape; None matches any."""

    colour: str | None
    shape: str | None

    def fits(self, thing: Thing) -> bool:
        """Return whether the phrase refers to this object."""
        return self.colour in (None, thing.colour) and self.shape in (None, thing.shape)


@dataclass
class Prompt:
    """Phrases without their dots, and the meaning of each. An unknown word has the meaning None and matches nothing."""

    phrases: list[str]
    meanings: list[Meaning | None]

    @property
    def text(self) -> str:
        """The prompt in one string."""
        return " ".join(f"{phrase}." for phrase in self.phrases)


def phrase(meaning: Meaning, rng: np.random.Generator) -> str:
    """Write a meaning as a random phrase."""
    noun = meaning.shape or ANYTHING[rng.integers(len(ANYTHING))]
    words = f"{meaning.colour} {noun}" if meaning.colour else noun
    article = rng.choice(("", "", "a", "the"))
    if article == "a" and words[0] in "aeiou":
        article = "an"
    return f"{article} {words}".strip()


def unknown_word(rng: np.random.Generator) -> str:
    """Create a random word, sometimes with a colour before it. The model learns to detect nothing for unknown words."""
    word = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(3, 7)))
    return f"{rng.choice(list(COLOURS))} {word}" if rng.random() < 0.3 else word


def _random_meaning(things: list[Thing], rng: np.random.Generator, kinds: tuple[float, float, float]) -> Meaning:
    """Draw a meaning: of one object, of the colour of one and the shape of another, or a random one."""
    colours, shapes = [t.colour for t in things], [t.shape for t in things]
    if things and rng.random() < 0.65:
        i = rng.integers(len(things))
        colour, shape = colours[i], shapes[i]
    else:
        colour = rng.choice(colours if things and rng.random() < 0.6 else list(COLOURS))
        shape = rng.choice(shapes if things and rng.random() < 0.6 else list(SHAPES))
    kind = rng.choice(3, p=kinds)
    return Meaning(None if kind == 1 else str(colour), None if kind == 2 else str(shape))


def random_prompt(
    things: list[Thing],
    rng: np.random.Generator,
    absent: bool = False,
    held_out: bool = False,
    kinds: tuple[float, float, float] = (0.55, 0.25, 0.2),
    unknown: float = 0.0,
) -> Prompt:
    """Draw a prompt of one to five phrases with different meanings.

    Args:
        things: objects of the image.
        rng: random generator.
        absent: use only phrases that match no object.
        held_out: use only held-out pairs; otherwise none of them.
        kinds: probabilities of "red star", "star" and "red thing".
        unknown: probability of an unknown word, for each phrase.
    """
    prompt = Prompt([], [])
    length = int(rng.integers(1, 6))
    for _ in range(20 * length):
        if len(prompt.phrases) == length:
            break
        if rng.random() < unknown:
            prompt.phrases.append(unknown_word(rng))
            prompt.meanings.append(None)
            continue
        meaning = _random_meaning(things, rng, kinds)
        if ((meaning.colour, meaning.shape) in HELD_OUT) != held_out or meaning in prompt.meanings:
            continue
        if absent and any(meaning.fits(thing) for thing in things):
            continue
        prompt.phrases.append(phrase(meaning, rng))
        prompt.meanings.append(meaning)
    order = rng.permutation(len(prompt.phrases))
    return Prompt([prompt.phrases[i] for i in order], [prompt.meanings[i] for i in order])
