"""What a model learns from: one class a file. The loop knows of a task only what `Objective` lists."""

from pretraining.objectives.base import Objective
from pretraining.objectives.classification import Classification
from pretraining.objectives.denoising import Denoising
from pretraining.objectives.masked_images import MaskedImages
from pretraining.objectives.mlm_nsp import SentencePairs
from pretraining.objectives.translation import Translation

OBJECTIVES: dict[str, type[Objective]] = {
    "sentence_pairs": SentencePairs,
    "translation": Translation,
    "denoising": Denoising,
    "classification": Classification,
    "masked_images": MaskedImages,
}
