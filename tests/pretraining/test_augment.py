"""Augmentation: as PIL does it, in the proportions asked for, and a function of (seed, epoch, index) alone."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from pretraining.data.images.augment import augment, cut, draw, draw_erasing, draw_mixing
from pretraining.data.images.augment_batch import erase, mix_images, normal
from pretraining.data.images.randaugment import OPERATIONS, randaugment
from pretraining.data.images.settings import MixingSettings

MANY = 20_000
ALL = MixingSettings(randaugment_layers=2, randaugment_magnitude=9, erasing=0.5, mixup=0.8, cutmix=1.0)


def pictures(count: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth images with a little noise: (count, height, width, channels)."""
    random = np.random.default_rng(0)
    small = random.integers(0, 200, (count, 4, 4, 3), dtype=np.uint8)
    smooth = np.stack([np.asarray(Image.fromarray(image).resize((width, height))) for image in small])
    return (smooth + random.integers(0, 56, smooth.shape)).astype(np.uint8)[..., :channels]


def tensors(drawn: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in drawn.items()}


def by_pil(name: str, image: Image.Image, magnitude: float) -> Image.Image:
    """An operation as the paper's code and torchvision call PIL."""
    size, share = image.size[0], magnitude / 30
    factor = math.floor((1 + 0.9 * share) * 2**16 + 0.5) / 2**16
    fill = 128 if image.mode == "L" else (128,) * 3
    shift = size * 150 / 331 * share
    warps = {
        "shear-x": (1, 0.3 * share, 0, 0, 1, 0),
        "shear-y": (1, 0, 0, 0.3 * share, 1, 0),
        "translate-x": (1, 0, shift, 0, 1, 0),
        "translate-y": (1, 0, 0, 0, 1, shift),
    }
    if name in warps:
        return image.transform(image.size, Image.Transform.AFFINE, warps[name], fillcolor=fill)
    if name in ("color", "contrast", "brightness", "sharpness"):
        return getattr(ImageEnhance, name.capitalize())(image).enhance(factor)
    return {
        "identity": lambda: image,
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "rotate": lambda: image.rotate(30 * share, fillcolor=fill),
        "solarize": lambda: ImageOps.solarize(image, 255 * (1 - abs(share))),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(4 * abs(share))),
    }[name]()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_pil(name: str, channels: int):
    for size in (8, 33):
        images = pictures(24, size, size, channels)
        images[0] = 77  # one colour
        for image, magnitude in zip(images, np.linspace(-30, 30, len(images)), strict=True):
            operation = np.array([list(OPERATIONS).index(name)])
            expected = by_pil(name, Image.fromarray(image.squeeze()), float(magnitude))
            assert np.array_equal(randaugment(image, operation, magnitude[None]).squeeze(), np.asarray(expected))


