"""Masked images: hidden patches predicted from those that are seen (SimMIM, Xie 2021; MAE, He 2021).

With model.decoder_num_hidden_layers the encoder sees only what is not hidden (MAE); model.reconstruction_target says
what is predicted.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from modeling import KeelViTConfig, KeelViTForMaskedImageModeling
from modeling.vit import mean_colors
from pretraining.data import draws
from pretraining.data.images.settings import AugmentSettings
from pretraining.data.packing import IGNORED, Example
from pretraining.data.settings import between
from pretraining.errors import UserError
from pretraining.objectives.base import by_all_processes
from pretraining.objectives.images import ImageObjective, ImageObjectiveSettings
from pretraining.settings import Settings

NEIGHBOURS, TEMPERATURE = 20, 0.07  # of k-NN (Wu 2018, 3.4, with DINO's number of neighbours)


@dataclass
class MaskedImagesSettings(AugmentSettings, ImageObjectiveSettings):
    """Images, parts of which are hidden and predicted."""

    name: Literal["masked_images"] = "masked_images"
    """The objective."""
    mask_ratio: float = 0.6
    """Share of the patches that are hidden (SimMIM 0.6, MAE 0.75)."""
    mask_size: int = 1
    """Patches on each side of a square that is hidden as one (SimMIM: 32 pixels' worth)."""
    probe: int = 0
    """Training images by whose classes the frozen features are judged at the end, by a linear probe and by their
    nearest neighbours; 0: no class is asked for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_ratio < 1:
            raise UserError(f"objective.mask_ratio is {self.mask_ratio}: it must be above 0 and below 1.")
        between("objective.mask_size", self.mask_size, 1)
        between("objective.probe", self.probe, 0)

    def check(self, run: Settings) -> None:
        super().check(run)
        model: Any = run.model
        side = model.image_size // model.patch_size
        if side % self.mask_size or side == self.mask_size:
            raise UserError(
                f"objective.mask_size is {self.mask_size}, and an image is {side} patches on each side: it must divide "
                "them, and be fewer, so that some are seen."
            )


def count_hidden(side: int, mask_size: int, mask_ratio: float) -> int:
    """Squares of `mask_size` x `mask_size` patches that are hidden of `side` x `side` patches: some, never all."""
    squares = (side // mask_size) ** 2
    return min(max(round(mask_ratio * squares), 1), squares - 1)


def hidden_patches(
    seed: int, epoch: int, index: np.ndarray, side: int, mask_size: int, mask_ratio: float
) -> np.ndarray:
    """Which of the `side` x `side` patches of images `index` (N,) are hidden: bool (N, P), equally many of each."""
    images, across = len(index), side // mask_size
    drawn = draws.hash_key(seed, epoch, draws.MASK, index[:, None], np.arange(across**2))
    hidden = drawn.argsort(1, kind="stable").argsort(1, kind="stable") < count_hidden(side, mask_size, mask_ratio)
    grid = hidden.reshape(images, across, 1, across, 1)
    return np.broadcast_to(grid, (images, across, mask_size, across, mask_size)).reshape(images, side**2)


class MaskedImages(ImageObjective):
    """The objective of images without labels."""

    metric, lower_is_better = "loss", True

    def configure(self, settings: Settings) -> None:
        super().configure(settings)
        config = self.model
        colors = config.reconstruction_target == "mean_color"
        self.targets = ("labels",) if colors else ("bool_masked_pos",)
        self.labelled = bool(self.settings.probe)
        self.side = config.image_size // config.patch_size
        self.masking = (self.side, self.settings.mask_size, self.settings.mask_ratio)

    def open(self) -> None:
        super().open()
        if self.labelled:
            labels, count = self.data["train"].labels, self.settings.probe
            drawn = np.argsort(draws.hash_key(draws.SUBSET, np.arange(len(labels))), kind="stable")
            self.probed = drawn[:count]
            if count > len(labels) or len(np.unique(labels[self.probed])) < 2:
                raise UserError(
                    f"objective.probe is {count}, and there are {len(labels):,} training images: it must be no more, "
                    "and enough for two classes, or 0."
                )

    def build_model(self, config: KeelViTConfig) -> PreTrainedModel:
        return KeelViTForMaskedImageModeling(config)

    def hide(self, split: str, epoch: int, index: np.ndarray) -> np.ndarray:
        """Which patches of images `index` (N,) are hidden: bool (N, P), equally many of each."""
        return hidden_patches(self.seed(split), epoch, index, *self.masking)

    def examples(self, split: str, epoch: int, index: np.ndarray, progress: float = 0.0) -> list[Example]:
        """Pixels, what is to be done to them, and the patches to be hidden."""
        found = self.augmented(split, epoch, index)
        for example, hidden in zip(found, self.hide(split, epoch, index), strict=True):
            example["bool_masked_pos"] = hidden
        return found

    def collate(self, rows: list[list[Example]], sequences: int) -> dict[str, Tensor]:
        batch = super().collate(rows, sequences)
        if self.model.decoder_num_hidden_layers:
            seen = self.side**2 - count_hidden(*self.masking) * self.settings.mask_size**2
            batch["ids_keep"] = batch["bool_masked_pos"].int().argsort(stable=True, dim=1)[:, :seen]
        return batch

    def blank(self) -> Example:
        return super().blank() | {"bool_masked_pos": np.zeros(self.side**2, dtype=bool)}

    def count(self, batch: dict[str, Tensor]) -> int:
        return int(batch["bool_masked_pos"].any(1).sum())

    def count_targets(self, batch: dict[str, Tensor]) -> dict[str, int]:
        return {name: int(batch["bool_masked_pos"].sum()) for name in self.targets}

    def finish(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        pixels, hidden = self.pixels(batch), batch["bool_masked_pos"]
        arguments = {name: value for name, value in batch.items() if name in ("bool_masked_pos", "ids_keep")}
        if self.targets == ("labels",):
            arguments["labels"] = mean_colors(pixels, self.model.patch_size).where(hidden, IGNORED)
        return {"pixel_values": self.normalise(pixels), **arguments}

    def evaluate(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        count = batch["bool_masked_pos"].sum()
        one = torch.ones((), device=count.device)
        out = model(**batch, num_items_in_batch=dict.fromkeys(self.targets, one))
        sums = {"loss": (out.loss, count)}
        if "labels" in batch:
            sums["accuracy"] = ((out.reconstruction.argmax(-1) == batch["labels"]).sum(), count)
        return sums

    @torch.no_grad()
    def judge(
        self, model: Any, index: np.ndarray, accelerator: Accelerator, thorough: bool = False
    ) -> dict[str, float]:
        """What frozen features know of the classes, at the end of a run: a linear probe, and nearest neighbours."""
        if not thorough or not self.settings.probe:
            return {}
        from sklearn.linear_model import LogisticRegression  # a second to import
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        body, known, labels = model.base_model, {}, {}
        for split, numbers in {"train": self.probed, "validation": index}.items():

            def look(own: np.ndarray, split: str = split) -> list[np.ndarray]:
                return list(self.features(body, split, own))

            known[split] = np.stack(by_all_processes(numbers, accelerator, look))
            labels[split] = self.data[split].labels[numbers]
        neighbours = KNeighborsClassifier(
            min(NEIGHBOURS, len(known["train"])),
            metric="cosine",
            weights=lambda distances: np.exp((1 - distances) / TEMPERATURE),
        )
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        return {
            f"{name}_accuracy": float(
                probe.fit(known["train"], labels["train"]).score(known["validation"], labels["validation"])
            )
            for name, probe in (("linear_probe", linear), ("neighbours", neighbours))
        }

    def features(self, body: Any, split: str, index: np.ndarray) -> np.ndarray:
        """The pooled states (M, D) of images `index` (M,), seen whole."""
        found = [body(batch["pixel_values"]).pooler_output for batch in self.batches(body, split, index)]
        return torch.cat(found).float().cpu().numpy()

    @torch.no_grad()
    def samples(self, model: Any, count: int) -> list[str]:
        """Held-out images and how well their hidden patches are predicted; pictures tell more."""
        data, shown = self.data["validation"], []
        for number in self.index("validation", 0)[:count].tolist():
            example = self.examples("validation", 0, np.array([number]))
            batch = {k: x.to(model.device) for k, x in self.finish(self.collate([example], 1)).items()}
            shown.append(f"{data.place(number)}: loss {float(model(**batch).loss):.3f}")
        return shown
