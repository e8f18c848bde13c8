"""What a ViT is shown, what it is asked, and what is left of a run; on scikit-learn's digits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from runs import FIXED, WIDTHS, run_here
from transformers import AutoImageProcessor, AutoModel, ViTConfig, ViTForImageClassification, pipeline
from transformers.image_utils import load_image

import modeling
from modeling import KeelViTForImageClassification, KeelViTForMaskedImageModeling
from modeling.convert import to_native
from pretraining.batches import Steps
from pretraining.cli import parse
from pretraining.data.packing import IGNORED
from pretraining.data.plan import make_plan
from pretraining.objectives import make_objective as objective_of
from pretraining.objectives.base import Objective
from pretraining.optim import make_optimizer
from pretraining.step import train_step
from tests.odd.images import FORMS

SIZE = [
    "--model.family=vit",
    "--model.image_size=12",
    "--model.patch_size=3",
    "--model.num_channels=1",
    *WIDTHS,
    "--model.num_hidden_layers=2",
    "--train.rows_per_step=32",
    "--train.micro_batch=32",
    *FIXED,
    "--train.threads=1",
    "--optim.learning_rate=1e-3",
    "--optim.warmup=2",
    "--evaluation.examples=64",
]
RECIPE = [
    "--objective.crop=resized",
    "--objective.randaugment_layers=2",
    "--objective.erasing=0.5",
    "--objective.mixup=0.8",
    "--objective.cutmix=1.0",
    "--model.label_smoothing=0.1",
]
MASKED = ["--objective.name=masked_images", "--objective.flip=0"]
DECODER = [
    "--model.decoder_num_hidden_layers=1",
    "--model.decoder_hidden_size=16",
    "--model.decoder_num_attention_heads=2",
    "--model.decoder_intermediate_size=32",
]
KINDS = {
    "classes": RECIPE,
    "simmim": MASKED,
    "mae": [*MASKED, *DECODER, "--model.reconstruction_target=normalized_pixels", "--model.pooling=mean"],
    "colors": [*MASKED, "--model.reconstruction_target=mean_color", "--objective.mask_size=2"],
}


def make(cache: Path, *more: str) -> Objective:
    settings = parse([*SIZE, f"--cache={cache}", "--train.steps=1", *more])
    objective = objective_of(settings)
    objective.examples.prepare(is_builder=True)
    return objective


def batch_of(objective: Objective, split: str, epoch: int, index: list[int]) -> dict[str, torch.Tensor]:
    examples = objective.examples.examples(split, epoch, np.array(index))
    return objective.head.to_model_inputs(objective.examples.collate([[example] for example in examples], 1).tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_seen_depends_on_seed_epoch_and_index_alone(cache: Path, kind: str):
    objective = make(cache, *KINDS[kind])
    together, alone = batch_of(objective, "train", 3, [5, 9, 2]), batch_of(objective, "train", 3, [9])
    for name, values in together.items():
        assert torch.equal(values[1], alone[name][0]), name
    later = batch_of(objective, "train", 4, [5, 9, 2])
    changed = "pixel_values" if kind == "classes" else "bool_masked_pos"
    assert not torch.equal(together[changed], later[changed])
    held, again = (batch_of(objective, "validation", epoch, [1, 2]) for epoch in (0, 0))
    assert all(torch.equal(held[name], again[name]) for name in held)
    other = make(cache, *KINDS[kind], "--seed=7")  # which the held-out images do not know of
    assert all(torch.equal(values, batch_of(other, "validation", 0, [1, 2])[name]) for name, values in held.items())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_held_out_images_are_what_the_saved_processor_makes(cache: Path, tmp_path: Path, channels: int, resample: str):
    objective = make(cache, f"--model.num_channels={channels}", f"--objective.resample={resample}")
    objective.head.save_inputs(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    ours = batch_of(objective, "validation", 0, [0, 1, 2])["pixel_values"]
    for row, number in zip(ours, range(3), strict=True):
        pixels = objective.examples.data["validation"].image(number)
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        theirs = processor(image, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(row, theirs, rtol=0, atol=2e-6)


def test_a_pipeline_shows_the_model_what_training_did(cache: Path, here: Path):
    """Of every mode, from the file on: transformers' own `load_image` and the saved processor."""
    for n, (name, (data, _)) in enumerate(FORMS.items()):
        folder = here / "images" / f"class {n % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n}.{name.split()[-1]}").write_bytes(data)
    source = ["--data.source=folder", f"--data.folder={here / 'images'}", "--model.num_channels=3"]
    objective = make(cache, *source, "--objective.crop=none", "--objective.flip=0")
    objective.head.save_inputs(here)
    processor = AutoImageProcessor.from_pretrained(here)
    count = 0
    for split, images in objective.examples.data.items():
        for number in range(len(images)):
            theirs = processor(load_image(images.place(number)), return_tensors="pt")["pixel_values"][0]
            ours = batch_of(objective, split, 0, [number])["pixel_values"][0]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
            count += 1
    assert count > 40  # some forms are one file


