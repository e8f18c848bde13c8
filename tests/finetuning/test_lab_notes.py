"""The configs of fine-tuning: each parses with a checkpoint of its family, and says how it is run."""

import shutil
from pathlib import Path

import pytest

import modeling
from finetuning.cli import parse_finetune

FOLDER = Path(__file__).parents[2] / "configs/finetune"
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64, "hidden_dropout_prob": 0.0}
TEXT = {"vocab_size": 100, "max_position_embeddings": 256, "pad_token_id": 99}
CHECKPOINTS = {
    "bert": ("KeelBertModel", {**TEXT, "num_hidden_layers": 1}),
    "seq2seq": ("KeelSeq2SeqModel", {**TEXT, "encoder_layers": 1, "decoder_layers": 1, "decoder_start_token_id": 99}),
    "vit": ("KeelViTModel", {"num_hidden_layers": 1, "image_size": 32, "patch_size": 4}),
}
FAMILY = {"multi30k": "seq2seq", "cifar10": "vit"}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_every_config_parses(name: str, checkpoint: Path, tmp_path: Path) -> None:
    family = FAMILY.get(name, "bert")
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)  # for its tokenizer
    kind, fields = CHECKPOINTS[family]
    model_class = getattr(modeling, kind)
    model_class(model_class.config_class(**SHAPE, **fields)).save_pretrained(tmp_path)
    data = ["--data.source=nyu-mll/glue", "--data.subset=rte"] if name == "glue" else []  # which finetuning.glue sets
    settings = parse_finetune(["--config", str(FOLDER / f"{name}.yaml"), *data, "--model", str(tmp_path)])
    assert settings.family == family and settings.init_from == str(tmp_path)
    assert f"--config configs/finetune/{name}.yaml" in (FOLDER / f"{name}.yaml").read_text()
