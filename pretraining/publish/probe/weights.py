"""Does the checkpoint open, and compute what was trained?"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .check import Fault, Skip
from .checkpoint import TOLERANCE, Checkpoint, Opened, base_outputs, distance, outputs_of
from .samples import labels


def wrong_weights(opened: Opened, trained: Opened) -> dict[str, set[str]]:
    """The weights that an Auto class should have found and has not, by what is wrong; a head may be new."""
    if opened is trained:
        lacking, foreign, unfit = opened.missing, opened.unexpected, opened.mismatched
    else:
        known, prefix = set(trained.model.state_dict()), f"{trained.model.base_model_prefix}."
        # A base model's weights are named without the prefix that they have in a model with a head.
        is_base = not hasattr(opened.model, trained.model.base_model_prefix)
        missing, mismatched = (
            {prefix + name if is_base else name for name in names} for names in (opened.missing, opened.mismatched)
        )
        lacking, foreign = missing & known, opened.unexpected - known
        unfit = {name for name in mismatched if name.startswith(prefix)}
    return {"lacks": lacking, "does not know": foreign, "does not fit": unfit}


def check_opens(checkpoint: Checkpoint) -> str:
    """Every Auto class opens it, silently, with all its weights; new ones are only those of heads that it lacks."""
    trained = checkpoint.open(checkpoint.trained)
    new: list[str] = []
    for auto in checkpoint.classes:
        opened = trained if auto == checkpoint.trained else checkpoint.open(auto)
        for kind, names in wrong_weights(opened, trained).items():
            if names:
                raise Fault(f"{auto} {kind} {len(names)} of the weights: {', '.join(sorted(names)[:3])}")
        if opened.has_new_head:
            new.append(auto)
        elif opened.printed and not opened.unexpected:
            raise Fault(f"{auto} prints: {opened.printed[:300]}")
    told = f"; {', '.join(new)} with a new head, which is to be trained" if new else ""
    return f"{len(checkpoint.classes)} Auto classes{told}"


def check_logits(checkpoint: Checkpoint) -> str:
    """The trained class computes what the reference has."""
    expected = {name[7:]: value for name, value in checkpoint.reference.items() if name.startswith("output.")}
    model = checkpoint.model
    if checkpoint.unread:
        raise Fault(f"{checkpoint.unread}; training leaves it in the run's folder, beside the model's")
    if not checkpoint.reference:
        raise Skip("the model lies in no run's folder, where training leaves reference.safetensors")
    if not expected or f"input.{model.main_input_name}" not in checkpoint.reference:
        raise Fault("reference.safetensors is of another model")
    found = outputs_of(model, checkpoint.inputs)
    apart = 0.0
    for name, value in expected.items():
        if name not in found:
            raise Fault(f"there is no {name} any more")
        apart = max(apart, distance(found[name], value))
        if checkpoint.demands_bits and not torch.equal(found[name], value):
            raise Fault(f"{name} differs from training's, by up to {apart:.1e}")
        if apart > TOLERANCE:
            raise Fault(f"{name} differs from training's by up to {apart:.1e}; {TOLERANCE:.0e} is allowed")
    names = ", ".join(expected)
    if checkpoint.demands_bits:
        return f"{names} bit for bit"
    there = checkpoint.metadata
    recorded = f"torch {there['torch']} on {there['processor']}" if there else "a machine that it does not name"
    return f"{names} to {apart:.1e} ({TOLERANCE:.0e} is allowed: the reference was recorded by {recorded}, not here)"


def check_classes_agree(checkpoint: Checkpoint) -> str:
    """Every other Auto class computes the same as the trained one, as far as it has its weights."""
    model, inputs = checkpoint.model, checkpoint.inputs
    base = base_outputs(model, inputs)
    # With its states recorded, a head computes all positions: then the bits are those of every other class.
    whole = [*outputs_of(model, inputs, output_hidden_states=True).values(), *base.values()]
    for auto in checkpoint.classes:
        if auto == checkpoint.trained:
            continue
        opened = checkpoint.open(auto)
        for name, value in base_outputs(opened.model, inputs).items():
            new_pooler = name == "pooler_output" and any("pooler" in weight for weight in opened.missing)
            if name in base and not new_pooler and not torch.equal(value, base[name]):
                raise Fault(f"{auto} computes another {name}, by up to {distance(value, base[name]):.1e}")
        if checkpoint.is_class("ForPreTraining") and not opened.has_new_head:  # a head of those that it has
            for name, value in outputs_of(opened.model, inputs, output_hidden_states=True).items():
                alike = [x for x in whole if x.shape == value.shape]
                if alike and not any(torch.equal(value, x) for x in alike):
                    apart = min(distance(value, x) for x in alike)
                    raise Fault(f"{auto} computes another {name}, by up to {apart:.1e}")
    return "equal outputs, bit for bit, of all classes as far as they share weights"


def check_tied(checkpoint: Checkpoint) -> str:
    """Weights that training tied are one tensor."""
    model = checkpoint.model
    pairs = model._tied_weights_keys or {}
    tied = 0
    for target, source in pairs.items():
        one, other = model.get_parameter(target), model.get_parameter(source)
        tied += one is other
        if one is not other and model.config.tie_word_embeddings:
            raise Fault(f"{target} is not tied to {source}: training goes on with two tensors")
        if one is not other and torch.equal(one, other):
            raise Fault(f"{target} and {source} are equal but two tensors: tie_word_embeddings is false")
    missed = _untied_outputs(model)
    if missed:
        raise Fault(missed)
    if not tied:
        raise Skip("the model ties no weights")
    return ", ".join(f"{target} = {source}" for target, source in pairs.items())


def _untied_outputs(model: Any) -> str:
    """What is wrong where the configuration ties an output matrix that the code does not."""
    output, tokens = model.get_output_embeddings(), model.get_input_embeddings()
    if output is None or not model.config.tie_word_embeddings:
        return ""
    tables = [module.weight for module in model.modules() if type(module) is type(tokens) or module is tokens]
    if any(output.weight is table for table in tables):
        return ""
    return "the configuration ties the output matrix to the token table, and the model does not"


def check_buffers(checkpoint: Checkpoint) -> str:
    """Buffers that no file holds (sinusoids) are computed again: finite, and those of a model that is built anew."""
    model = checkpoint.model
    saved = set(model.state_dict())
    names = [name for name, _ in model.named_buffers() if name not in saved]
    if not names:
        raise Skip("the model has no buffers that are computed anew")
    again, built = checkpoint.open(checkpoint.trained).model, type(model)(model.config)
    for name in names:
        value = model.get_buffer(name)
        if not torch.isfinite(value).all():
            raise Fault(f"{name} is not finite: it was never filled")
        if not torch.equal(value, again.get_buffer(name)):
            raise Fault(f"{name} differs between two openings: it was never filled")
        if not torch.equal(value, built.get_buffer(name)):
            raise Fault(f"{name} is not what the configuration says: loading does not fill it")
    return ", ".join(names)


def check_labels(checkpoint: Checkpoint) -> str:
    """The label map is a bijection, as wide as the head, and training's."""
    if not checkpoint.is_class("ForSequenceClassification", "ForTokenClassification", "ForImageClassification"):
        raise Skip("the model has no labels")
    fields = checkpoint.fields
    config: Any = checkpoint.config
    forth = {int(number): name for number, name in (fields.get("id2label") or config.id2label).items()}
    back = fields.get("label2id") or config.label2id
    if sorted(forth) != list(range(len(forth))):
        raise Fault(f"id2label numbers its {len(forth)} labels {sorted(forth)}")
    if {name: number for number, name in forth.items()} != back:
        wrong = next((name for number, name in forth.items() if back.get(name) != number), min(back, key=str))
        raise Fault(f"id2label and label2id disagree on {wrong!r}")
    width = outputs_of(checkpoint.model, checkpoint.inputs)["logits"].shape[-1]
    if width != len(forth):
        raise Fault(f"there are {len(forth)} labels, and the head has {width}")
    recorded = checkpoint.metadata.get("labels")
    if recorded is not None and labels(config) != recorded:
        raise Fault(f"training's labels were {recorded[:200]}")
    return f"{width} labels" + ("" if recorded is None else ", as in training")


def check_saves(checkpoint: Checkpoint) -> str:
    """Saved, opened and saved again: the same bytes of weights and code."""
    model = checkpoint.model
    with tempfile.TemporaryDirectory() as place:
        first, second = Path(place, "first"), Path(place, "second")
        model.save_pretrained(first)
        Checkpoint(first, None).open(checkpoint.trained).model.save_pretrained(second)
        names = {path.name for path in first.iterdir()} | {path.name for path in second.iterdir()}
        for name in sorted(names):
            one, other = first / name, second / name
            if not one.exists() or not other.exists() or one.read_bytes() != other.read_bytes():
                raise Fault(f"{name} changes when it is saved a second time")
        saved = _weights(first)
        for name, value in _weights(checkpoint.folder).items():
            if name not in saved or not torch.equal(value, saved[name]):
                raise Fault(f"{name} changes when it is saved")
        for path in first.glob("*.py"):
            if path.read_bytes() != (checkpoint.folder / path.name).read_bytes():
                raise Fault(f"the code in {path.name} changes when it is saved")
    return f"weights, configuration and code, {len(names)} files"


def _weights(folder: Path) -> dict[str, Tensor]:
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}
