"""minigdino: Grounding DINO, MM Grounding DINO and LLMDet in NumPy. Text in, boxes out, no PyTorch."""

from . import blas as _blas  # noqa: F401  first of all, as it says
from .config import Config
from .detector import Model, detect, load
from .errors import ArgumentError, CheckpointError, ConfigError, Error, ImageError, PromptError
from .installation import info
from .kernels import use
from .model import Output
from .prompt import Prompt
from .results import Detection, Detections
from .threads import follow_environment, set_threads
from .tracing import trace
from .version import __version__

__all__ = [
    "ArgumentError", "CheckpointError", "Config", "ConfigError", "Detection", "Detections", "Error", "ImageError",
    "Model", "Output", "Prompt", "PromptError", "__version__", "detect", "info", "load",
    "set_threads", "trace", "use",
]

follow_environment()
