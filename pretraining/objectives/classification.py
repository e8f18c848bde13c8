"""Classification of images (Dosovitskiy 2020), with the recipe that makes plain ViTs learn from little data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from modeling import KeelViTConfig, KeelViTForImageClassification
from pretraining.data.images.augment import draw_mixing
from pretraining.data.images.augment_batch import mix
from pretraining.data.images.settings import MixingSettings
from pretraining.data.packing import IGNORED, Example
from pretraining.objectives.base import by_all_processes
from pretraining.objectives.images import ImageObjective, ImageObjectiveSettings
from pretraining.pictures.charts import draw_confusion
from pretraining.settings import Settings

TOP = 5


@dataclass
class ClassificationSettings(MixingSettings, ImageObjectiveSettings):
    """Images and their classes; beside these, model.label_smoothing, model.drop_path_rate and optim.ema."""

    name: Literal["classification"] = "classification"
    """The objective."""
    metric: Literal["accuracy", "loss"] = "accuracy"
    """The measure that decides which checkpoint is best."""


class Classification(ImageObjective):
    """The objective of labelled images."""

    targets = ("labels",)
    labelled = True
    confusion: np.ndarray | None = None
    """(N, N): of the held-out images of each class, how many were taken for each; there after a thorough `judge`."""

    def configure(self, settings: Settings) -> None:
        super().configure(settings)
        self.metric = self.settings.metric
        self.lower_is_better = self.metric == "loss"
        self.mixes = bool(self.settings.mixing and (self.settings.mixup or self.settings.cutmix))

    @property
    def classes(self) -> list[str]:
        return self.data["train"].classes

    def build_model(self, config: KeelViTConfig) -> PreTrainedModel:
        config.id2label = dict(enumerate(self.classes))
        config.label2id = {name: number for number, name in enumerate(self.classes)}
        return KeelViTForImageClassification(config)

    def examples(self, split: str, epoch: int, index: np.ndarray, progress: float = 0.0) -> list[Example]:
        """Pixels before augmentation, what is to be done to them, the class; and all of that of a partner's."""
        found = self.augmented(split, epoch, index)
        labels = self.data[split].labels
        for example, number in zip(found, index.tolist(), strict=True):
            example["labels"] = labels[number]
        if split == "train" and self.mixes:
            mixing = draw_mixing(self.settings, self.run.seed, epoch, index, self.size, len(labels))
            partners = self.augmented(split, epoch, mixing["partner"])
            for i, (example, partner) in enumerate(zip(found, partners, strict=True)):
                example |= {f"partner_{name}": value for name, value in partner.items()}
                example["partner_labels"] = labels[mixing["partner"][i]]
                example |= {name: mixing[name][i] for name in ("weight", "rectangle")}
        return found

    def blank(self) -> Example:
        return super().blank() | {"labels": np.array(IGNORED)}

    def count(self, batch: dict[str, Tensor]) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def finish(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        pixels, arguments = self.pixels(batch), {"labels": batch["labels"]}
        if "partner_pixels" in batch:
            pixels = mix(pixels, self.pixels(batch, "partner_"), batch["weight"], batch["rectangle"])
            arguments |= {"partner_labels": batch["partner_labels"], "partner_weight": 1 - batch["weight"]}
        return {"pixel_values": self.normalise(pixels), **arguments}

    def evaluate(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        labels = batch["labels"]
        out = model(**batch, num_items_in_batch={"labels": torch.ones((), device=labels.device)})
        count = (labels != IGNORED).sum()
        best = out.logits.topk(min(TOP, len(self.classes))).indices == labels[:, None]
        sums = {"loss": (out.loss, count), "accuracy": (best[:, 0].sum(), count)}
        if len(self.classes) > TOP:
            sums[f"top{TOP}_accuracy"] = (best.any(1).sum(), count)
        return sums

    @torch.no_grad()
    def judge(
        self, model: Any, index: np.ndarray, accelerator: Accelerator, thorough: bool = False
    ) -> dict[str, float]:
        """Each class's accuracy, at the end of a run."""
        if not thorough:
            return {}
        from sklearn.metrics import confusion_matrix  # a second to import

        def guess(own: np.ndarray) -> list[tuple[int, int]]:
            guesses = self.logits(model, own).argmax(1)
            return list(zip(self.data["validation"].labels[own].tolist(), guesses.tolist(), strict=True))

        right, guessed = zip(*by_all_processes(index, accelerator, guess), strict=True)
        confusion = confusion_matrix(right, guessed, labels=range(len(self.classes)))
        self.confusion = confusion
        return {
            f"accuracy {name}": float(row[number] / row.sum())
            for number, (name, row) in enumerate(zip(self.classes, confusion, strict=True))
            if row.sum()
        }

    def logits(self, model: Any, index: np.ndarray) -> Tensor:
        """Of held-out images `index` (M,): (M, N), on the CPU."""
        return torch.cat([model(**batch).logits.float().cpu() for batch in self.batches(model, "validation", index)])

    def draw_pictures(self, folder: Path) -> list[Path]:
        if self.confusion is None:
            return []
        path = folder / "confusion.png"
        draw_confusion(self.confusion, self.classes, path)
        return [path]

    @torch.no_grad()
    def samples(self, model: Any, count: int) -> list[str]:
        data, index = self.data["validation"], self.index("validation", 0)[:count]
        if not len(index):
            return []
        shown: list[str] = []
        for number, row in zip(index.tolist(), self.logits(model, index).softmax(1), strict=True):
            best = zip(*row.topk(min(3, len(row))), strict=True)
            guesses = ", ".join(f"{self.classes[int(guess)]} {share:.0%}" for share, guess in best)
            shown.append(f"{data.place(number)}: {self.classes[data.labels[number]]}; guessed: {guesses}")
        return shown
