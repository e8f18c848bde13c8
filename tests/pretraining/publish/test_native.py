"""The native form is the model itself, proven in a stranger's process, and used by the tools that know no other."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, Trained, compare, failed, train_family
from mistakes import one_sentence
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, ViTImageProcessorPil

from modeling import KeelBertModel
from pretraining.export import write_native
from pretraining.publish.native import write_proven_native
from pretraining.publish.native_cases import make_inputs, opened_by
from pretraining.publish.source import Source, find_source

OWN = {"bert": "AutoModelForPreTraining", "seq2seq": "AutoModelForSeq2SeqLM", "vit": "AutoModelForImageClassification"}


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The published run of a family, with its native form in `native/` beside the model."""
    made: dict[str, Source] = {}

    def make(family: str) -> Source:
        if family not in made:
            runs = tmp_path_factory.mktemp(family)
            made[family] = train_family(family, request, runs)
        return made[family]

    return make


@pytest.fixture(scope="module")
def native(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The native form of a family's run."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("native") / family
            write_native(trained(family).folder, made[family])
        return made[family]

    return make


TOLD = {
    "bert": ["AutoModelForMaskedLM gives", "AutoModelForNextSentencePrediction gives", "tokenizer", "fill-mask"],
    "seq2seq": ["AutoModel gives", "generates the same, 1 beams", "generates the same, 4 beams", "tokenizer"],
    "vit": ["AutoModel gives", "image processor, I16.png", "image processor, RGBA.png", "image-classification"],
}


def test_a_strangers_process_proves_it(trained: Trained, tmp_path: Path):
    found = write_proven_native(trained("bert"), tmp_path / "native")
    assert all(check["passed"] for check in found["checks"]), found["checks"]
    assert 0 < found["difference"] < 1e-4 == found["tolerance"]
    assert {"no warning is printed", "nothing of ours is imported"} <= {check["name"] for check in found["checks"]}
    assert not list((tmp_path / "native").glob("*.py")) and not list(tmp_path.glob("*.unfinished"))


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_in_float64(family: str, trained: Trained, native: Callable[[str], Path], tmp_path: Path):
    """Every Auto class, tokenizer, image processor, pipeline and what is generated."""
    found = compare(trained(family), native(family), tmp_path / "cases", torch.float64)
    assert not failed(found), found["checks"]
    assert found["difference"] < 1e-9 == found["tolerance"]
    assert found["own"] == OWN[family] and found["own"] in found["autos"]
    names = " ".join(check["name"] for check in found["checks"])
    assert all(each in names for each in [*TOLD[family], "no warning is printed"]), names


def change_weight(folder: Path, more: float = 1.0) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(name for name, x in weights.items() if x.ndim == 2 and "encoder.layer" in name)
    weights[name][0, 0] += more
    save_file(weights, path, metadata={"format": "pt"})


def spoil_weight(folder: Path) -> None:
    """Nothing is smaller or larger than its outputs."""
    change_weight(folder, float("nan"))


def change_entry(folder: Path) -> None:
    """Comma and exclamation mark change places."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[","], vocabulary["!"] = vocabulary["!"], vocabulary[","]
    path.write_text(json.dumps(content))


def change_mean(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.9, 0.9, 0.9]}))


@pytest.mark.parametrize(
    ("family", "change", "expected"),
    [
        ("bert", change_weight, "AutoModelForPreTraining gives equal outputs"),
        ("bert", spoil_weight, "AutoModelForMaskedLM gives equal outputs"),
        ("bert", change_entry, "tokenizer gives the same ids"),
        ("vit", change_mean, "image processor, RGB.png"),
    ],
)
def test_what_is_unequal_is_found(
    family: str, change: Callable, expected: str, trained: Trained, native: Callable[[str], Path], tmp_path: Path
):
    shutil.copytree(native(family), tmp_path / "changed")
    change(tmp_path / "changed")
    assert expected in failed(compare(trained(family), tmp_path / "changed", tmp_path / "cases"))


@pytest.mark.parametrize(
    ("head", "fields", "reason"),
    [
        ("KeelBertForMaskedLM", {"norm_position": "pre"}, "bert normalises after each residual sum"),
        ("KeelViTForImageClassification", {"pooling": "mean"}, "vit has a class token and classifies by it"),
    ],
)
def test_what_has_no_native_form_is_refused_with_the_reason(head: str, fields: dict, reason: str, tiny, tmp_path: Path):
    tiny(head, **fields).float().save_pretrained(tmp_path / "model")
    with one_sentence(str(tmp_path / "model"), "cannot be published as a native model", reason):
        write_proven_native(find_source(tmp_path / "model"), tmp_path / "native")
    assert not list(tmp_path.glob("native*"))


def test_a_proof_that_fails_hands_nothing_over(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny("KeelViTForImageClassification").float().save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    (tmp_path / "native").mkdir()
    (tmp_path / "native/of-before").touch()
    bad = {"checks": [{"name": "AutoModel gives equal outputs", "passed": False, "detail": "logits: 1.0e+00"}]}
    monkeypatch.setattr("pretraining.publish.native.prove", lambda source, folder: bad)
    with one_sentence("AutoModel gives equal outputs: logits: 1.0e+00", "publish without --native"):
        write_proven_native(find_source(tmp_path / "model"), tmp_path / "native")
    assert (tmp_path / "native/of-before").exists()


def test_sentence_transformers_gives_our_masked_mean(trained: Trained, native: Callable[[str], Path]):
    package = pytest.importorskip("sentence_transformers")
    texts = ["a short one", "The value of an expression is printed, and a name is bound to it.", "zip"]
    found = package.SentenceTransformer(str(native("bert")), device="cpu").encode(texts, convert_to_tensor=True)
    folder = trained("bert").folder
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        vectors = KeelBertModel.from_pretrained(folder)(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    torch.testing.assert_close(found, (vectors * mask).sum(1) / mask.sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="needs the packages of ONNX")
@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_runtime_gives_equal_logits_at_another_batch_size(
    family: str, trained: Trained, native: Callable[[str], Path], tmp_path: Path
):
    import onnxruntime
    import transformers
    from transformers.exporters import OnnxConfig, OnnxExporter

    model = getattr(transformers, OWN[family]).from_pretrained(native(family)).eval()
    ours, _ = opened_by(trained(family), torch.float32)[OWN[family]]
    inputs = make_inputs(ours)
    model.config.use_cache = False
    sample = {name: x[:2] for name, x in inputs.items()}
    OnnxExporter().export(model, sample, config=OnnxConfig(dynamic=True)).save_pretrained(tmp_path)
    (path,) = tmp_path.glob("*.onnx")
    session = onnxruntime.InferenceSession(path)
    fed = {each.name: inputs[each.name].numpy() for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]
    found = dict(zip(names, map(torch.from_numpy, session.run(names, fed)), strict=True))
    with torch.no_grad():
        expected = ours(**inputs, **({"use_cache": False} if ours.can_generate() else {}))
    logits = next(name for name in expected if name.endswith("logits"))
    assert (found[logits] - expected[logits]).abs().max() < 1e-4


@pytest.mark.parametrize("form", ["ours", "native"])
def test_peft_wraps_it_and_merges_to_the_same(form: str, trained: Trained, native: Callable[[str], Path]):
    peft = pytest.importorskip("peft")
    model: Any
    if form == "ours":
        model = KeelBertModel.from_pretrained(trained("bert").folder).eval()
    else:
        model = AutoModel.from_pretrained(native("bert")).eval()
    inputs = {name: x for name, x in make_inputs(KeelBertModel.from_pretrained(trained("bert").folder)).items()}
    with torch.no_grad():
        before = model(**inputs).last_hidden_state
        wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query", "value"])).eval()
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:  # zero at first, when it changes nothing
                torch.nn.init.normal_(weight, std=0.1)
        adapted = wrapped(**inputs).last_hidden_state
        merged = wrapped.merge_and_unload()(**inputs).last_hidden_state
    assert (adapted - before).abs().max() > 1e-3
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-5)
