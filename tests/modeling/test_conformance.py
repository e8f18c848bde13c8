"""transformers' own tests of a model, run against every class of ours.

pytest tests/modeling/test_conformance.py --transformers-source DIR

DIR is the unpacked source distribution of the installed transformers, or a clone of its repository at that version:
only the repository has the tests of generation, and a report without them says so. They ask for the package
`parameterized`.
"""

import copy
import importlib
import sys
import unittest
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig

import modeling
from modeling import KeelBertConfig, KeelSeq2SeqConfig, KeelViTConfig

pytestmark = pytest.mark.conformance

if "transformers_tests" not in sys.modules:
    pytest.skip("needs --transformers-source DIR, an unpacked transformers distribution", allow_module_level=True)

# What test_modeling_common builds upon. An empty mixin takes the place of what DIR lacks, and a test that is skipped by
# its name says so in the report.
MIXINS = {
    "exporters.test_export": ("ExportTesterMixin", "ExportGenerateTesterMixin"),
    "generation.test_utils": ("GenerationTesterMixin",),
}
missing: list[str] = []
for module, mixins in MIXINS.items():
    name = f"transformers_tests.{module}"
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not name.startswith(str(error.name)):  # it is there, but not what it needs
            raise
        missing += mixins
        sys.modules[name] = ModuleType(name)
        for mixin in mixins:
            setattr(sys.modules[name], mixin, type(mixin, (), {}))
    sys.modules[f"tests.{module}"] = sys.modules[name]  # the repository's tests call one another so, too
common = importlib.import_module("transformers_tests.test_modeling_common")


def ids(seed: int) -> Tensor:
    return torch.randint(2, 99, (5, 7), generator=torch.Generator().manual_seed(seed))


START = 1


def decoder_ids() -> Tensor:
    """With the start token, or `generate()` would put it before them, and a test's mask would be one short."""
    return torch.cat([torch.full((5, 1), START), ids(1)[:, 1:]], 1)


SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 37}
TEXT = {"vocab_size": 99, "pad_token_id": 1, "max_position_embeddings": 64}
MASK = torch.ones(5, 7, dtype=torch.long).tril(2)
FAMILIES = [
    (
        KeelBertConfig(**SIZES, **TEXT, num_hidden_layers=2),
        {"input_ids": ids(0), "attention_mask": MASK, "token_type_ids": MASK.flip(1)},
    ),
    (
        KeelSeq2SeqConfig(**SIZES, **TEXT, encoder_layers=2, decoder_layers=2, decoder_start_token_id=START),
        {
            "input_ids": ids(0),
            "attention_mask": MASK,
            "decoder_input_ids": decoder_ids(),
            "decoder_attention_mask": MASK,
        },
    ),
    (
        KeelViTConfig(**SIZES, num_hidden_layers=2, image_size=12, patch_size=4),
        {"pixel_values": torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))},
    ),
]


@dataclass
class FamilyTester:
    """What transformers' tests ask of a family."""

    config: PreTrainedConfig
    inputs: dict[str, Tensor]
    seq_length: int
    batch_size: int = 5
    hidden_size: int = 32
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_choices: int = 3
    image_size: int = 12
    patch_size: int = 4
    mask_length: int = 9
    num_masks: int = 4
    is_training: bool = True

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
        return copy.deepcopy(self.config), copy.deepcopy(self.inputs)


class Conformance(common.ModelTesterMixin):
    """Each subclass tests one class of ours."""

    family: tuple[PreTrainedConfig, dict[str, Tensor]]
    test_can_init_all_missing_weights_before_2023 = True  # the year is read off a copyright line: ours have none

    def setUp(self):
        config, inputs = self.family
        text = "input_ids" in inputs
        self.model_tester = FamilyTester(config, inputs, seq_length=7 if text else 10)
        self.is_encoder_decoder = config.is_encoder_decoder
        self.test_resize_embeddings = self.test_resize_position_embeddings = text

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """Labels that transformers' tests do not know, and masks that hide something (theirs hide nothing)."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class is modeling.KeelBertForPreTraining:
            inputs |= {"labels": torch.zeros(5, 7).long(), "next_sentence_label": torch.zeros(5).long()}
        elif return_labels and model_class is modeling.KeelViTForMaskedImageModeling:
            inputs["bool_masked_pos"] = torch.arange(9).expand(5, -1) % 2
        return inputs

    def test_model_get_set_embeddings(self):
        """transformers' own asks for an nn.Embedding, but patches are embedded by a convolution."""
        if self.test_resize_embeddings:
            return super().test_model_get_set_embeddings()
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        model, new = self.all_model_classes[0](config), nn.Conv2d(3, 32, 4, 4)
        self.assertIsInstance(model.get_input_embeddings(), nn.Conv2d)
        model.set_input_embeddings(new)
        self.assertIs(model.get_input_embeddings(), new)


for config, inputs in FAMILIES:
    for auto, reference in config.auto_map.items():
        if auto == "AutoConfig":
            continue
        model = getattr(modeling, reference.split(".")[1])
        # The tests tell by these tables of names which labels a class takes.
        getattr(transformers, auto)._model_mapping._model_mapping[config.model_type] = model.__name__
        generation = (common.GenerationTesterMixin,) if model.can_generate() else ()
        name = f"Test{model.__name__}"
        members = {"family": (config, inputs), "all_model_classes": (model,)}
        globals()[name] = type(name, (Conformance, *generation, unittest.TestCase), members)


@pytest.mark.parametrize("mixin", [mixin for mixins in MIXINS.values() for mixin in mixins])
def test_the_tests_are_there(mixin):
    if mixin in missing:
        pytest.skip(f"{mixin} did not run: this DIR lacks it, a clone of the repository has it")
