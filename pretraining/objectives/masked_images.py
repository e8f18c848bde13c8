"""Masked images: masked patches predicted from those that are seen (SimMIM, Xie 2021; MAE, He 2021).

With model.decoder_num_hidden_layers the encoder sees only what is not masked (MAE); model.reconstruction_target says
what is predicted. P patches.
"""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from modeling import KeelViTConfig, KeelViTForMaskedImageModeling
from modeling.vit_masked import mean_colors
from pretraining.data import draws
from pretraining.data.packing import IGNORED, Example
from pretraining.errors import UserError
from pretraining.objectives.base import Batch, Objective, Scoring, by_all_processes
from pretraining.objectives.images import ImageExamples, ImageHead
from pretraining.settings import Settings

NEIGHBOURS, TEMPERATURE = 20, 0.07  # of k-NN (Wu 2018, 3.4, with DINO's number of neighbours)


def count_masked(side: int, mask_size: int, mask_ratio: float) -> int:
    """Squares of `mask_size` x `mask_size` patches that are masked of `side` x `side` patches: some, never all."""
    squares = (side // mask_size) ** 2
    return min(max(round(mask_ratio * squares), 1), squares - 1)


def masked_patches(
    seed: int, epoch: int, index: np.ndarray, side: int, mask_size: int, mask_ratio: float
) -> np.ndarray:
    """Which of the `side` x `side` patches of images `index` (N,) are masked: bool (N, P), equally many of each."""
    images, across = len(index), side // mask_size
    drawn = draws.hash_key(seed, epoch, draws.MASK, index[:, None], np.arange(across**2))  # (N, squares)
    masked = drawn.argsort(1, kind="stable").argsort(1, kind="stable") < count_masked(side, mask_size, mask_ratio)
    grid = masked.reshape(images, across, 1, across, 1)
    return np.broadcast_to(grid, (images, across, mask_size, across, mask_size)).reshape(images, side**2)


class MaskedImages(ImageExamples):
    """An image and its masked patches each."""

    @property
    def labelled(self) -> bool:  # type: ignore[override]
        return bool(self.settings.probe_examples)

    @property
    def masking(self) -> tuple[int, int, float]:
        """Patches on each side of an image, patches on each side of a masked square, and the share that is masked."""
        config: Any = self.run.model
        return config.image_size // config.patch_size, self.settings.mask_size, self.settings.mask_ratio

    @property
    def target(self) -> str:
        """The model's argument that says what is predicted: classes of mean colours, or the masked pixels."""
        config: Any = self.run.model
        return "labels" if config.reconstruction_target == "mean_color" else "bool_masked_pos"

    def index_examples(self) -> None:
        super().index_examples()
        if self.labelled:
            labels, count = self.data["train"].labels, self.settings.probe_examples
            drawn = np.argsort(draws.hash_key(draws.SUBSET, np.arange(len(labels))), kind="stable")
            self.probe_index = drawn[:count]
            if count > len(labels) or len(np.unique(labels[self.probe_index])) < 2:
                raise UserError(
                    f"objective.probe_examples is {count}, and there are {len(labels):,} training images: it must be "
                    "no more, and enough for two classes, or 0."
                )

    def masked(self, split: str, epoch: int, index: np.ndarray) -> np.ndarray:
        """Which patches of images `index` (N,) are masked: bool (N, P), equally many of each."""
        return masked_patches(self.seed(split), epoch, index, *self.masking)

    def examples(self, split: str, epoch: int, index: np.ndarray, progress: float = 0.0) -> list[Example]:
        """Pixels, what is to be done to them, and the patches to be masked."""
        examples = self.augmented(split, epoch, index)
        for example, masked in zip(examples, self.masked(split, epoch, index), strict=True):
            example["bool_masked_pos"] = masked
        return examples

    def collate(self, rows: list[list[Example]], sequences: int) -> Batch:
        batch = super().collate(rows, sequences)
        if self.run.model.decoder_num_hidden_layers:  # type: ignore[attr-defined]
            side, mask_size, _ = self.masking
            seen = side**2 - count_masked(*self.masking) * mask_size**2
            # A stable sort of 0 and 1 puts the patches that are seen first, in their order: (B, seen).
            by_mask = batch.tensors["bool_masked_pos"].int().argsort(stable=True, dim=1)
            batch.tensors["ids_keep"] = by_mask[:, :seen]
        return batch

    def blank(self) -> Example:
        return super().blank() | {"bool_masked_pos": np.zeros(self.masking[0] ** 2, dtype=bool)}

    def count_targets(self, tensors: dict[str, Tensor]) -> tuple[dict[str, int], int]:
        masked = tensors["bool_masked_pos"]
        return {self.target: int(masked.sum())}, int(masked.any(1).sum())


class MaskedImagesHead(ImageHead[MaskedImages]):
    """A ViT that predicts masked patches."""

    def build_model(self, config: KeelViTConfig) -> PreTrainedModel:
        return KeelViTForMaskedImageModeling(config)

    def to_model_inputs(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pixels, masked = self.examples.to_pixels(tensors), tensors["bool_masked_pos"]
        inputs = {name: value for name, value in tensors.items() if name in ("bool_masked_pos", "ids_keep")}
        if self.examples.target == "labels":
            config: Any = self.examples.run.model
            inputs["labels"] = mean_colors(pixels, config.patch_size).where(masked, IGNORED)
        return {"pixel_values": self.examples.normalise(pixels), **inputs}


class MaskedImagesScoring(Scoring[MaskedImages]):
    """The loss of masked patches; at the end, what frozen features know of the classes."""

    metric = "loss"

    def sums(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        count = inputs["bool_masked_pos"].sum()
        out = model(**inputs, num_items_in_batch={self.examples.target: torch.ones((), device=count.device)})
        sums = {"loss": (out.loss, count)}
        if "labels" in inputs:
            sums["accuracy"] = ((out.reconstruction.argmax(-1) == inputs["labels"]).sum(), count)
        return sums

    @torch.no_grad()
    def score_outputs(self, model: Any, index: np.ndarray, accelerator: Accelerator, final: bool) -> dict[str, float]:
        """Accuracy of a linear probe and of nearest neighbours on frozen features, at the end of a run."""
        if not final or not self.examples.labelled:
            return {}
        from sklearn.linear_model import LogisticRegression  # a second to import
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        body, features, labels = model.base_model, {}, {}
        for split, numbers in {"train": self.examples.probe_index, "validation": index}.items():

            def work(part: np.ndarray, split: str = split) -> list[np.ndarray]:
                return list(self.features(body, split, part))

            features[split] = np.stack(by_all_processes(numbers, accelerator, work))  # (M, D)
            labels[split] = self.examples.data[split].labels[numbers]
        neighbours = KNeighborsClassifier(
            min(NEIGHBOURS, len(features["train"])),
            metric="cosine",
            weights=lambda distances: np.exp((1 - distances) / TEMPERATURE),
        )
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        scores = {}
        for name, classifier in (("linear_probe", linear), ("neighbours", neighbours)):
            classifier.fit(features["train"], labels["train"])
            scores[f"{name}_accuracy"] = float(classifier.score(features["validation"], labels["validation"]))
        return scores

    def features(self, body: Any, split: str, index: np.ndarray) -> np.ndarray:
        """The pooled states (M, D) of images `index` (M,), seen whole."""
        batches = self.examples.batches(body, split, index)
        return torch.cat([body(batch["pixel_values"]).pooler_output for batch in batches]).float().cpu().numpy()

    @torch.no_grad()
    def samples(self, model: Any, count: int) -> list[str]:
        """The loss of some held-out images; `python -m pretraining.publish.explore` shows more."""
        lines, head = [], MaskedImagesHead(self.examples)
        for number in self.examples.index("validation", 0)[:count].tolist():
            example = self.examples.examples("validation", 0, np.array([number]))
            tensors = self.examples.collate([example], 1).tensors
            inputs = {name: x.to(model.device) for name, x in head.to_model_inputs(tensors).items()}
            place = self.examples.data["validation"].place(number)
            lines.append(f"{place}: loss {float(model(**inputs).loss):.3f}")
        return lines


def objective(settings: Settings) -> Objective:
    return Objective.of(MaskedImages(settings), MaskedImagesHead, MaskedImagesScoring)
