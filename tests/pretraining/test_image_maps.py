"""Pictures of a trained ViT: what they show is right, they are there, and each mistake gets one sentence."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from modeling.vit_masked import mean_colors
from pretrain import main as pretrain
from pretraining.objectives.masked_images import masked_patches
from pretraining.pictures.charts import draw_gallery, draw_similarities, overlaid, tiled
from pretraining.pictures.vit_insides import (
    attention_of_image,
    color_of_class,
    kernel_components,
    over_patches,
    over_pixels,
    position_similarities,
    reconstructed,
    rollout,
)
from pretraining.publish.explore import image_page, pictures
from pretraining.publish.explore.__main__ import main as explore
from pretraining.publish.explore.page import write_page
from pretraining.publish.source import find_source

pytestmark = pytest.mark.usefixtures("pictures")

POSITIONS, POOLINGS = ("learned", "sincos2d"), ("cls", "mean")
TARGETS = ("pixels", "normalized_pixels", "mean_color")
MEAN, DEVIATION = (torch.tensor(values)[:, None, None] for values in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.25]))


@pytest.fixture
def vit(tiny: Callable[..., PreTrainedModel]) -> Callable[..., PreTrainedModel]:
    """Such a model in fp32, with the eager kernel."""

    def build(name: str = "KeelViTForImageClassification", **fields) -> PreTrainedModel:
        model = tiny(name, **fields).float()
        model.set_attn_implementation("eager")
        return model

    return build


@pytest.fixture
def saved(vit: Callable[..., PreTrainedModel], tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint of it, beside no run."""

    def save(name: str = "KeelViTForImageClassification", **fields) -> Path:
        model, folder = vit(name, **fields), tmp_path / "saved" / "model"
        channels, size = model.config.num_channels, model.config.image_size
        statistics = {"image_mean": [0.4] * channels, "image_std": [0.2] * channels}
        model.save_pretrained(folder)
        size = {"height": size, "width": size}
        ViTImageProcessorPil(size=size, do_convert_rgb=channels == 3, **statistics).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Noise of other sizes than the model's."""
    paths = [tmp_path / "a $x$.png", tmp_path / f"{'long' * 20}.png"]
    for path, size in zip(paths, ((9, 12, 3), (8, 8, 3)), strict=True):
        Image.fromarray(np.random.default_rng(size[0]).integers(0, 256, size, dtype=np.uint8)).save(path)
    return paths


