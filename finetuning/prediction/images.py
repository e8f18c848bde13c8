"""Predictions of the classes of images."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, PreTrainedModel

from finetuning.prediction.base import ONE_CLASS, Predictor, check_keys, class_names, one_class
from finetuning.prediction.lines import Bad, Line, Source
from finetuning.prediction.settings import PredictSettings
from pretraining.data.images.decode import Coloured, Unreadable, decode
from pretraining.data.readers import Row, listed
from pretraining.errors import UserError, one_line

USUAL = ("image", "img", "image_path", "path", "file", "file_name", "filename")
IMAGES = 64  # computed at a time


class ImagePredictor(Predictor):
    """A class for each image."""

    writes = ONE_CLASS
    block = 256

    def __init__(self, folder: Path, model: PreTrainedModel, settings: PredictSettings):
        super().__init__(folder, model, settings)
        try:
            self.processor: Any = AutoImageProcessor.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder} has no image processor ({one_line(error)}): save it beside the model."
            ) from error
        self.names = class_names(self.config)

    def find_columns(self, source: Source) -> list[str]:
        self.folder_of_paths = source.folder
        given = self.settings.image_column
        usual = [name for name in source.columns if name.lower() in USUAL]
        names = [str(given)] if given is not None else usual
        if len(names) != 1 or names[0] not in source.columns:
            what = f"no column {names[0]!r}" if given is not None else f"{len(usual)} columns with names of images'"
            raise UserError(f"{source.name} has {what}: set --image_column to one of {listed(source.columns)}.")
        self.column = names[0]
        return names

    def read(self, line: Line) -> np.ndarray:
        """What the model sees of an image (C, S, S)."""
        check_keys(line, [self.column])
        value = line.row[self.column]
        if isinstance(value, dict):  # as `datasets` writes an image
            value = value.get("bytes") or value.get("path")
        if not value or not isinstance(value, str | bytes):
            raise Bad(f"{self.column}: it holds {value!r:.40} instead of an image or its path")
        channels = self.config.num_channels
        try:
            data = (self.folder_of_paths / os.path.expanduser(value)).read_bytes() if isinstance(value, str) else value
            pixels = decode(data, channels)
        except OSError as error:
            raise Bad(f"{value!r} cannot be read ({error.strerror})") from error
        except Coloured as error:
            raise Bad("the image has colours, and the model sees grey ones") from error
        except Unreadable as error:
            raise Bad(f"the image cannot be read: {error}") from error
        except ValueError as error:  # of the path: a NUL, half a character
            raise Bad(f"{value!r:.40} is no path") from error
        return self.processor(images=pixels, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]

    def logits(self, examples: list[np.ndarray]) -> np.ndarray:
        pixels = torch.from_numpy(np.stack(examples)).to(self.computer.device)  # (B, C, S, S)
        return self.model(pixel_values=pixels).logits.float().cpu().numpy()

    def predict(self, examples: list[np.ndarray]) -> list[Row]:
        size = self.settings.rows or IMAGES
        batches = (examples[first : first + size] for first in range(0, len(examples), size))
        parts = [logits for _, logits in self.computer.map(self.logits, batches)]
        return one_class(np.concatenate(parts), self.names, self.settings.top)
