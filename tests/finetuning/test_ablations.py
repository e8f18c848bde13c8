"""Ablations: that runs differ in one thing, are not begun twice, and what their scores say together."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from scipy import stats
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

from finetuning import series
from finetuning.ablations import choose_metric, main
from finetuning.resnet import KeelResNetForImageClassification, count_parameters, make_config, of_size
from finetuning.series import Score, Summary, draw_summaries, summarise, table
from finetuning.summary import difference
from modeling import KeelViTConfig
from modeling.losses import labels_loss
from tests.finetuning.reviews import QUICK, draw_texts, write_lines


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that are trained."""
    names: list[str] = []
    train = series.train

    def record(settings, objective) -> None:
        names.append(settings.name)
        train(settings, objective)

    monkeypatch.setattr(series, "train", record)
    return names


@pytest.fixture
def texts(here: Path) -> list[str]:
    """Settings of runs on texts, a word of which tells their class."""
    for split, count, seed in (("train", 40, 0), ("held", 12, 1)):
        rows = [{"text": text, "label": label} for text, label in zip(*draw_texts(count, seed), strict=True)]
        write_lines(here / f"{split}.jsonl", rows)
    return [
        *(f'--data.files=["{here}/train.jsonl"]', f'--data.validation_files=["{here}/held.jsonl"]'),
        *("--objective.sequence_length=64", "--objective.stride=16", f"--cache={here}/cache"),
        *QUICK,
    ]


def results(name: str) -> dict:
    return json.loads(Path("runs", name, "results.json").read_text())


def config(run: str) -> dict:
    return yaml.safe_load(Path("runs", run, "config.yaml").read_text())


def test_labels_grow_and_finished_runs_are_not_begun_again(
    texts: list[str], checkpoint: Path, begun: list[str]
) -> None:
    command = ["labels", "--model", str(checkpoint), "--counts", "8,24", "--seeds", "1", "--steps", "3", *texts]
    main(command)
    assert begun == ["pretrained-8-0", "scratch-8-0", "pretrained-24-0", "scratch-24-0"]
    found = results("ablation-labels")
    assert [(each["at"], each["variant"]) for each in found["summary"]] == [
        *((8, "pretrained"), (8, "scratch"), (24, "pretrained"), (24, "scratch"))
    ]
    for each in found["runs"]:
        settings = yaml.safe_load(Path(each["folder"], "config.yaml").read_text())
        assert settings["data"]["examples"] == each["at"] and settings["train"]["steps"] == 3
        assert (settings["init_from"] is None) == (each["variant"] == "scratch")
        own = json.loads(Path(each["folder"], "results.json").read_text())
        assert each["metrics"]["accuracy"] == own["eval_accuracy"]
    assert Path("runs/ablation-labels/results.png").exists()

    # As after a kill: of one run there are checkpoints but no results.
    Path("runs/ablation-labels/scratch-24-0/results.json").unlink()
    begun.clear()
    main(command)
    assert begun == ["scratch-24-0"]
    assert results("ablation-labels") == found
    # Other settings are another run, which is trained, or refused, by the loop as ever.
    begun.clear()
    main([*command, "--steps", "4"])
    assert len(begun) == 4


def test_a_run_that_was_begun_again_is_not_finished(texts: list[str], checkpoint: Path, begun: list[str]) -> None:
    command = ["pooling", "--model", str(checkpoint), "--seeds", "1", "--steps", "2", *texts]
    main([*command, "--objective.metric=macro_f1"])
    assert results("ablation-pooling")["metric"] == "macro_f1"
    assert begun == ["cls-0", "mean-0"]
    assert [config(f"ablation-pooling/{name}-0")["model"]["pooling"] for name in ("cls", "mean")] == ["cls", "mean"]
    folder = Path("runs/ablation-pooling/mean-0")
    after = (folder / "results.json").stat().st_mtime_ns + 1
    os.utime(folder / "config.yaml", ns=(after, after))
    begun.clear()
    main([*command, "--objective.metric=macro_f1"])
    assert begun == ["mean-0"]
    assert "| cls |" in Path("runs/ablation-pooling/results.md").read_text()


