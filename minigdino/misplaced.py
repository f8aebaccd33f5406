"""Arguments of `minigdino detect` and `minigdino run` in a wrong order, without quotes, or of both forms."""

from __future__ import annotations

import re

from .checkpoints.json_file import status
from .errors import brief


def misplaced(sources: list[str], text: str | list[str], verb: str = "detect") -> str | None:
    """Recognise arguments of `detect` in a wrong order, without quotes, or of both forms.

    Args:
        sources: the arguments before the prompt, at least one.
        text: TEXT, or the list of phrases of --phrase or --phrases.
        verb: the command, for the message.

    Returns:
        A message that says what to write; None if there is no such mistake.
    """
    first, last = sources[0], sources[-1]
    if not isinstance(text, str):
        if _is_prompt(last) and (" " in last or last.endswith(".") or (len(sources) > 1 and WORD.fullmatch(last))):
            return (f"expected SOURCE ... with --phrase or --phrases; got {brief(last)}, which is no file. Give the "
                    "prompt either as TEXT or by one of these options, not both")
        return None
    if status(text) and _is_prompt(first):
        return (f"expected TEXT as the last argument; got {brief(text)}, which exists. Write: minigdino {verb} "
                f'{_quoted(text)} "{" ".join(sources)}"')
    prompts = [source for source in sources if _is_prompt(source) and " " in source]
    if status(text) and (prompts or re.search(rf"[/\\]|{ENDING}", text)):
        found = f"; {brief(prompts[0])} is no file" if prompts else ""
        return (f"expected TEXT as the last argument; got {brief(text)}, which exists{found}. Put the prompt in quotes "
                f'at the end: minigdino {verb} {" ".join(_quoted(s) for s in (*sources, text) if s not in prompts)} '
                f'"{prompts[0] if prompts else "a cat."}"')
    if several := [prompt for prompt in prompts if prompt in sources[1:]]:  # which were in quotes, so text is one too
        files_ = [source for source in sources if source not in several]
        phrases = [prompt.strip().rstrip(".") + "." for prompt in (*several, text)]
        return (f"expected SOURCE ... before TEXT; got {brief(several[0])}, which is no file. Write all phrases as one "
                f'TEXT: minigdino {verb} {" ".join(map(_quoted, files_))} "{" ".join(phrases)}"')
    if " " in text.strip():  # was in quotes
        return None
    for i, word in enumerate(sources[1:], start=1):
        if _is_prompt(word) and WORD.fullmatch(word):
            return (f"expected SOURCE ... before TEXT; got {brief(word)}, which is no file. Put a prompt of several "
                    f"words in quotes: minigdino {verb} {' '.join(map(_quoted, sources[:i]))} "
                    f'"{" ".join([*sources[i:], text])}"')
    return None


def _is_prompt(argument):
    """Return whether an argument can be a prompt: not that of a file, nor of the form of a path, pattern or URL."""
    return not re.search(rf"[/\\*\[]|{ENDING}|^-$", argument) and status(argument) is None


ENDING = r"\.\w+$"  # of a file name
WORD = re.compile(r"[^\W\d][\w'-]*[.,;?]?")  # of a prompt, with a delimiter


def _quoted(path):
    return f'"{path}"' if " " in path else path
