"""Masked images: what the encoder sees, what is predicted, and transformers' own masked autoencoder beside ours."""

from itertools import product

import pytest
import torch
from compare import DECODER, close, equal, gradients
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from modeling.convert import VIT, renamed
from modeling.vit_masked import mean_colors, patch_statistics, visible_patches

SIZE, PATCHES = 4, 16  # images of 8 x 8 in patches of 2 x 2
SINCOS = {"position_embedding_type": "sincos2d"}
TARGETS = ["pixels", "normalized_pixels", "mean_color"]


def batch(share: float = 0.75) -> dict[str, Tensor]:
    torch.manual_seed(2)
    hidden = torch.rand(SIZE, PATCHES).argsort(-1) < share * PATCHES
    return {"pixel_values": torch.rand(SIZE, 3, 8, 8, dtype=torch.float64), "bool_masked_pos": hidden}


def patches_of(pixels: Tensor) -> Tensor:
    """(B, C, height, width) -> (B, P, C, 2, 2), one by one."""
    grid = product(range(0, pixels.shape[2], 2), range(0, pixels.shape[3], 2))
    return torch.stack([pixels[:, :, y : y + 2, x : x + 2] for y, x in grid], 1)


def native_autoencoder(model: nn.Module) -> ViTMAEForPreTraining:
    """Our weights under its names: it writes the pixels of a patch before its channels."""
    names = VIT.names | {
        "decoder.embeddings.projection": "decoder.decoder_embed",
        "decoder.embeddings.mask_token": "decoder.mask_token",
        "decoder.stack.blocks": "decoder.decoder_layers",
        "decoder.stack.norm": "decoder.decoder_norm",
        "pixels": "decoder.decoder_pred",
    }
    weights = renamed(dict(model.state_dict()), names)
    for name in ("decoder.decoder_pred.weight", "decoder.decoder_pred.bias"):
        weights[name] = weights[name].unflatten(0, (3, 4)).transpose(0, 1).flatten(0, 1)
    fields = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    config = {name: getattr(model.config, name) for name in (*fields, "intermediate_size", *DECODER)}
    native = ViTMAEForPreTraining(ViTMAEConfig(**config, norm_pix_loss=True, mask_ratio=0.75))
    missing, unexpected = native.double().eval().load_state_dict(weights, strict=False)
    assert not unexpected and all("pos" in name for name in missing)  # fixed positions, parameters there
    native.vit.embeddings.position_embeddings.data = model.vit.embeddings.positions.weight
    native.decoder.decoder_pos_embed.data = model.decoder.embeddings.positions.weight
    return native


def test_decoder_is_the_native_masked_autoencoder(tiny):
    model = tiny("KeelViTForMaskedImageModeling", **DECODER, **SINCOS, reconstruction_target="normalized_pixels")
    native, given = native_autoencoder(model), batch()
    order = given["bool_masked_pos"] * 100 + torch.arange(PATCHES)  # its encoder sees the lowest, in this order
    ours, theirs = model(**given), native(given["pixel_values"], noise=order.double())
    equal(theirs.mask, given["bool_masked_pos"].to(theirs.mask.dtype))
    close(ours.loss, theirs.loss)
    close(ours.reconstruction, native.unpatchify(theirs.logits))
    for outputs in (ours, theirs):
        outputs.loss.backward()
    for one, two in (
        (model.vit.embeddings.projection, native.vit.embeddings.patch_embeddings.projection),
        (model.decoder.embeddings.projection, native.decoder.decoder_embed),
    ):
        close(one.weight.grad, two.weight.grad)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("decoder", [{}, DECODER], ids=["mask tokens", "decoder"])
def test_hidden_patches_are_not_seen(tiny, decoder, pooling, target):
    model = tiny("KeelViTForMaskedImageModeling", **decoder, pooling=pooling, reconstruction_target=target)
    given = batch()
    covered = given["bool_masked_pos"].view(SIZE, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    other = torch.where(covered, given["pixel_values"] + 1, given["pixel_values"])
    before = model(**given, output_hidden_states=True)
    equal(model(**given | {"pixel_values": other}).reconstruction, before.reconstruction)
    assert (model(**given | {"pixel_values": other + 1}).reconstruction != before.reconstruction).any()
    patches = PATCHES // 4 if decoder else PATCHES
    assert [x.shape[1] for x in before.hidden_states] == [patches + (pooling == "cls")] * 3
    assert before.reconstruction.shape == ((SIZE, PATCHES, 512) if target == "mean_color" else (SIZE, 3, 8, 8))
    everything = model(given["pixel_values"])
    assert everything.reconstruction.shape == before.reconstruction.shape and everything.loss is None


def test_visible_patches(tiny):
    model, given = tiny("KeelViTForMaskedImageModeling", **DECODER).train(), batch()
    hidden = given["bool_masked_pos"]
    shown = visible_patches(hidden)
    for row, kept in zip(hidden, shown, strict=True):
        equal(kept, (~row).nonzero()[:, 0])
    close(gradients(model, [given | {"ids_keep": shown}]), gradients(model, [given]))
    unequal = hidden.clone()
    unequal[1, shown[1, 0]] = True
    with pytest.raises(ValueError, match="hides 12 patches of one image and 13 of another"):
        model(**given | {"bool_masked_pos": unequal})
    # An empty row of the batch hides nothing and counts for nothing.
    empty = {name: torch.cat([x, torch.zeros_like(x[:1])]) for name, x in given.items()}
    close(gradients(model, [empty]), gradients(model, [given]))


@pytest.mark.parametrize("decoder", [{}, DECODER], ids=["mask tokens", "decoder"])
def test_kernels_agree(tiny, decoder):
    model = tiny("KeelViTForMaskedImageModeling", **decoder)
    expected = model(**batch()).loss
    model.set_attn_implementation("eager")
    configs = {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")}
    assert configs == {"eager"}
    close(model(**batch()).loss, expected)


def test_statistics_of_patches():
    pixels = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    mean, std = (patches_of(x) for x in patch_statistics(pixels, 2))
    patches = patches_of(pixels).flatten(2)  # (B, P, C * 2 * 2)
    close(mean.flatten(2), patches.mean(-1, keepdim=True).expand(-1, -1, 4))
    close(std.flatten(2), (patches.var(-1, keepdim=True) + 1e-6).sqrt().expand(-1, -1, 4))


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_colors(channels):
    pixels = torch.rand(2, channels, 4, 6, dtype=torch.float64)
    pixels[0, :, :2, :2], pixels[0, :, :2, 2:4] = 0, 1  # black, white
    found = mean_colors(pixels, 2)
    for patch, color in zip(patches_of(pixels).flatten(0, 1), found.flatten().tolist(), strict=True):
        bits = "".join(f"{min(int(channel.mean() * 8), 7):03b}" for channel in patch)
        assert color == int(bits, 2)
    assert found.shape == (2, 6) and found[0, :2].tolist() == [0, 8**channels - 1]


@pytest.mark.parametrize(
    "fields, match",
    [
        ({"decoder_hidden_size": 9}, "decoder_hidden_size=9 is no multiple of decoder_num_attention_heads=2"),
        ({"decoder_hidden_size": 6}, "decoder_hidden_size=6 is no multiple of 4"),
    ],
)
def test_widths_that_suit_no_decoder(tiny, fields, match):
    with pytest.raises(ValueError, match=match):
        tiny("KeelViTForMaskedImageModeling", **DECODER | fields)
    tiny("KeelViTForMaskedImageModeling", **DECODER | fields | {"decoder_num_hidden_layers": 0})
