"""One checkpoint, every Auto class of its family: after `import modeling`, and where nothing of ours is installed."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from compare import DECODER, equal
from transformers import AutoConfig, PreTrainedModel

import modeling
from modeling.configuration import STAMP

AUTO = [(auto, config) for config in modeling.CONFIGS.values() for auto in config().auto_map if auto != "AutoConfig"]

# The stranger: opens checkpoints under every Auto class, says what had to be made up, and saves them again. One process
# for all of them, for its imports take longest.
STRANGER = """
import json, sys, torch, transformers

for folder, autos in json.loads(sys.argv[1]).items():
    inputs = torch.load(f"{folder}/inputs.pt")
    seen = {}
    for auto in autos:
        model, info = getattr(transformers, auto).from_pretrained(
            f"{folder}/checkpoint", trust_remote_code=True, output_loading_info=True
        )
        given = {name: x[:, None] if "MultipleChoice" in auto else x for name, x in inputs.items()}
        with torch.no_grad():
            outputs = model.eval()(**given, output_hidden_states=True)
        outputs = {name: x for name, x in outputs.items() if name not in ("cache", "past_key_values")}
        if model.can_generate():
            outputs["generated"] = model.generate(inputs["input_ids"], max_new_tokens=5)
        seen[auto] = {"class": type(model).__name__, "info": info, "outputs": outputs}
        model.save_pretrained(f"{folder}/again/{auto}")
        seen[auto]["opened again"] = type(
            getattr(transformers, auto).from_pretrained(f"{folder}/again/{auto}", trust_remote_code=True)
        ).__name__
    torch.save(seen, f"{folder}/seen.pt")
paths = ["one/model", "two/model", "one/model"]
models = [transformers.AutoModel.from_pretrained(path, trust_remote_code=True) for path in paths]
scalings = [model.encoder.blocks[0].attention.scaling for model in models]
assert scalings == [8**-0.5, 7.0, 8**-0.5], scalings
assert "modeling" not in sys.modules
"""


def model_of(auto: str, config: type) -> type:
    return getattr(modeling, config().auto_map[auto].split(".")[1])


@pytest.mark.parametrize("auto, config", AUTO)
def test_auto_classes_know_ours(auto, config, tiny):
    model_class = model_of(auto, config)
    assert type(AutoConfig.for_model(config.model_type)) is config
    small = tiny(model_class.__name__).config
    assert type(getattr(transformers, auto).from_config(small)) is model_class


@pytest.mark.parametrize("auto, config", AUTO)
def test_every_checkpoint_carries_the_whole_family(auto, config, tiny, tmp_path):
    tiny(model_of(auto, config).__name__).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert saved == config().auto_map
    source = Path(modeling.__file__).parent
    for file in {reference.split(".")[0] for reference in saved.values()}:
        assert (tmp_path / f"{file}.py").read_text().split(STAMP)[0] == (source / f"{file}.py").read_text()


IMAGES = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)}
NEW_HEADS = {  # by Auto class: the weights that no pretraining has trained
    "AutoModelForSequenceClassification": {"classifier.dense.weight", "classifier.dense.bias"},
    "AutoModelForTokenClassification": {"classifier.dense.weight", "classifier.dense.bias"},
    "AutoModelForMultipleChoice": {"classifier.dense.weight", "classifier.dense.bias"},
    "AutoModelForQuestionAnswering": {"span.weight", "span.bias"},
    "AutoModelForImageClassification": {"classifier.weight", "classifier.bias"},
}
SAME = {  # by Auto class: its outputs, and what the pretrained model calls them
    "AutoModelForPreTraining": {
        "prediction_logits": "prediction_logits",
        "seq_relationship_logits": "seq_relationship_logits",
    },
    "AutoModelForMaskedLM": {"logits": "prediction_logits"},
    "AutoModelForNextSentencePrediction": {"logits": "seq_relationship_logits"},
    "AutoModelForSeq2SeqLM": {"logits": "logits", "generated": "generated"},
    "AutoModelForMaskedImageModeling": {"reconstruction": "reconstruction"},
}


TOKENS = torch.arange(2, 18).view(2, 8)
CHECKPOINTS = {
    "bert": ("KeelBertForPreTraining", {}, {"input_ids": TOKENS}),
    "seq2seq": ("KeelSeq2SeqForConditionalGeneration", {}, {"input_ids": TOKENS, "decoder_input_ids": TOKENS}),
    "simmim": ("KeelViTForMaskedImageModeling", {}, IMAGES),
    "mae": ("KeelViTForMaskedImageModeling", DECODER | {"position_embedding_type": "sincos2d"}, IMAGES),
}


def autos_of(model: PreTrainedModel) -> list[str]:
    return [auto for auto, config in AUTO if config is model.config_class]


@pytest.fixture(scope="module")
def models(tiny) -> dict[str, PreTrainedModel]:
    return {name: tiny(pretrained, **fields).float() for name, (pretrained, fields, _) in CHECKPOINTS.items()}


@pytest.fixture(scope="module")
def opened(models: dict[str, PreTrainedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each checkpoint, with what a process saw that has nothing of ours."""
    root = tmp_path_factory.mktemp("strangers")
    for name, model in models.items():
        model.save_pretrained(root / name / "checkpoint")
        torch.save(CHECKPOINTS[name][2], root / name / "inputs.pt")
    autos = {str(root / name): autos_of(model) for name, model in models.items()}
    elsewhere = root / "elsewhere"
    for folder in ("one", "two"):
        models["bert"].save_pretrained(elsewhere / folder / "model")
    code = elsewhere / "two/model/attention.py"
    code.write_text(code.read_text().replace("self.head_dim**-0.5", "7.0"))
    models["bert"].config.save_pretrained(code.parent)
    caches = {"HF_HOME": str(root / "home"), "HF_MODULES_CACHE": str(root / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, json.dumps(autos)],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **caches},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_stranger_opens_it(name: str, models: dict[str, PreTrainedModel], opened: Path):
    model, inputs = models[name], CHECKPOINTS[name][2]
    with torch.no_grad():
        expected = dict(model(**inputs, output_hidden_states=True))
        if model.can_generate():
            expected["generated"] = model.generate(inputs["input_ids"], max_new_tokens=5)
    seen = torch.load(opened / name / "seen.pt", weights_only=False)
    for auto in autos_of(model):
        result = seen[auto]
        assert result["class"] == result["opened again"] == model_of(auto, model.config_class).__name__
        assert set(result["info"]["missing_keys"]) == NEW_HEADS.get(auto, set())
        assert not result["info"]["unexpected_keys"] and not result["info"]["mismatched_keys"]
        states = {name: x for name, x in expected.items() if name.endswith("hidden_states")}
        equal({name: result["outputs"][name] for name in states}, states)
        for output, original in SAME.get(auto, {}).items():
            equal(result["outputs"][output], expected[original])
        saved = json.loads((opened / name / "again" / auto / "config.json").read_text())
        assert saved["auto_map"] == model.config.auto_map


def test_an_older_transformers_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transformers, "__version__", "4.57.3")
    with pytest.raises(RuntimeError, match=r"needs transformers 5, and this is 4\.57\.3"):
        runpy.run_path(str(Path(modeling.__file__).with_name("configuration.py")))