def pixels(seed: int = 0, size: int = 8) -> torch.Tensor:
    """Two images from 0 to 1 (B, C, S, S)."""
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def size_of(path: Path) -> tuple[int, int]:
    """Of a picture that can be read whole, and is none of one colour."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("RGB")).std() > 1
        return image.size


# ---- what is computed ----


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_similarities_are_cosines_of_the_patches_positions(positions: str, pooling: str, vit):
    model = vit(position_embedding_type=positions, pooling=pooling)
    found = position_similarities(model)
    assert found.shape == (4, 4, 4, 4)
    flat = found.flatten(2).flatten(0, 1)
    assert torch.allclose(flat.diagonal(), torch.ones(16).double())
    torch.testing.assert_close(flat, flat.T)  # a product's order of sums is the processor's own
    assert (flat.abs() <= 1 + 1e-9).all()
    embeddings = model.vit.embeddings
    table = embeddings.positions if positions == "learned" else embeddings.positions.weight
    one, other = table[0, (pooling == "cls") + torch.tensor([2 * 4 + 1, 3])].double()  # row 2 column 1; row 0 column 3
    assert found[2, 1, 0, 3].item() == pytest.approx((one @ other / one.norm() / other.norm()).item())


def test_sincos_positions_are_more_alike_the_nearer_they_are(vit):
    found = position_similarities(vit(position_embedding_type="sincos2d"))
    assert (found[0, 0, 0].diff() < 0).all() and (found[0, 0, :, 0].diff() < 0).all()


@pytest.mark.parametrize(("size", "width", "count"), [(2, 16, 12), (2, 8, 7), (4, 40, 28)])
def test_components_are_orthonormal_and_the_most_variable_directions(size: int, width: int, count: int, vit):
    model = vit(patch_size=size, hidden_size=width)
    components, shares = kernel_components(model)
    assert components.shape == (count, 3, size, size)
    flat = components.flatten(1)
    assert torch.allclose(flat @ flat.T, torch.eye(count).double(), atol=1e-9)
    kernels = model.vit.embeddings.projection.weight.detach().double().flatten(1)
    assert torch.allclose((kernels @ flat.T).var(0), shares * kernels.var(0).sum())
    assert (shares.diff() <= 0).all() and shares.sum() <= 1 + 1e-9
    assert (flat.amax(1) == flat.abs().amax(1)).all()


def test_rollout_is_the_product_of_the_layers():
    layers = torch.rand(3, 2, 5, 5, generator=torch.Generator().manual_seed(0)).double().softmax(-1)
    found = rollout(layers)
    assert torch.allclose(found.sum(-1), torch.ones(3, 5).double())
    for last in range(3):  # how much of token k token q holds: all paths that lead from one to the other
        expected = torch.eye(5).double()
        for layer in layers[: last + 1]:
            mixed = 0.5 * (layer[0] + layer[1]) / 2 + 0.5 * torch.eye(5)
            mixed = mixed / mixed.sum(-1, keepdim=True)
            before, expected = expected, torch.zeros(5, 5).double()
            for q in range(5):
                for k in range(5):
                    expected[q, k] = sum(mixed[q, via] * before[via, k] for via in range(5))
        assert torch.allclose(found[last], expected)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_attention_is_that_of_what_is_pooled_and_of_each_patch(pooling: str, vit):
    model = vit(pooling=pooling)
    image = pixels()[:1]
    found = attention_of_image(model, image)
    with torch.no_grad():
        layers = torch.cat(model(image, output_attentions=True).attentions)
    extra = pooling == "cls"
    assert found.shape == (2, 2 + 1, 1 + 16, 16 + extra)
    assert torch.allclose(found.sum(-1), torch.ones(2, 3, 17))
    assert torch.equal(found[:, :2, 1:], layers[:, :, extra:])
    assert torch.allclose(found[:, :2, 0], layers[:, :, 0] if extra else layers.mean(2))
    assert torch.allclose(found[:, 2, 1:], rollout(layers)[:, extra:])


def test_patches_lie_row_by_row(vit):
    weights = torch.arange(17.0)
    assert over_patches(vit(), weights).tolist() == (torch.arange(16.0).reshape(4, 4) + 1).tolist()
    assert over_pixels(torch.tensor([[0, 1], [2, 3]]), 2).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2


@pytest.mark.parametrize("channels", [1, 3])
def test_the_colour_of_a_class_is_of_that_class(channels: int):
    classes = torch.arange(8**channels)
    colors = color_of_class(classes, channels)[..., None, None].expand(-1, -1, 2, 2)
    assert torch.equal(mean_colors(colors, 2)[:, 0], classes)


@pytest.mark.parametrize("decoder", [0, 1])
@pytest.mark.parametrize("target", TARGETS)
def test_visible_pixels_are_kept_and_hidden_ones_predicted(target: str, decoder: int, vit):
    sizes = {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 24}
    model = vit(
        "KeelViTForMaskedImageModeling", reconstruction_target=target, decoder_num_hidden_layers=decoder, **sizes
    )
    hidden = torch.tensor(masked_patches(0, 0, np.arange(2), 4, 1, 0.5))
    pixel_values = (pixels() - MEAN) / DEVIATION
    with torch.no_grad():
        found = reconstructed(model, pixel_values, hidden, MEAN, DEVIATION)
        guess = model(pixel_values, bool_masked_pos=hidden).reconstruction
    where = over_pixels(hidden.unflatten(1, (1, 4, 4)), 2).expand(-1, 3, -1, -1)
    assert 0.4 < where.float().mean() < 0.6
    torch.testing.assert_close(found[~where], (pixel_values * DEVIATION + MEAN)[~where])
    assert not torch.isclose(found, pixels())[where].all()
    assert ((found >= -1e-6) & (found <= 1 + 1e-6)).all()
    if target == "pixels":
        torch.testing.assert_close(found[where], (guess * DEVIATION + MEAN).clamp(0, 1)[where])
    if target == "mean_color":
        assert torch.equal(mean_colors(found, 2)[hidden], guess.argmax(-1)[hidden])


def test_normalised_pixels_come_back(vit, monkeypatch: pytest.MonkeyPatch):
    """Of a model that predicts its target the reconstruction is the image."""
    model = vit("KeelViTForMaskedImageModeling", reconstruction_target="normalized_pixels")
    pixel_values = (pixels() - MEAN) / DEVIATION
    patches = pixel_values.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, C, H, W, 2, 2)
    for row, column in np.ndindex(4, 4):
        values = patches[:, :, row, column]
        flat = values.flatten(1)
        std = (flat.var(1) + 1e-6).sqrt()
        patches[:, :, row, column] = (values - flat.mean(1)[:, None, None, None]) / std[:, None, None, None]
    target = patches.transpose(3, 4).flatten(4).flatten(2, 3)
    assert target.shape == pixel_values.shape
    original = (pixels() - MEAN) / DEVIATION
    monkeypatch.setattr(model, "forward", lambda *_, **__: type("Output", (), {"reconstruction": target}))
    hidden = torch.ones(2, 16, dtype=torch.bool)
    assert torch.allclose(reconstructed(model, original, hidden, MEAN, DEVIATION), pixels(), atol=1e-6)


def test_tiles_and_overlays():
    tiles = np.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2)
    whole = tiled(tiles)
    assert whole.shape == (7, 10)
    assert np.isnan(whole[::3]).all() and np.isnan(whole[:, ::3]).all()
    assert (whole[4:6, 7:9] == tiles[1, 2]).all() and np.isnan(whole).sum() == 70 - tiles.size
    drawn = overlaid(np.zeros((4, 4, 1)), np.array([[0.1, 0.2], [0.3, 0.4]]))
    assert drawn.shape == (4, 4, 3) and (np.diff(drawn.sum(2).flatten()[[0, 2, 8, 10]]) > 0).all()


# ---- the pictures ----


def draw(folder: Path, images: list[Path], out: Path, mask_ratio: float | None = None) -> list[Path]:
    return pictures.draw_pictures(find_source(folder), list(map(str, images)), out, mask_ratio)


def test_a_classifier_is_drawn(saved, images: list[Path], tmp_path: Path, capsys):
    out = tmp_path / "out"
    explore([str(saved()), *map(str, images), "--out", str(out / "page.html"), "--png"])
    paths = [out / name for name in ("page.html", "positions.png", "kernels.png", "attention.png")]
    assert capsys.readouterr().out.split("\n")[:-1] == list(map(str, paths))
    assert sorted(out.iterdir()) == sorted(paths)
    for path in paths[1:]:
        width, height = size_of(path)
        assert 500 < width < 1500 and 200 < height < 1500


@pytest.mark.parametrize(("target", "channels"), [("mean_color", 3), ("pixels", 1)])
def test_a_model_of_masked_images_is_drawn(target: str, channels: int, saved, images: list[Path], tmp_path: Path):
    fields = {"reconstruction_target": target, "num_channels": channels, "pooling": "mean"}
    model = saved("KeelViTForMaskedImageModeling", **fields)
    if channels == 1:
        for path in images:
            Image.open(path).convert("L").save(path)
    for ratio in (0.0, 1.0):
        with pytest.raises(ValueError, match="above 0 and below 1"):
            draw(model, images, tmp_path / "none", mask_ratio=ratio)
    names = ["positions.png", "kernels.png", "attention.png"]  # no run says how much is masked
    assert [path.name for path in draw(model, images, tmp_path / "out")] == names
    paths = draw(model, images, tmp_path / "out", mask_ratio=0.5)
    assert [path.name for path in paths] == [*names, "reconstructions.png"]
    first = [(size_of(path), path.read_bytes())[1] for path in paths]
    assert [path.read_bytes() for path in draw(model, images, tmp_path / "again", mask_ratio=0.5)] == first


def test_a_run_says_how_much_is_masked(tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch):
    """A masked autoencoder from its run to its pictures; the run's squares and share are masked again."""
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = {"family": "vit", "image_size": 8, "patch_size": 2, "num_channels": 1, **small}
    model |= {f"decoder_{name}": value for name, value in small.items()}
    model |= {"position_embedding_type": "sincos2d", "reconstruction_target": "normalized_pixels"}
    run = ["--name=mae", f"--runs={tmp_path}", f"--cache={tmp_path / 'cache'}", "--data.source=digits"]
    run += [f"--model.{name}={value}" for name, value in model.items()]
    run += ["--objective.name=masked_images", "--objective.mask_ratio=0.75", "--objective.mask_size=2"]
    run += ["--train.steps=1", "--train.rows_per_step=8", "--train.micro_batch=8", "--train.precision=fp32"]
    run += ["--train.kernel=sdpa", "--train.linear=torch", "--train.threads=1", "--evaluation.examples=8"]
    pretrain([*run, "--data.validation_fraction=0.1", "--log.trackers=[]"])
    Image.open(images[0]).convert("L").save(images[0])
    seen: list[tuple] = []
    gallery = pictures.draw_gallery
    monkeypatch.setattr(pictures, "draw_gallery", lambda *all: (seen.append(all), gallery(*all)))
    paths = draw(tmp_path / "mae", images[:1], tmp_path)
    assert paths[-1].name == "reconstructions.png" and size_of(paths[-1])
    rows, title, _ = seen[-1]
    assert title.startswith("75% of the patches are masked")
    (_, whole), (_, part), (_, guess) = rows[0]
    visible = (part != image_page.MASKED).all(2)
    assert visible.reshape(2, 4, 2, 4).all((1, 3)).sum() == 1 and visible.sum() == 16
    assert (part[visible] == whole[visible]).all() and (guess[visible] == whole[visible]).all()
    assert (guess[~visible] != whole[~visible]).any()