def test_pretrainings_differ_in_what_they_learn_alone(texts: list[str], here: Path, begun: list[str]) -> None:
    (here / "documents").mkdir()
    for number in range(30):
        sentences, _ = draw_texts(12, number)
        (here / f"documents/{number}.txt").write_text(". ".join(sentences) + ".\n")
    settings = {
        "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
        "data": {"source": "files", "files": [f"{here}/documents/*.txt"], "validation_fraction": 0.2},
        "tokenizer": {"vocab_size": 50},
        "objective": {"sequence_length": 64},
        "train": {"minutes": 4, "rows_per_step": 4, "micro_batch": 4, "threads": 1, "precision": "fp32"},
        "log": {"trackers": []},
        "cache": f"{here}/cache",
    }
    settings["model"]["max_position_embeddings"] = 64
    settings["train"] |= {"kernel": "sdpa", "linear": "torch"}
    (here / "pretrain.yaml").write_text(yaml.safe_dump(settings))
    steps = ["--seeds", "1", "--steps", "2", "--pretrain_steps", "2", "--pretrain_config", "pretrain.yaml"]
    main(["pretraining", *steps, *texts])
    names = ["next-sentence", "sentence-order", "neither", "neither-whole-words"]
    assert begun == [f"pretrain-{name}-0" for name in names] + [f"{name}-0" for name in names]
    pretrained = [config(f"ablation-pretraining/pretrain-{name}-0") for name in names]
    assert [each["objective"]["next_sentence"] for each in pretrained] == ["nsp", "sop", "none", "none"]
    assert [each["objective"]["whole_words"] for each in pretrained] == [False, False, False, True]
    for name, other in zip(names, pretrained, strict=True):
        assert other["train"]["steps"] == 2 and other["train"]["minutes"] is None
        assert config(f"ablation-pretraining/{name}-0")["init_from"].endswith(f"pretrain-{name}-0/model")
        for each in (other, pretrained[0]):  # all else is equal
            each["name"] = each["objective"]["next_sentence"] = each["objective"]["whole_words"] = None
        assert other == pretrained[0]
    assert {each["variant"] for each in results("ablation-pretraining")["summary"]} > {"neither, whole words"}


def test_a_mistake_in_the_fine_tuning_is_told_before_the_pretraining(
    texts: list[str], begun: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["pretraining", *texts, "--optim.learning_rat=1"])
    assert "no setting optim.learning_rat" in capsys.readouterr().err
    assert begun == []


