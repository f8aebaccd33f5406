"""Open the image of a URI: a file, a URL, an object in a store, or a member of a tar file."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..errors import ImageError
from ..image import MAX_BYTES, open_image
from . import remote, tar


def open_uri(uri: str) -> Image.Image:
    """Open an image.

    Args:
        uri: one of

            - a path, relative to the working directory, or a URL that starts with file://;
            - an http or https URL, as in `urls.download`;
            - a URL of another scheme that fsspec knows, such as s3:// or gs://;
            - a member of a tar file in any of these places: photos-000.tar#a.jpg.

    Returns:
        The upright image in RGB.

    Raises:
        ImageError: if it cannot be read. The message starts with the URI.
    """
    with remote.reading(uri, ImageError):
        if member := tar.split(uri):
            return open_image(tar.read_member(*member))
        if not remote.is_store(uri):
            return open_image(Path(remote.local_path(uri)) if remote.scheme(uri) not in ("", *remote.HTTP) else uri)
        content = remote.read_range(uri, 0, MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ImageError(f"expected an image of at most {MAX_BYTES} bytes; got more. Check the file")
        return open_image(content)
