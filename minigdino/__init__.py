"""minigdino: Grounding DINO, MM Grounding DINO and LLMDet in NumPy. Text in, boxes out, no PyTorch."""

from . import source_tree  # noqa: F401  first, because the next modules import minigdino._ext
from .checkpoints.config import Config
from .detector import Model, detect, load
from .errors import ArgumentError, CheckpointError, ConfigError, Error, ImageError, PromptError, PromptWarning
from .inspection.tracing import trace
from .network.losses import Losses
from .network.model import Output
from .prompt import Prompt
from .results import Detection, Detections
from .runtime.info import info
from .runtime.kernels import require_gil as _require_gil
from .runtime.kernels import use
from .runtime.threads import follow_environment, set_threads
from .version import __version__
from .video import frames

__all__ = [
    "ArgumentError", "CheckpointError", "Config", "ConfigError", "Detection", "Detections", "Error", "ImageError",
    "Losses", "Model", "Output", "Prompt", "PromptError", "PromptWarning", "__version__", "detect", "frames",
    "info", "load", "set_threads", "trace", "use",
]

_require_gil()
follow_environment()
