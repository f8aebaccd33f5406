"""The grammar of prompts: "a red star.", "star.", "red shape.", "the red thing.", in any order, some of them absent."""

from dataclasses import dataclass

import numpy as np

from training.outlines import SHAPES
from training.world import COLOURS, HELD_OUT, Thing

ARTICLES = ("a", "an", "the")
ANYTHING = ("shape", "thing")  # "red shape" and "red thing" are every red object


@dataclass(frozen=True)
class Meaning:
    """What a phrase refers to: every thing of this colour and this shape; None is any."""

    colour: str | None
    shape: str | None

    def fits(self, thing: Thing) -> bool:
        """Whether the phrase refers to this thing."""
        return self.colour in (None, thing.colour) and self.shape in (None, thing.shape)


@dataclass
class Prompt:
    """Phrases without their dots, and what each means; a meaning of None is a foreign word, which fits nothing."""

    phrases: list[str]
    meanings: list[Meaning | None]

    @property
    def text(self) -> str:
        """The prompt as the model reads it."""
        return " ".join(f"{phrase}." for phrase in self.phrases)


def phrase(meaning: Meaning, rng: np.random.Generator) -> str:
    """One way to say it."""
    noun = meaning.shape or ANYTHING[rng.integers(len(ANYTHING))]
    words = f"{meaning.colour} {noun}" if meaning.colour else noun
    article = rng.choice(("", "", "a", "the"))
    if article == "a" and words[0] in "aeiou":
        article = "an"
    return f"{article} {words}".strip()


def foreign(rng: np.random.Generator) -> str:
    """Letters that spell no word of this world: the model learns to find nothing for words it does not know."""
    word = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(3, 7)))
    return f"{rng.choice(list(COLOURS))} {word}" if rng.random() < 0.3 else word


def _suggest(things: list[Thing], rng: np.random.Generator, kinds: tuple[float, float, float]) -> Meaning:
    """A meaning that may fit: a thing's own, or the colour of one with the shape of another, or anything."""
    colours, shapes = [t.colour for t in things], [t.shape for t in things]
    if things and rng.random() < 0.65:
        i = rng.integers(len(things))
        colour, shape = colours[i], shapes[i]
    else:
        colour = rng.choice(colours if things and rng.random() < 0.6 else list(COLOURS))
        shape = rng.choice(shapes if things and rng.random() < 0.6 else list(SHAPES))
    kind = rng.choice(3, p=kinds)
    return Meaning(None if kind == 1 else str(colour), None if kind == 2 else str(shape))


def ask(
    things: list[Thing],
    rng: np.random.Generator,
    absent: bool = False,
    held_out: bool = False,
    kinds: tuple[float, float, float] = (0.55, 0.25, 0.2),
    strangers: float = 0.0,
) -> Prompt:
    """One to five phrases about a picture, no two of the same meaning.

    absent: none may fit; held_out: only the held-out pairs (else never one of them); kinds: chances of "red star",
    "star", "red thing"; strangers: chance of a foreign word at each place.
    """
    prompt = Prompt([], [])
    wanted = int(rng.integers(1, 6))
    for _ in range(20 * wanted):
        if len(prompt.phrases) == wanted:
            break
        if rng.random() < strangers:
            prompt.phrases.append(foreign(rng))
            prompt.meanings.append(None)
            continue
        meaning = _suggest(things, rng, kinds)
        if ((meaning.colour, meaning.shape) in HELD_OUT) != held_out or meaning in prompt.meanings:
            continue
        if absent and any(meaning.fits(thing) for thing in things):
            continue
        prompt.phrases.append(phrase(meaning, rng))
        prompt.meanings.append(meaning)
    order = rng.permutation(len(prompt.phrases))
    return Prompt([prompt.phrases[i] for i in order], [prompt.meanings[i] for i in order])
