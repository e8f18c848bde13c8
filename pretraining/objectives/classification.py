"""Classification of images (Dosovitskiy 2020), with the recipe that makes plain ViTs learn from little data."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from modeling import KeelViTConfig, KeelViTForImageClassification
from pretraining.data.images.augment import draw_mixing
from pretraining.data.images.augment_batch import mix_images
from pretraining.data.packing import IGNORED, Example
from pretraining.objectives.base import Objective, Scoring, by_all_processes
from pretraining.objectives.images import ImageExamples, ImageHead
from pretraining.pictures.charts import draw_confusion
from pretraining.settings import Settings

TOP = 5


class LabelledImages(ImageExamples):
    """An image and its class each, another image perhaps mixed in."""

    labelled = True

    @property
    def classes(self) -> list[str]:
        return self.data["train"].classes

    def examples(self, split: str, epoch: int, index: np.ndarray, progress: float = 0.0) -> list[Example]:
        """Pixels before augmentation, what is to be done to them, the class; and all of that of a partner's."""
        examples = self.augmented(split, epoch, index)
        labels, settings = self.data[split].labels, self.settings
        for example, number in zip(examples, index.tolist(), strict=True):
            example["labels"] = labels[number]
        if split == "train" and settings.mixing and (settings.mixup or settings.cutmix):
            mixing = draw_mixing(settings, self.run.seed, epoch, index, self.size, len(labels))
            partners = self.augmented(split, epoch, mixing["partner"])
            for i, (example, partner) in enumerate(zip(examples, partners, strict=True)):
                example |= {f"partner_{name}": value for name, value in partner.items()}
                example["partner_labels"] = labels[mixing["partner"][i]]
                example |= {name: mixing[name][i] for name in ("weight", "rectangle")}
        return examples

    def blank(self) -> Example:
        return super().blank() | {"labels": np.array(IGNORED)}

    def count_targets(self, tensors: dict[str, Tensor]) -> tuple[dict[str, int], int]:
        count = int((tensors["labels"] != IGNORED).sum())
        return {"labels": count}, count


class ClassificationHead(ImageHead[LabelledImages]):
    """A ViT with a classifier."""

    def build_model(self, config: KeelViTConfig) -> PreTrainedModel:
        classes = self.examples.classes
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: number for number, name in enumerate(classes)}
        return KeelViTForImageClassification(config)

    def to_model_inputs(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pixels, labels = self.examples.to_pixels(tensors), {"labels": tensors["labels"]}
        if "partner_pixels" in tensors:
            partners = self.examples.to_pixels(tensors, "partner_")
            pixels = mix_images(pixels, partners, tensors["weight"], tensors["rectangle"])
            labels |= {"partner_labels": tensors["partner_labels"], "partner_weight": 1 - tensors["weight"]}
        return {"pixel_values": self.examples.normalise(pixels), **labels}


class ClassificationScoring(Scoring[LabelledImages]):
    """Loss and accuracy; at the end each class's accuracy, and which classes are taken for which."""

    confusion: np.ndarray | None = None
    """(classes, classes): the held-out images of each true class by predicted class, after the final scores."""

    def sums(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        labels, classes = inputs["labels"], len(self.examples.classes)
        out = model(**inputs, num_items_in_batch={"labels": torch.ones((), device=labels.device)})
        count = (labels != IGNORED).sum()
        is_true = out.logits.topk(min(TOP, classes)).indices == labels[:, None]  # (B, TOP), the likeliest first
        sums = {"loss": (out.loss, count), "accuracy": (is_true[:, 0].sum(), count)}
        if classes > TOP:
            sums[f"top{TOP}_accuracy"] = (is_true.any(1).sum(), count)
        return sums

    @torch.no_grad()
    def score_outputs(self, model: Any, index: np.ndarray, accelerator: Accelerator, final: bool) -> dict[str, float]:
        """Each class's accuracy, at the end of a run."""
        if not final:
            return {}
        from sklearn.metrics import confusion_matrix  # a second to import

        def work(part: np.ndarray) -> list[tuple[int, int]]:
            predicted = self.logits(model, part).argmax(1)
            return list(zip(self.examples.data["validation"].labels[part].tolist(), predicted.tolist(), strict=True))

        true, predicted = zip(*by_all_processes(index, accelerator, work), strict=True)
        classes = self.examples.classes
        self.confusion = confusion = confusion_matrix(true, predicted, labels=range(len(classes)))
        return {
            f"accuracy {name}": float(row[number] / row.sum())
            for number, (name, row) in enumerate(zip(classes, confusion, strict=True))
            if row.sum()
        }

    def logits(self, model: Any, index: np.ndarray) -> Tensor:
        """Of held-out images `index` (M,): (M, classes), on the CPU."""
        batches = self.examples.batches(model, "validation", index)
        return torch.cat([model(**batch).logits.float().cpu() for batch in batches])

    def draw_pictures(self, folder: Path) -> list[Path]:
        assert self.confusion is not None, "drawn after the final scores"
        path = folder / "confusion.png"
        draw_confusion(self.confusion, self.examples.classes, path)
        return [path]

    @torch.no_grad()
    def samples(self, model: Any, count: int) -> list[str]:
        data, index = self.examples.data["validation"], self.examples.index("validation", 0)[:count]
        if not len(index):
            return []
        classes, lines = self.examples.classes, []
        for number, row in zip(index.tolist(), self.logits(model, index).softmax(1), strict=True):
            best = zip(*row.topk(min(3, len(row))), strict=True)
            predicted = ", ".join(f"{classes[int(label)]} {share:.0%}" for share, label in best)
            lines.append(f"{data.place(number)}: true: {classes[data.labels[number]]}; predicted: {predicted}")
        return lines


def objective(settings: Settings) -> Objective:
    return Objective.of(LabelledImages(settings), ClassificationHead, ClassificationScoring)
