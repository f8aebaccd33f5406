"""Export the trained checkpoint: python -m training.export minigdino/models/shapes [--runs FOLDER]

Weights are stored as float16, which halves the file and moves boxes by hundredths of a pixel. config.json requests
float32 for the computation.
"""

import argparse
from pathlib import Path

import torch

from training.calibrate import calibrate
from training.model import create, image_processor
from training.vocabulary import write_tokenizer


def write_weights(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Calibrate the network; write config.json and model.safetensors."""
    network = create(seed=0)
    network.load_state_dict(state)
    print(f"class bias moved by {calibrate(network):.3f}")
    network.half().save_pretrained(folder)
    network.config.dtype = torch.float32
    network.config.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors creates a file that only its owner can read


def write_processor(folder: Path) -> None:
    """Write preprocessor_config.json, with the class name that lets transformers choose the installed backend."""
    image_processor().save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    path.write_text(path.read_text().replace("GroundingDinoImageProcessorPil", "GroundingDinoImageProcessor"))


def main() -> None:
    """Export the checkpoint of the last training stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=Path, default=Path(__file__).parent / "runs")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    state = torch.load(options.runs / "absent.pt")
    write_weights(options.folder, state["network"])
    write_tokenizer(options.folder)
    write_processor(options.folder)
    print(f"{options.folder}: {state['step']} steps, {sum(f.stat().st_size for f in options.folder.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
