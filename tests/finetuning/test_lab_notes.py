"""The configs of fine-tuning: each parses with a checkpoint of its family, and says how it is run."""

from pathlib import Path

import pytest

from finetuning.cli import parse_finetune
from modeling import KeelBertConfig, KeelSeq2SeqConfig, KeelViTConfig

FOLDER = Path(__file__).parents[2] / "configs/finetune"
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64, "hidden_dropout_prob": 0.0}
CHECKPOINTS = {
    "bert": KeelBertConfig(**SHAPE, vocab_size=100, num_hidden_layers=1, max_position_embeddings=256),
    "seq2seq": KeelSeq2SeqConfig(**SHAPE, vocab_size=100, encoder_layers=1, decoder_layers=1),
    "vit": KeelViTConfig(**SHAPE, num_hidden_layers=1, image_size=32, patch_size=4),
}
FAMILY = {"multi30k": "seq2seq", "cifar10": "vit"}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_every_config_parses(name: str, tmp_path: Path) -> None:
    family = FAMILY.get(name, "bert")
    CHECKPOINTS[family].save_pretrained(tmp_path)
    data = ["--data.source=nyu-mll/glue", "--data.subset=rte"] if name == "glue" else []  # which finetuning.glue sets
    settings = parse_finetune(["--config", str(FOLDER / f"{name}.yaml"), *data, "--model", str(tmp_path)])
    assert settings.family == family and settings.init_from == str(tmp_path)
    text = (FOLDER / f"{name}.yaml").read_text()
    assert f"--config configs/finetune/{name}.yaml" in text