def test_operations_do_what_the_paper_says():
    """By arithmetic of our own. PIL cuts products to whole numbers, and may thus end one below."""
    image = pictures(1, 32, 32)[0]

    def done(name: str, magnitude: float) -> np.ndarray:
        return randaugment(image, np.array([list(OPERATIONS).index(name)]), np.array([magnitude])).astype(int)

    low, high = image.min((0, 1)).astype(int), image.max((0, 1)).astype(int)
    assert np.abs(done("autocontrast", 9) - (image.astype(int) - low) * 255 // (high - low)).max() <= 1
    assert np.abs(done("brightness", 10) - np.clip(image * 1.3, 0, 255)).max() <= 1
    assert np.abs(done("brightness", -30) - image * 0.1).max() <= 1
    for magnitude in (10, -10):
        assert np.array_equal(done("solarize", magnitude), np.where(image < 170, image, 255 - image))
        assert np.array_equal(done("posterize", 3 * magnitude), image & 0b11110000)
    shift = round(32 * 150 / 331)
    across, down = done("translate-x", 30), done("translate-y", -30)
    assert np.array_equal(across[:, :-shift], image[:, shift:]) and (across[:, -shift:] == 128).all()
    assert np.array_equal(down[shift:], image[:-shift]) and (down[:shift] == 128).all()


def test_operations_follow_one_another():
    image, names = pictures(1, 32, 32)[0], list(OPERATIONS)
    chosen = np.array([names.index("solarize"), names.index("shear-x")])
    both = randaugment(image, chosen, np.array([10.0, -20.0]))
    first = randaugment(image, chosen[:1], np.array([10.0]))
    assert np.array_equal(both, randaugment(first, chosen[1:], np.array([-20.0])))
    assert not np.array_equal(both, first)


def test_crops_have_the_areas_and_ratios_asked_for():
    settings = MixingSettings(crop_scale=[0.2, 0.9], crop_ratio=[0.5, 2.0])
    sizes = np.tile([[300, 400]], (MANY, 1))
    left, top, right, bottom = draw(settings, 0, 0, np.arange(MANY), sizes)["box"].T
    assert min(left.min(), top.min()) == 0 and right.max() == 400 and bottom.max() == 300
    area, ratio = (right - left) * (bottom - top) / 120_000, (right - left) / (bottom - top)
    assert 0.195 < area.min() < 0.21 and 0.85 < area.max() < 0.905
    assert 0.49 < ratio.min() < 0.52 and 1.95 < ratio.max() < 2.02
    inner = area < 0.5  # every ratio fits, so that all are as likely
    assert np.median(area[inner]) == pytest.approx(0.35, abs=0.01)
    assert np.median(np.log(ratio[inner])) == pytest.approx(0, abs=0.03)


def test_crops_that_never_fit_are_of_the_middle():
    settings = MixingSettings(crop_scale=[0.9, 1.0])
    box = draw(settings, 0, 0, np.arange(9), np.tile([[10, 100]], (9, 1)))["box"]
    assert (box == [43, 0, 56, 10]).all()


def test_padded_crops_reach_everywhere_as_often():
    sizes = np.tile([[32, 32]], (MANY, 1))
    box = draw(MixingSettings(crop="padded"), 0, 0, np.arange(MANY), sizes)["box"]
    assert (box[:, 2:] - box[:, :2] == 32).all()
    for offsets in box[:, :2].T:
        counts = np.bincount(offsets + 4, minlength=9)
        assert len(counts) == 9 and np.abs(counts / MANY - 1 / 9).max() < 0.01
    assert abs(np.corrcoef(box[:, 0], box[:, 1])[0, 1]) < 0.03


def test_cut_is_what_pil_and_padding_give():
    image = pictures(1, 40, 50)[0]
    for box in ((0, 0, 50, 40), (5, 7, 45, 30), (-3, -4, 29, 28), (20, 10, 52, 42), (-9, -9, 60, 60)):
        padded = np.pad(image, ((10, 22), (10, 12), (0, 0)))[box[1] + 10 : box[3] + 10, box[0] + 10 : box[2] + 10]
        expected = Image.fromarray(padded).resize((32, 32), Image.Resampling.BICUBIC)
        got = cut(image, np.array(box), 32, Image.Resampling.BICUBIC)
        assert np.array_equal(got, np.asarray(expected))
        grey = cut(image[..., :1], np.array(box), 32, Image.Resampling.BICUBIC)
        assert grey.shape == (32, 32, 1) and np.abs(grey[..., 0].astype(int) - got[..., 0]).max() <= 1


def test_shares_are_those_asked_for():
    settings = MixingSettings(flip=0.3, randaugment_layers=2, erasing=0.25)
    drawn = draw(settings, 0, 0, np.arange(MANY), np.full((MANY, 2), 32))
    assert drawn["flip"].mean() == pytest.approx(0.3, abs=0.015)
    counts = np.stack([np.bincount(layer, minlength=14) for layer in drawn["operations"].T]) / MANY
    assert np.abs(counts - 1 / 14).max() < 0.01
    assert np.abs((drawn["magnitudes"] > 0).mean(0) - 0.5).max() < 0.015
    drawn = draw_erasing(settings, 0, 0, np.arange(MANY), 32)
    left, top, right, bottom = drawn["erased"].T
    some = right > left
    assert some.mean() == pytest.approx(0.25, abs=0.015)
    area = ((right - left) * (bottom - top))[some] / 32**2
    assert area.min() > 0.01 and area.max() < 0.36 and area.mean() == pytest.approx(0.17, abs=0.01)
    assert len(np.unique(drawn["noise_seed"])) == MANY


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_mixup_weights_are_beta_and_partners_uniform(alpha: float):
    mixing = draw_mixing(MixingSettings(mixup=alpha, mixing=0.5), 0, 0, np.arange(MANY), 32, count=10)
    assert not mixing["rectangle"].any()
    mixed = mixing["weight"] < 1
    # Of Beta(0.2, 0.2) some are so close to 1 that a 32-bit number cannot tell.
    assert mixed.mean() == pytest.approx(0.5, abs=0.015 if alpha > 0.5 else 0.03)
    weight = draw_mixing(MixingSettings(mixup=alpha), 0, 0, np.arange(MANY), 32, count=10)["weight"]
    assert weight.mean() == pytest.approx(0.5, abs=0.02)
    assert weight.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.04)
    assert np.abs(np.bincount(mixing["partner"], minlength=10) / MANY - 0.1).max() < 0.01


def test_cutmix_takes_the_area_that_the_weight_says():
    index = np.arange(MANY)
    mixing = tensors(draw_mixing(MixingSettings(cutmix=1.0, mixup=0.8), 0, 0, index, 16, count=MANY))
    pasted = mixing["rectangle"][:, 2] > mixing["rectangle"][:, 0]
    assert pasted.float().mean() == pytest.approx(0.5, abs=0.02)
    got = mix_images(torch.ones(MANY, 1, 16, 16), torch.zeros(MANY, 1, 16, 16), mixing["weight"], mixing["rectangle"])
    assert torch.allclose(got.mean((1, 2, 3)), mixing["weight"], atol=1e-6)
    assert ((got[pasted] == 0) | (got[pasted] == 1)).all()
    assert (got[~pasted].amax((2, 3)) == got[~pasted].amin((2, 3))).all()


