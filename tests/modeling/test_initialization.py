"""How weights start: as in the papers, in a new model as where a checkpoint lacks them."""

import math

import pytest
import torch
from torch import Tensor, nn

import modeling

CUT = 0.87962566  # the std of a standard normal that is cut at two stds


def spread(weight: Tensor, std: float) -> None:
    assert abs(weight.std() / std - 1) < 0.03 and abs(weight.mean()) < 0.05 * std


def built(name: str, **fields) -> nn.Module:
    torch.manual_seed(0)
    model_class = getattr(modeling, name)
    layers = {"encoder_layers": 1, "decoder_layers": 1} if "Seq2Seq" in name else {"num_hidden_layers": 1}
    sizes = {"hidden_size": 192, "num_attention_heads": 4, "intermediate_size": 384}
    return model_class(model_class.config_class(**{**sizes, **layers, **fields}))


@pytest.mark.parametrize(
    "name, fields",
    [
        ("KeelBertForPreTraining", {"vocab_size": 1000}),
        ("KeelSeq2SeqForConditionalGeneration", {"vocab_size": 1000, "pad_token_id": 999}),
        ("KeelViTForImageClassification", {"num_labels": 10}),
        ("KeelViTForMaskedImageModeling", {"image_size": 64, "patch_size": 4}),
        (
            "KeelViTForMaskedImageModeling",
            {"image_size": 64, "patch_size": 4, "decoder_num_hidden_layers": 1, "decoder_hidden_size": 192},
        ),
    ],
)
def test_weights_start_as_in_the_papers(name, fields):
    model = built(name, **fields)
    config = model.config
    std = config.hidden_size**-0.5 if config.is_encoder_decoder else 0.02
    assert config.initializer_range == std
    tied = model.get_output_embeddings() if hasattr(config, "vocab_size") else None
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any()
        elif isinstance(module, nn.Embedding):
            assert module.weight.abs().max() <= 2 * std
            if len(module.weight) > 2:
                spread(module.weight, CUT * std)
            if module.padding_idx is not None:
                assert not module.weight[module.padding_idx].any()
        elif isinstance(module, nn.Linear) and module is not tied:
            assert module.bias is None or not module.bias.any()
            if name == "classifier":  # Dosovitskiy 2020: the head starts at zero
                assert not module.weight.any()
            elif config.initializer == "xavier_uniform":
                bound = math.sqrt(6 / sum(module.weight.shape))
                assert module.weight.abs().max() <= bound
                spread(module.weight, bound / math.sqrt(3))
            else:
                assert module.weight.abs().max() <= 2 * std
                if module.out_features > 2:
                    spread(module.weight, CUT * std)
        elif isinstance(module, modeling.embeddings.PatchEmbeddings):
            fan_in = 3 * config.patch_size**2
            spread(module.projection.weight, fan_in**-0.5)
            assert not module.projection.bias.any() and not module.cls_token.any()
            spread(module.positions, std)
        elif isinstance(module, modeling.embeddings.DecoderPatchEmbeddings):
            assert abs(module.mask_token.std() / std - 1) < 0.2  # of 192 numbers


def test_what_a_checkpoint_lacks_starts_as_in_a_new_model(tmp_path):
    built("KeelViTModel").save_pretrained(tmp_path)
    model = modeling.KeelViTForImageClassification.from_pretrained(
        tmp_path, num_channels=1, num_labels=10, ignore_mismatched_sizes=True
    )
    assert not model.classifier.weight.any() and not model.classifier.bias.any()
    projection = model.vit.embeddings.projection
    spread(projection.weight, (1 * 16**2) ** -0.5)
    assert not projection.bias.any()
