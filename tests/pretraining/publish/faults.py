"""Faults planted in a checkpoint that is right, and the check that must find each."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    edit(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def edit_json(path: Path, edit: Callable[[Any], object]) -> None:
    fields = json.loads(path.read_text(encoding="utf-8"))
    edit(fields)
    path.write_text(json.dumps(fields, ensure_ascii=False), encoding="utf-8")


def edit_code(path: Path, *replaced: tuple[str, str]) -> None:
    code = path.read_text(encoding="utf-8")
    for old, new in replaced:
        assert old in code, old
        code = code.replace(old, new, 1)
    path.write_text(code, encoding="utf-8")


def changed_weight(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights["bert.encoder.blocks.1.attention.key.weight"][3].mul_(1.01))


def renamed_parameter(folder: Path) -> None:
    name = "bert.encoder.blocks.0.attention.{}.weight".format
    edit_weights(folder, lambda weights: weights.update({name("k"): weights.pop(name("key"))}))


def untied_head(folder: Path) -> None:
    """The file has an output matrix of its own."""
    edit_weights(folder, lambda weights: weights.update({"mlm.decoder.weight": table(weights) + 1}))


def untied_copy(folder: Path) -> None:
    """The output matrix is equal, so that every output is right, and yet another tensor."""
    edit_weights(folder, lambda weights: weights.update({"mlm.decoder.weight": table(weights).clone()}))
    edit_json(folder / "config.json", lambda config: config.update(tie_word_embeddings=False))


def table(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return weights["bert.embeddings.tokens.weight"]


def untied_code(folder: Path) -> None:
    """The file has an output matrix, and the code has forgotten that it is tied."""
    untied_head(folder)
    code = (folder / "bert.py").read_text(encoding="utf-8")
    (folder / "bert.py").write_text(re.sub(r"\n    _tied_weights_keys = .*", "", code), encoding="utf-8")


def missing_code(folder: Path) -> None:
    (folder / "layers.py").unlink()


def changed_code(folder: Path) -> None:
    """To no effect, but for the hash of all code that configuration.py ends with."""
    with (folder / "layers.py").open("a") as file:
        file.write("\n# changed\n")


def changed_computation(folder: Path) -> None:
    edit_code(folder / "layers.py", ("self.up(x)", "self.up(x * 1.001)"))


def wrong_auto_map(folder: Path) -> None:
    """A class that is there, and another one's."""
    edit_json(
        folder / "config.json",
        lambda config: config["auto_map"].update(AutoModelForMaskedLM="bert.KeelBertForPreTraining"),
    )


def no_such_class(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config["auto_map"].update(AutoModel="bert.KeelBertModels"))


def lacking_auto_map(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config["auto_map"].pop("AutoModelForMaskedLM"))


def stale_tokenizer(folder: Path) -> None:
    """As many entries, of which some have changed places."""

    def swap(tokenizer: Any) -> None:
        ids = tokenizer["model"]["vocab"]
        words = [word for word in ids if len(word) > 2 and not word.startswith("[")]
        ids |= dict(zip(words, [ids[word] for word in reversed(words)], strict=True))

    edit_json(folder / "tokenizer.json", swap)


def larger_tokenizer(folder: Path) -> None:
    def add(tokenizer: Any) -> None:
        ids = tokenizer["model"]["vocab"]
        ids["zzzz"] = len(ids)

    edit_json(folder / "tokenizer.json", add)


def garbage_buffer(folder: Path) -> None:
    """Nobody fills the sinusoids of a model that is loaded."""
    edit_code(folder / "base.py", ("(SinusoidalPositions, SincosPositions)", "()"))


def truncated(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-100])


def labels_at_odds(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config["id2label"].update({"0": "1", "1": "0"}))


def swapped_labels(folder: Path) -> None:
    """Both maps agree with one another, and not with training."""

    def swap(config: Any) -> None:
        config["id2label"] |= {"0": "1", "1": "0"}
        config["label2id"] |= {"1": 0, "0": 1}

    edit_json(folder / "config.json", swap)


def other_pixels(folder: Path) -> None:
    edit_json(folder / "preprocessor_config.json", lambda config: config.update(image_mean=[0.4, 0.5, 0.5]))


def swallowed_cache(folder: Path) -> None:
    """`forward` takes whatever generate() hands over, and does not look at it."""
    code = (folder / "seq2seq.py").read_text(encoding="utf-8")
    before, name, model = code.partition("class KeelSeq2SeqForConditionalGeneration")
    swallow = '        kwargs.pop("cache", None)\n        cache = past_key_values = None\n'
    for old, new in (
        ("        cache: EncoderDecoderCache | None = None,\n", ""),
        ("    @strict\n    @can_return_tuple\n    def forward(", "    @can_return_tuple\n    def forward("),
        ("        outputs = self.model(  # in", f"{swallow}        outputs = self.model(  # in"),
    ):
        assert old in model, old
        model = model.replace(old, new, 1)
    (folder / "seq2seq.py").write_text(before + name + model, encoding="utf-8")


def failing_example(folder: Path) -> None:
    (folder / "README.md").write_text("# A card\n\n```python\nimport no_such_module\n```\n")


FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a changed weight": ("bert", changed_weight, "logits"),
    "an untied head": ("bert", untied_head, "tied weights"),
    "an untied head that equals the table": ("bert", untied_copy, "tied weights"),
    "an untied head of code that forgot it": ("bert", untied_code, "tied weights"),
    "a missing code file": ("bert", missing_code, "opens"),
    "a changed code file": ("bert", changed_code, "save and load"),
    "a code file that computes otherwise": ("bert", changed_computation, "logits"),
    "a wrong auto_map entry": ("bert", wrong_auto_map, "auto_map"),
    "an auto_map entry that leads nowhere": ("bert", no_such_class, "auto_map"),
    "a lacking auto_map entry": ("bert", lacking_auto_map, "auto_map"),
    "a stale tokenizer": ("bert", stale_tokenizer, "tokenizer"),
    "a larger tokenizer": ("bert", larger_tokenizer, "tokenizer"),
    "a garbage buffer": ("seq2seq", garbage_buffer, "buffers"),
    "a truncated file": ("bert", truncated, "weights file"),
    "a wrong label map": ("vit", labels_at_odds, "labels"),
    "a wrong label map both ways": ("vit", swapped_labels, "labels"),
    "another image processor": ("vit", other_pixels, "images"),
    "a renamed parameter": ("bert", renamed_parameter, "opens"),
    "a forward that swallows the cache": ("seq2seq", swallowed_cache, "generate()"),
}
"""By name: the family, what plants it, and the check that finds it even where SHA256SUMS was written anew."""