def test_pixels_have_mean_0_and_deviation_1_over_the_training_images(cache: Path):
    objective = make(
        cache, "--objective.crop=none", "--objective.flip=0", "--model.image_size=8", "--model.patch_size=2"
    )
    pixels = batch_of(objective, "train", 0, list(range(len(objective.examples.data["train"]))))["pixel_values"]
    assert abs(float(pixels.mean())) < 1e-5 and abs(float(pixels.std()) - 1) < 1e-3


def test_a_mixed_image_is_made_of_its_own_and_its_partners(cache: Path):
    objective = make(cache, "--objective.mixup=0.8", "--objective.crop=none", "--objective.flip=0")
    examples = objective.examples.examples("train", 0, np.arange(6))
    batch = batch_of(objective, "train", 0, list(range(6)))
    for i, example in enumerate(examples):
        weight = float(example["weight"])
        own, partner = (torch.from_numpy(example[name].copy()) / 255 for name in ("pixels", "partner_pixels"))
        expected = objective.examples.normalise((weight * own + (1 - weight) * partner)[None])[0]
        torch.testing.assert_close(batch["pixel_values"][i], expected, rtol=1e-5, atol=1e-5)
        assert float(batch["partner_weight"][i]) == pytest.approx(1 - weight)
        assert example["partner_labels"] == batch["partner_labels"][i]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_same_however_it_is_cut(cache: Path, kind: str):
    objective = make(cache, *KINDS[kind])
    plan = make_plan(np.arange(12), np.ones(12), objective.examples.row_lengths, lambda _: 12, 64, 0, 0)
    found = []
    for size in (12, 5):  # the last of the three micro-batches has three empty rows
        torch.manual_seed(0)
        model = objective.head.build_model(parse([*SIZE, "--train.steps=1", *KINDS[kind]]).model).train()
        optimizer = make_optimizer(model, objective.examples.run.optim)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        accelerator = Accelerator(cpu=True)
        micro_batches = Steps(objective.examples, "train", 0, plan, size, 0, 1)[0, 0.0]
        to_inputs = objective.head.to_model_inputs
        measures, images = train_step(model, optimizer, micro_batches, to_inputs, accelerator, 0, 0, 1.0)
        assert images == 12
        found.append((measures, model.state_dict()))
    (one, weights), (other, others) = found
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_so_many_patches_are_hidden_in_squares(cache: Path, size: int):
    objective = make(cache, *MASKED, "--objective.mask_ratio=0.5", f"--objective.mask_size={size}")
    hidden = objective.examples.masked("train", 0, np.arange(400))
    assert (hidden.sum(1) == 8).all()
    grid = hidden.reshape(-1, 4 // size, size, 4 // size, size)
    assert (grid == grid[:, :, :1, :, :1]).all()
    assert np.abs(hidden.mean(0) - 0.5).max() < 0.1  # each patch as often


def test_measures_are_those_of_the_logits(cache: Path):
    objective = make(cache)
    model = objective.head.build_model(objective.examples.run.model).eval()
    torch.nn.init.normal_(model.classifier.weight)
    index = objective.examples.index("validation", 0)[:50]
    batch = batch_of(objective, "validation", 0, index.tolist())
    with torch.no_grad():
        measures = objective.scoring.sums(model, batch)
        logits = model(pixel_values=batch["pixel_values"]).logits
    order = logits.argsort(1, descending=True)
    assert int(measures["accuracy"][0]) == int((order[:, 0] == batch["labels"]).sum())
    assert int(measures["top5_accuracy"][0]) == int((order[:, :5] == batch["labels"][:, None]).any(1).sum())
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum")
    torch.testing.assert_close(measures["loss"][0], loss)
    judged = objective.scoring.score_outputs(model, index, Accelerator(cpu=True), final=True)
    for number in range(10):
        own = batch["labels"] == number
        assert judged[f"accuracy {number}"] == pytest.approx(float((order[own, 0] == number).float().mean()))


def test_features_of_pixels_are_judged_by_probe_and_neighbours(cache: Path):
    objective = make(cache, *MASKED, "--objective.probe_examples=400")
    model = objective.head.build_model(objective.examples.run.model).eval()
    judged = objective.scoring.score_outputs(
        model, objective.examples.index("validation", 0), Accelerator(cpu=True), final=True
    )
    assert min(judged.values()) > 0.3  # a random encoder keeps much
    labels = objective.examples.data["train"].labels
    np.random.default_rng(0).shuffle(labels)
    judged = objective.scoring.score_outputs(
        model, objective.examples.index("validation", 0), Accelerator(cpu=True), final=True
    )
    assert max(judged.values()) < 0.25


def run(tmp_path: Path, cache: Path, name: str, *more: str) -> Path:
    return run_here([*SIZE, f"--cache={cache}"], tmp_path, name, *more)


@pytest.mark.usefixtures("pictures")
def test_a_run_leaves_a_classifier_that_opens_anywhere(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = run(tmp_path, cache, "classes", "--train.steps=4", "--model.num_channels=3")
    assert {"confusion.png", "curves.png", "results.json"} <= {path.name for path in folder.iterdir()}
    results = json.loads((folder / "results.json").read_text())
    assert results["signatures"] == {} and 0 <= results["eval_accuracy"] <= 1 and "eval_accuracy 3" in results
    assert "AutoModelForImageClassification" in capsys.readouterr().out
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert line["images"] == 32 and line["images_per_second"] > 0
    model = KeelViTForImageClassification.from_pretrained(folder / "model").eval()
    assert type(AutoModel.from_pretrained(folder / "model")) is modeling.KeelViTModel
    native = to_native(model.double())
    processor = AutoImageProcessor.from_pretrained(folder / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    pixels = processor(Image.open(tmp_path / "image.png"), return_tensors="pt")["pixel_values"].double()
    torch.testing.assert_close(model(pixels).logits, native(pixels).logits, rtol=1e-9, atol=1e-9)
    classify = pipeline("image-classification", model=model.float(), image_processor=processor)
    guess = classify(str(tmp_path / "image.png"), top_k=10)
    shares = model(pixels.float()).logits.softmax(1)[0]
    assert guess[0]["label"] == model.config.id2label[int(shares.argmax())]
    assert guess[0]["score"] == pytest.approx(float(shares.max()), rel=1e-4)


@pytest.mark.parametrize("kind", ["classes", "mae"])
def test_a_run_cut_in_two_reaches_the_same_weights(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture, kind: str
):
    options = [*KINDS[kind], "--model.drop_path_rate=0.2", "--checkpoint.every=3", "--optim.schedule=constant"]
    whole = run(tmp_path, cache, "whole", "--train.steps=6", *options)
    shutil.copytree(whole / "checkpoints/step-3", tmp_path / "cut/checkpoints/step-3")
    second = run(tmp_path, cache, "cut", "--train.steps=6", *options)
    assert f"resumed from {second}/checkpoints/step-3" in capsys.readouterr().out
    one, other = ((folder / "model" / "model.safetensors").read_bytes() for folder in (whole, second))
    assert one == other


def test_masked_images_then_classes_then_larger_ones(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    mean = "--model.pooling=mean"
    first = run(tmp_path, cache, "masked", "--train.steps=3", *MASKED, *DECODER, mean)
    capsys.readouterr()
    second = run(tmp_path, cache, "classes", "--train.steps=1", f"--init_from={first}/model", "--data.examples=100")
    assert "fresh: classifier" in capsys.readouterr().out
    kept, fewer = (AutoImageProcessor.from_pretrained(folder / "model") for folder in (first, second))
    assert kept.image_mean == fewer.image_mean and kept.image_std == fewer.image_std
    third = run(tmp_path, cache, "large", "--train.steps=1", f"--init_from={second}/model", "--model.image_size=24")
    assert "positions interpolated from 12 pixels to 24" in capsys.readouterr().out
    model = KeelViTForImageClassification.from_pretrained(third / "model")
    assert model.config.image_size == 24 and model.config.position_grid_size == 4
    assert AutoImageProcessor.from_pretrained(third / "model").size["height"] == 24


@pytest.fixture(scope="module")
def classifier(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs"), cache, "classes", "--train.steps=1")


@pytest.mark.parametrize("kind", ["simmim", "mae"])
def test_masked_images_start_from_a_classifier(
    classifier: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture, kind: str
):
    first = classifier
    capsys.readouterr()
    more = [*MASKED, *(DECODER if kind == "mae" else [])]
    run(tmp_path, cache, "masked", "--train.steps=1", f"--init_from={first}/model", *more)
    told = capsys.readouterr().out
    assert ("fresh: decoder, pixels" if kind == "mae" else "fresh: mask_token, pixels") in told
    settings = parse([*SIZE, "--train.steps=1", f"--init_from={first}/model", *more])
    objective = make(cache, f"--init_from={first}/model", *more)
    model = objective.head.build_model(settings.model)
    objective.head.load_weights(model, f"{first}/model")
    source = KeelViTForImageClassification.from_pretrained(first / "model")
    for name, weight in source.vit.state_dict().items():
        assert torch.equal(model.vit.state_dict()[name], weight)


def test_it_starts_from_a_native_vit(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    names = ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads")
    config = ViTConfig(**dict(zip(names, (12, 3, 1, 32, 2, 2), strict=True)), intermediate_size=64, num_labels=7)
    native = ViTForImageClassification(config).eval()
    native.save_pretrained(tmp_path / "native")
    objective = make(cache, f"--init_from={tmp_path}/native")
    model = objective.head.build_model(objective.examples.run.model).eval()
    line = objective.head.load_weights(model, str(tmp_path / "native"))
    assert "fresh: classifier" in line
    pixels = torch.randn(2, 1, 12, 12)
    expected = native.vit(pixels).last_hidden_state
    torch.testing.assert_close(model.vit(pixels).last_hidden_state, expected, rtol=1e-4, atol=1e-5)


MISTAKES = {
    "tokens for a budget": (["--train.steps=null", "--train.tokens=9"], "train.tokens is 9, and images have no tokens"),
    "another number of means": (
        ["--objective.image_mean=[0.5,0.5]"],
        "image_mean has 2 numbers, and model.num_channels is 1",
    ),
    "patches that do not divide": (["--model.image_size=13"], "image_size=13 is no multiple of patch_size=3"),
    "mixed masked images": ([*MASKED, "--objective.mixup=0.2"], "there is no setting objective.mixup"),
    "a probe of nothing": ([*MASKED, "--objective.probe_examples=9999"], "objective.probe_examples is 9999"),
    "a probe of one class": ([*MASKED, "--objective.probe_examples=1"], "enough for two classes"),
    "a std of nothing": (["--objective.image_std=[0]"], "objective.image_std is [0.0]: each must be above 0"),
    "all of the label smoothed": (["--model.label_smoothing=1"], "label_smoothing=1"),
    "other pixels in a phase": (
        ["--train.phases=[{until: 0.5, objective.resample: bilinear}]"],
        "objective.resample is one for the whole run",
    ),
    "squares that do not divide": ([*MASKED, "--objective.mask_size=3"], "objective.mask_size is 3"),
    "everything hidden": ([*MASKED, "--objective.mask_ratio=1"], "objective.mask_ratio is 1"),
    "a tokenizer": (["--tokenizer.vocab_size=100"], "there is no setting tokenizer.vocab_size"),
    "two channels": (["--model.num_channels=2"], "model.num_channels is 2"),
    "files that nobody named": (["--data.source=files"], "data.files is empty"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence_before_training(
    mistake: str, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    arguments, expected = MISTAKES[mistake]
    with pytest.raises(SystemExit):
        run(tmp_path, cache, "wrong", "--train.steps=1", *arguments)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert expected in error and "Traceback" not in error
    assert not (tmp_path / "wrong").exists()


def test_heads_share_one_encoder():
    assert KeelViTForMaskedImageModeling.base_model_prefix == KeelViTForImageClassification.base_model_prefix
    assert IGNORED == -100
