"""Draw where a translation looked: python -m pretraining.pictures.attention_maps runs/NAME/model "A dog runs." """

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from modeling import KeelSeq2SeqForConditionalGeneration
from pretraining.data.tokenizer import TARGET, load_tokenizer
from pretraining.errors import UserError
from pretraining.export import open_one_of
from pretraining.pictures.charts import draw_attention

MAPS = {
    "encoder": ("encoder_attentions", "source at source"),
    "decoder": ("decoder_attentions", "target at target"),
    "cross": ("cross_attentions", "target at source"),
}


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Each token as it reads; an underscore where a word begins."""
    names = tokenizer.convert_ids_to_tokens(ids)
    texts = (str(tokenizer.decode([token])).strip() for token in ids)
    return ["_" * name.startswith(("Ġ", "▁")) + text or name for name, text in zip(names, texts, strict=True)]


@torch.no_grad()
def draw_maps(folder: Path, text: str, out: Path) -> tuple[str, list[Path]]:
    """Translates a text with a checkpoint, and draws every layer's and head's attention while doing so.

    Returns:
        The translation, and the pictures `attention-{encoder,decoder,cross}.png`.

    Raises:
        UserError: the folder holds no checkpoint of ours, or the text is beyond the model's positions.
    """
    model: Any = open_one_of([KeelSeq2SeqForConditionalGeneration], "encoder-decoder", folder)
    tokenizer = target_tokenizer = load_tokenizer(str(folder))
    if not model.config.share_encoder_decoder_embeddings:
        target_tokenizer = load_tokenizer(str(folder), TARGET)
    source = tokenizer(text, return_tensors="pt").input_ids
    known = model.config.max_position_embeddings
    if source.shape[1] > known:
        raise UserError(f"the text has {source.shape[1]} tokens, and the model knows {known} positions: shorten it.")
    written = model.generate(input_ids=source)
    target = written[:, 1:]  # behind the start token
    outputs = model(input_ids=source, labels=target, output_attentions=True)
    before = model.prepare_decoder_input_ids_from_labels(target)
    read = pieces(tokenizer, source[0].tolist())
    heard, said = (pieces(target_tokenizer, ids[0].tolist()) for ids in (before, target))
    tokens = {"encoder": (read, read), "decoder": (heard, heard), "cross": (said, read)}
    out.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for name, (field, title) in MAPS.items():
        paths.append(out / f"attention-{name}.png")
        draw_attention([layer[0].numpy() for layer in outputs[field]], *tokens[name], title, paths[-1])
    return str(target_tokenizer.decode(target[0], skip_special_tokens=True)).strip(), paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="runs/NAME/model")
    parser.add_argument("text", help="a source to translate")
    parser.add_argument("--out", type=Path, help="the pictures' folder; default: the run's")
    options = parser.parse_args()
    try:
        translation, paths = draw_maps(options.model, options.text, options.out or options.model.parent)
    except UserError as error:
        parser.error(str(error))
    print(translation, *paths, sep="\n")


if __name__ == "__main__":
    main()