def test_noise_is_normal_and_the_same_for_a_seed():
    seeds = torch.tensor([3, -5, 2**62])
    noise = normal(seeds, 30_001)
    assert noise.mean(1).abs().max() < 0.03 and (noise.std(1) - 1).abs().max() < 0.02
    assert (noise**4).mean().item() == pytest.approx(3, abs=0.15)
    assert torch.corrcoef(noise).triu(1).abs().max() < 0.03
    for shift in (1, 2, 3, 4):
        assert (noise[:, shift:] * noise[:, :-shift]).mean(1).abs().max() < 0.03
    assert torch.equal(normal(seeds[1:2], 10)[0], noise[1, :10])


def test_everything_is_a_function_of_seed_epoch_and_index():
    index = np.arange(100, 164)
    sizes = np.random.default_rng(0).integers(20, 60, (64, 2))
    order = np.random.default_rng(1).permutation(64)

    def both(seed: int, epoch: int, some: np.ndarray) -> dict[str, np.ndarray]:
        mixing = draw_mixing(ALL, seed, epoch, index[some], 32, count=1000)
        erasing = draw_erasing(ALL, seed, epoch, index[some], 32)
        return draw(ALL, seed, epoch, index[some], sizes[some]) | erasing | mixing

    drawn = both(1, 2, np.arange(64))
    for name, values in both(1, 2, order).items():
        assert np.array_equal(values, drawn[name][order]), name
    for i in range(5):
        for name, values in both(1, 2, np.array([i])).items():
            assert np.array_equal(values[0], drawn[name][i]), name
    for other in (both(2, 2, np.arange(64)), both(1, 3, np.arange(64))):
        for name, values in other.items():
            assert not np.array_equal(values, drawn[name]), name


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_the_same_to_the_bit_alone_and_in_a_batch(channels: int):
    size, statistics = 19, torch.full((2, channels, 1, 1), 0.5)
    images = torch.from_numpy(pictures(64, size, size, channels)).permute(0, 3, 1, 2) / 255
    drawn = tensors(draw_erasing(ALL, 0, 0, np.arange(64), size))
    together = erase(images, **drawn, mean=statistics[0], std=statistics[1])
    for i in range(64):
        own = {name: values[i : i + 1] for name, values in drawn.items()}
        assert torch.equal(erase(images[i : i + 1], **own, mean=statistics[0], std=statistics[1])[0], together[i])
    assert together.shape == (64, channels, size, size) and not torch.equal(together, images)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_cut_out_then_flipped_then_through_randaugment(channels: int):
    images = pictures(8, 24, 30, channels)
    drawn = draw(ALL, 0, 0, np.arange(8), np.full((8, 2), (24, 30)))
    assert set(drawn["flip"].tolist()) == {True, False}
    for i, image in enumerate(images):
        changes = {name: values[i] for name, values in drawn.items()}
        done = augment(image, changes, 16, Image.Resampling.BICUBIC)
        part = Image.fromarray(cut(image, changes["box"], 16, Image.Resampling.BICUBIC).squeeze())
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if changes["flip"] else part
        for operation, magnitude in zip(changes["operations"], changes["magnitudes"], strict=True):
            part = by_pil(list(OPERATIONS)[operation], part, float(magnitude))
        assert done.shape == (channels, 16, 16) and done.dtype == np.uint8
        assert np.array_equal(done.transpose(1, 2, 0), np.asarray(part).reshape(16, 16, channels))


def test_noise_is_standard_normal_once_normalised():
    drawn = tensors(draw_erasing(MixingSettings(erasing=1), 0, 0, np.arange(200), 32))
    mean, std = torch.tensor([0.3, 0.4, 0.5])[:, None, None], torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    done = erase(torch.zeros(200, 3, 32, 32), **drawn, mean=mean, std=std)
    noise = ((done - mean) / std).transpose(0, 1)[:, (done != 0).all(1)]
    assert noise.mean(1).abs().max() < 0.03 and (noise.std(1) - 1).abs().max() < 0.03


def test_nothing_asked_for_is_nothing_done():
    off = MixingSettings(crop="none", flip=0)
    images = pictures(8, 32, 32)
    drawn = draw(off, 0, 0, np.arange(8), np.full((8, 2), 32))
    assert set(drawn) == {"box", "flip"} and not draw_erasing(off, 0, 0, np.arange(8), 32)
    for image, box, flip in zip(images, *drawn.values(), strict=True):
        done = augment(image, {"box": box, "flip": flip}, 32, Image.Resampling.BILINEAR)
        assert np.array_equal(done, image.transpose(2, 0, 1))
        flipped = augment(image, {"box": box, "flip": np.array(True)}, 32, Image.Resampling.BILINEAR)
        assert np.array_equal(flipped, done[..., ::-1])
    mixing = tensors(draw_mixing(off, 0, 0, np.arange(8), 32, count=8))
    assert (mixing["weight"] == 1).all() and not mixing["rectangle"].any()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    assert torch.equal(mix_images(pixels, pixels.flip(0), mixing["weight"], mixing["rectangle"]), pixels)
