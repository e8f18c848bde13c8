"""Draw where a translation looked: python -m pretraining.pictures.attention_maps runs/NAME/model "A dog runs." """

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from modeling import KeelSeq2SeqForConditionalGeneration
from pretraining.data.tokenizer import TARGET, load_tokenizer
from pretraining.errors import UserError, one_sentence_errors
from pretraining.export import open_one_of
from pretraining.pictures.charts import draw_attention

MAPS = {
    "encoder": ("encoder_attentions", "source at source"),
    "decoder": ("decoder_attentions", "target at target"),
    "cross": ("cross_attentions", "target at source"),
}


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The text of each token, behind an underscore where a word begins."""
    names = tokenizer.convert_ids_to_tokens(ids)
    texts = [str(tokenizer.decode([token])).strip() for token in ids]
    return ["_" * name.startswith(("Ġ", "▁")) + text or name for name, text in zip(names, texts, strict=True)]


@torch.no_grad()
def draw_maps(folder: Path, text: str, out: Path) -> tuple[str, list[Path]]:
    """Translates a text with a checkpoint, and draws the attention of every layer and head.

    Returns:
        The translation, and the pictures `attention-{encoder,decoder,cross}.png`.

    Raises:
        UserError: the folder holds no checkpoint of ours, or the text is beyond the model's positions.
    """
    model: Any = open_one_of([KeelSeq2SeqForConditionalGeneration], "encoder-decoder", folder)
    tokenizer = target_tokenizer = load_tokenizer(str(folder))
    if not model.config.share_encoder_decoder_embeddings:
        target_tokenizer = load_tokenizer(str(folder), TARGET)
    input_ids = tokenizer(text, return_tensors="pt").input_ids  # (1, S)
    positions = model.config.max_position_embeddings
    if input_ids.shape[1] > positions:
        raise UserError(
            f"the text has {input_ids.shape[1]} tokens, and the model has {positions} positions: shorten it."
        )
    generated = model.generate(input_ids=input_ids)  # (1, T + 1), behind the start token
    decoder_input_ids, target_ids = generated[:, :-1], generated[:, 1:]
    outputs = model(input_ids=input_ids, decoder_input_ids=decoder_input_ids, output_attentions=True)
    source = pieces(tokenizer, input_ids[0].tolist())
    decoder_input = pieces(target_tokenizer, decoder_input_ids[0].tolist())
    target = pieces(target_tokenizer, target_ids[0].tolist())
    tokens = {"encoder": (source, source), "decoder": (decoder_input, decoder_input), "cross": (target, source)}
    out.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for name, (field, title) in MAPS.items():
        paths.append(out / f"attention-{name}.png")
        draw_attention([layer[0].numpy() for layer in outputs[field]], *tokens[name], title, paths[-1])
    return str(target_tokenizer.decode(target_ids[0], skip_special_tokens=True)).strip(), paths


def main() -> None:
    parser = argparse.ArgumentParser(prog="attention_maps", description=__doc__)
    parser.add_argument("model", type=Path, help="Folder of the model: runs/NAME/model.")
    parser.add_argument("text", help="Text to translate.")
    parser.add_argument("--out", type=Path, help="Folder for the pictures; default: the run's.")
    options = parser.parse_args()
    with one_sentence_errors("attention_maps"):
        out = options.out or options.model.absolute().parent
        translation, paths = draw_maps(options.model, options.text, out)
        print(translation, *paths, sep="\n")


if __name__ == "__main__":
    main()
