"""One checkpoint, every Auto class of its family: after `import modeling`, and where nothing of ours is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from compare import DECODER, equal
from transformers import AutoConfig

import modeling

AUTO = [(auto, config) for config in modeling.CONFIGS.values() for auto in config().auto_map if auto != "AutoConfig"]

# The stranger: opens a checkpoint under every Auto class, says what had to be made up, and saves it again.
STRANGER = """
import sys, torch, transformers

checkpoint, again, *autos = sys.argv[1:]
inputs = torch.load("inputs.pt")
seen = {}
for auto in autos:
    model, info = getattr(transformers, auto).from_pretrained(
        checkpoint, trust_remote_code=True, output_loading_info=True
    )
    given = {name: x[:, None] if "MultipleChoice" in auto else x for name, x in inputs.items()}
    with torch.no_grad():
        outputs = model.eval()(**given, output_hidden_states=True)
    outputs = {name: x for name, x in outputs.items() if name not in ("cache", "past_key_values")}
    if model.can_generate():
        outputs["generated"] = model.generate(inputs["input_ids"], max_new_tokens=5)
    seen[auto] = {"class": type(model).__name__, "info": info, "outputs": outputs}
    model.save_pretrained(f"{again}/{auto}")
    seen[auto]["opened again"] = type(
        getattr(transformers, auto).from_pretrained(f"{again}/{auto}", trust_remote_code=True)
    ).__name__
assert "modeling" not in sys.modules
torch.save(seen, "seen.pt")
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
        assert (tmp_path / f"{file}.py").read_text() == (source / f"{file}.py").read_text()


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


@pytest.mark.parametrize(
    "pretrained, fields, inputs",
    [
        ("KeelBertForPreTraining", {}, {"input_ids": torch.arange(2, 18).view(2, 8)}),
        (
            "KeelSeq2SeqForConditionalGeneration",
            {},
            {"input_ids": torch.arange(2, 18).view(2, 8), "decoder_input_ids": torch.arange(2, 18).view(2, 8)},
        ),
        ("KeelViTForMaskedImageModeling", {}, IMAGES),
        ("KeelViTForMaskedImageModeling", DECODER | {"position_embedding_type": "sincos2d"}, IMAGES),
    ],
)
def test_a_stranger_opens_it(pretrained, fields, inputs, tiny, tmp_path):
    model = tiny(pretrained, **fields).float()
    model.save_pretrained(tmp_path / "checkpoint")
    with torch.no_grad():
        expected = dict(model(**inputs, output_hidden_states=True))
        if model.can_generate():
            expected["generated"] = model.generate(inputs["input_ids"], max_new_tokens=5)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    torch.save(inputs, elsewhere / "inputs.pt")
    autos = [auto for auto, config in AUTO if config is model.config_class]
    caches = {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(tmp_path / "checkpoint"), str(tmp_path / "again"), *autos],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **caches},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    seen = torch.load(elsewhere / "seen.pt", weights_only=False)
    for auto in autos:
        result = seen[auto]
        assert result["class"] == result["opened again"] == model_of(auto, model.config_class).__name__
        assert set(result["info"]["missing_keys"]) == NEW_HEADS.get(auto, set())
        assert not result["info"]["unexpected_keys"] and not result["info"]["mismatched_keys"]
        states = {name: x for name, x in expected.items() if name.endswith("hidden_states")}
        equal({name: result["outputs"][name] for name in states}, states)
        for name, original in SAME.get(auto, {}).items():
            equal(result["outputs"][name], expected[original])
        saved = json.loads((tmp_path / "again" / auto / "config.json").read_text())
        assert saved["auto_map"] == model.config.auto_map