def test_odd_names_and_large_grids_are_drawn(tmp_path: Path):
    picture = np.zeros((2, 2, 1))
    picture[0, 0] = 1
    draw_gallery([[("naïve", picture), ("$\\x", picture)], [("alone", picture)]], "title", tmp_path / "a.png")
    size_of(tmp_path / "a.png")
    near = np.eye(20 * 20).reshape(20, 20, 20, 20)
    draw_similarities(near, tmp_path / "b.png")
    assert min(size_of(tmp_path / "b.png")) > 20 * 21 * 2  # no patch of a map is lost


# ---- mistakes ----


def look(folder: Path, images: list[Path], out: Path, mask_ratio: float | None = None) -> Path:
    return write_page(find_source(folder), list(map(str, images)), out, mask_ratio)


def test_a_folder_without_what_the_page_needs(saved, images: list[Path], tmp_path: Path, capsys):
    model, page = saved(), tmp_path / "out" / "page.html"
    with pytest.raises(ValueError, match="--mask-ratio is for models of masked images"):
        look(model, images, page, mask_ratio=0.5)
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="no image processor can be read"):
        look(model, images, page)
    with pytest.raises(SystemExit):
        explore([str(tmp_path / "nowhere")])
    told = capsys.readouterr().err
    assert told.startswith("explore: error: there is no folder") and told.count("\n") == 1
    assert not page.parent.exists()


def test_images_that_cannot_be_read_are_named(saved, images: list[Path], tmp_path: Path):
    model, broken, page = saved(), tmp_path / "broken.png", tmp_path / "out" / "page.html"
    broken.write_bytes(images[0].read_bytes()[:60])
    (tmp_path / "words.txt").write_text("no image")
    for path in (broken, tmp_path / "words.txt", tmp_path / "missing.png", tmp_path):
        with pytest.raises(ValueError, match=rf"{path} cannot be read as an image: "):
            look(model, [*images, path], page)
    with pytest.raises(ValueError, match=r"a \$x\$.png has colours, and the model sees grey"):
        look(saved(num_channels=1), images, page)
    assert not page.parent.exists()


def test_processors_of_other_models(saved, images: list[Path], tmp_path: Path):
    model = saved()
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(model)
    with pytest.raises(ValueError, match=r"makes \(3, 16, 16\) of an image, and the model takes \(3, 8, 8\)"):
        look(model, images, tmp_path / "page.html")