def test_images_are_learnt_by_both_networks_alike(here: Path, begun: list[str]) -> None:
    shape = ["--model.image_size=8", "--model.patch_size=4", "--model.num_channels=1", "--model.hidden_size=32"]
    shape += ["--model.num_hidden_layers=2", "--model.num_attention_heads=2", "--model.intermediate_size=64"]
    options = ["--counts", "20,40", "--seeds", "1", "--steps", "2", f"--cache={here}/cache"]
    main(["images", *options, *shape, *QUICK, "--data.source=digits", "--objective.mixup=0.5"])
    assert begun == ["ViT-20-0", "ResNet-20-0", "ViT-40-0", "ResNet-40-0"]
    vit, resnet = (Path(f"runs/ablation-images/{name}-40-0") for name in ("ViT", "ResNet"))
    sizes = [sum(x.numel() for x in load_file(run / "model/model.safetensors").values()) for run in (vit, resnet)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)
    for section in ("data", "objective"):
        assert config(f"ablation-images/{vit.name}")[section] == config(f"ablation-images/{resnet.name}")[section]
    # It opens as the run says that it does, and computes what it did.
    model = AutoModelForImageClassification.from_pretrained(resnet / "model", trust_remote_code=True).eval()
    reference = load_file(resnet / "reference.safetensors")
    with torch.no_grad():
        logits = model(pixel_values=reference["input.pixel_values"]).logits
    torch.testing.assert_close(logits, reference["output.logits"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["labels", "--counts", "0,5"], "invalid numbers value"),
        (["labels", "--seeds", "0"], "at least 1"),
        (["labels"], "name its checkpoint"),
        (["images", "--model.family=bert"], "bert"),
        (["images", "--optim.layer_decay=0.5"], "fresh weights"),
        (["labls"], "invalid choice"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], says: str, texts: list[str], begun: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--data.source=digits"] if arguments[0] == "images" else texts
    with pytest.raises(SystemExit):
        main([*arguments, *more])
    assert says in capsys.readouterr().err
    assert begun == []


# ---- what scores say together ----


def test_intervals_and_differences_are_scipys() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(0.8, 0.1, 5).tolist(), random.normal(0.7, 0.2, 4).tolist()
    low, high = stats.t.interval(0.95, 4, loc=np.mean(first), scale=stats.sem(first))
    found = Summary(first)
    assert (found.mean - found.margin, found.mean + found.margin) == pytest.approx((low, high))
    gap, errors = difference(first, second)
    welch = stats.ttest_ind(first, second, equal_var=False).statistic
    assert float(gap) == pytest.approx(np.mean(first) - np.mean(second), abs=1e-4)
    assert float(errors) == pytest.approx(welch, abs=0.06)
    assert math.isnan(Summary([1.0]).margin) and str(Summary([1.0])) == "1.0000"


def scores(places: list[int | None], variants: str, seeds: int) -> list[Score]:
    random = np.random.default_rng(0)
    return [
        Score(variant, at, seed, "", {"accuracy": float(random.random())})
        for at in places
        for variant in variants
        for seed in range(seeds)
    ]


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(("places", "seeds"), [([10, 100], 3), ([10], 1), ([None], 3), ([None], 1)])
def test_every_shape_of_ablation_has_a_table_and_a_picture(places: list, seeds: int, tmp_path: Path) -> None:
    found = summarise(scores(places, "ab", seeds), "accuracy")
    lines = table(found, "labels")
    assert len(lines) == 2 + (2 if None in places else len(places))
    assert len({line.count("|") for line in lines}) == 1
    draw_summaries(found, "a title", "accuracy", "labels", tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 10


def test_a_metric_that_is_not_there_is_told_after_the_first_run(
    texts: list[str], checkpoint: Path, begun: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert choose_metric(scores([None], "a", 1), None) == "accuracy"
    command = ["pooling", "--model", str(checkpoint), "--seeds", "1", "--steps", "1", "--metric", "acuracy", *texts]
    with pytest.raises(SystemExit):
        main(command)
    assert "acuracy is none of the runs' metrics" in capsys.readouterr().err and len(begun) == 1


# ---- the ResNet ----


def test_the_resnet_nearest_in_size_is_found() -> None:
    fields = {"num_channels": 1, "num_labels": 10}
    for wanted in (5_000, 120_000, 2_000_000):
        found = of_size(wanted, **fields)
        distance = abs(count_parameters(found) - wanted)
        for step in (-1, 1):
            other = make_config(max(1, found.embedding_size + step), **fields)
            assert distance <= abs(count_parameters(other) - wanted)


def test_without_its_stem_it_is_transformers_resnet() -> None:
    ours = KeelResNetForImageClassification(make_config(4, small_images=False)).eval()
    shape = {name: getattr(ours.config, name) for name in ("embedding_size", "hidden_sizes", "depths", "layer_type")}
    theirs = ResNetForImageClassification(ResNetConfig(**shape)).eval()
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(pixels).logits, theirs(pixels).logits)
    # For small images its first stage sees as many places as the image has pixels.
    small = KeelResNetForImageClassification(make_config(4)).eval()
    assert small.resnet.embedder(torch.randn(1, 3, 8, 8)).shape == (1, 4, 8, 8)


def make_labels() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.tensor([1, 0, -100, 2]), torch.tensor([0, 2, -100, 2]), torch.tensor([0.3, 0.0, 0.0, 1.0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("count", [None, 7])
def test_its_loss_is_that_of_the_vit(smoothing: float, count: int | None) -> None:
    model = KeelResNetForImageClassification(make_config(4, num_labels=3, label_smoothing=smoothing)).eval()
    counts = None if count is None else {"labels": torch.tensor(count)}
    labels, partners, weights = make_labels()
    own: Callable = lambda **more: model(torch.ones(4, 3, 8, 8), labels, num_items_in_batch=counts, **more)  # noqa: E731
    reference = KeelViTConfig(num_labels=3, problem_type="single_label_classification")
    for more in ({}, {"partner_labels": partners, "partner_weight": weights}):
        out = own(**more)
        expected = labels_loss(reference, out.logits, labels, counts, *more.values(), smoothing=smoothing)
        torch.testing.assert_close(out.loss, expected)
