"""Starting from a checkpoint: what it knew is there, what it lacked is named, new words begin as their pieces."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from mistakes import one_sentence
from runs import lines, run_here
from safetensors.torch import load_file, save_file
from transformers import AutoModelForPreTraining, AutoTokenizer, BertConfig, PreTrainedModel, PreTrainedTokenizerBase

import modeling
from modeling import KeelBertConfig, KeelBertForPreTraining
from modeling.convert import from_native, to_native
from pretraining.cli import parse
from pretraining.data.settings import TokenizerSettings
from pretraining.data.tokenizer import build_tokenizer, load_tokenizer, regular_ids, word_starts
from pretraining.errors import UserError
from pretraining.init_from import FREE, load_weights, own_class, read_config, read_weights, resolve

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # far from a uniform guess
}


@pytest.fixture(scope="module")
def tokenizer(make_objective) -> PreTrainedTokenizerBase:
    return make_objective().examples.tokenizer


@pytest.fixture(scope="module")
def checkpoint(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory):
    """`checkpoint("BertForMaskedLM", **fields)`: a folder with such a model, ours or native, and the tokenizer."""
    made: dict[str, Path] = {}

    def make(name: str = "BertForPreTraining", **fields) -> Path:
        key = f"{name} {fields}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("checkpoint")
            config_class = KeelBertConfig if name.startswith("Keel") else BertConfig
            config = config_class(**{"vocab_size": len(tokenizer), **SHAPE, **fields})
            torch.manual_seed(1)
            model = getattr(modeling if name.startswith("Keel") else transformers, name)(config)
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    torch.nn.init.normal_(parameter, std=0.2)
            model.save_pretrained(made[key])
            tokenizer.save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture
def run(arguments: list[str], tmp_path: Path):
    def start(init_from: Path | str, *more: str, name: str = "run") -> Path:
        base = [argument for argument in arguments if not argument.startswith("--model.")]
        return run_here([*base, "--train.steps=2"], tmp_path, name, f"--init_from={init_from}", *more)

    return start


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, objective) -> dict[str, float]:
    """transformers' losses on the held-out examples, each by itself."""
    sums: Counter[str] = Counter()
    for example in objective.examples.examples("validation", 0, objective.examples.index("validation", 0)[:64]):
        ids, types, labels = (torch.tensor(example[name])[None] for name in ("input_ids", "token_type_ids", "labels"))
        out = model(input_ids=ids, token_type_ids=types)
        logits = out.prediction_logits[labels != -100]
        wanted = labels[labels != -100]
        sums["mlm_loss"] += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
        sums["masked"] += len(wanted)
        pair = torch.tensor([int(example["next_sentence_label"])])  # -100 where nothing is asked
        logits = out.seq_relationship_logits
        sums["nsp_loss"] += torch.nn.functional.cross_entropy(logits, pair, reduction="sum").item()
        sums["pairs"] += int(pair != -100)
    return {"mlm_loss": sums["mlm_loss"] / sums["masked"], "nsp_loss": sums["nsp_loss"] / sums["pairs"]}


def test_a_native_bert_goes_on_and_goes_back(run, checkpoint, make_objective, tmp_path: Path, capsys):
    """The loss before is transformers' own, the tokenizer the same file; converted back, transformers opens it.

    It resumes, and does not from another vocabulary.
    """
    native = checkpoint()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 0, "eval_mlm_loss": 9.0}\n')  # of a start that was killed
    folder = run(native)
    assert f"weights of {native}, fresh: nothing" in capsys.readouterr().out
    before, *_, after = (line for line in lines(folder) if "eval_mlm_loss" in line)
    expected = held_out_loss(AutoModelForPreTraining.from_pretrained(native).eval(), make_objective())
    assert before["step"] == 0 and after["step"] == 2
    assert {name: before[f"eval_{name}"] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert after["eval_mlm_loss"] < before["eval_mlm_loss"]
    assert (folder / "model/tokenizer.json").read_bytes() == (native / "tokenizer.json").read_bytes()
    back = to_native(KeelBertForPreTraining.from_pretrained(folder / "model"))
    back.save_pretrained(tmp_path / "back")
    opened, found = AutoModelForPreTraining.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert type(opened) is transformers.BertForPreTraining and not any(found.values())
    assert all(torch.equal(weight, back.state_dict()[name]) for name, weight in opened.state_dict().items())

    curves = lines(folder)
    run(native)
    assert f"resumed from {folder}" in capsys.readouterr().out
    assert lines(folder) == curves
    with pytest.raises(SystemExit):
        run(checkpoint(vocab_size=1528))
    assert "was trained with model.vocab_size=1500, now it is 1528" in capsys.readouterr().err


LACKS = {
    "BertForPreTraining": "nothing",
    "BertForMaskedLM": "nsp, pooler",
    "BertModel": "mlm, nsp",
    "BertForSequenceClassification": "mlm, nsp",
    "KeelBertForPreTraining": "nothing",
    "KeelBertForMaskedLM": "nsp, pooler",
    "KeelBertModel": "mlm, nsp",
    "KeelBertForQuestionAnswering": "mlm, nsp, pooler",
}


@pytest.mark.parametrize("name", LACKS)
def test_weights_are_the_checkpoints_and_what_it_lacks_is_fresh(name: str, checkpoint, tokenizer):
    folder = checkpoint(name)
    model = KeelBertForPreTraining(KeelBertConfig(vocab_size=len(tokenizer), **SHAPE))
    fresh = {key: weight.clone() for key, weight in model.state_dict().items()}
    assert load_weights(model, str(folder), tokenizer) == f"weights of {folder}, fresh: {LACKS[name]}"
    source = getattr(modeling if name.startswith("Keel") else transformers, name).from_pretrained(folder)
    theirs = (source if name.startswith("Keel") else from_native(source)).state_dict()
    if name.endswith("Model"):
        theirs = {f"bert.{key}": weight for key, weight in theirs.items()}
    for key, weight in model.state_dict().items():
        if key == "mlm.decoder.weight":
            assert torch.equal(weight, theirs["bert.embeddings.tokens.weight"])
        elif any(part in key for part in LACKS[name].split(", ")):
            assert torch.equal(weight, fresh[key]), key
        else:
            assert torch.equal(weight, theirs[key]), key
    assert model.mlm.decoder.weight is model.bert.embeddings.tokens.weight


# ---- heads for fine-tuning ----

POOLED = ["SequenceClassification", "MultipleChoice"]
FINE_TUNED = {
    "SequenceClassification": "classifier",
    "TokenClassification": "classifier",
    "MultipleChoice": "classifier",
}
FINE_TUNED |= {"QuestionAnswering": "span"}
KINDS = pytest.mark.parametrize("kind", ["KeelBert", "Bert"])
FIVE = {number: f"class {number}" for number in range(5)}


def fine_tuned(head: str, tokenizer: PreTrainedTokenizerBase, **fields) -> tuple[PreTrainedModel, dict]:
    """A fresh model with this head, and a copy of its weights."""
    config = KeelBertConfig(vocab_size=len(tokenizer), **SHAPE, **fields)
    model = getattr(modeling, f"KeelBertFor{head}")(config)
    return model, {name: weight.clone() for name, weight in model.state_dict().items()}


def assert_only_these_are_fresh(model: PreTrainedModel, before: dict, fresh: list[str]) -> None:
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]) == any(part in name.split(".") for part in fresh), name


@pytest.mark.parametrize("head", FINE_TUNED)
@pytest.mark.parametrize("source", ["ForPreTraining", "ForMaskedLM", "Model"])
@KINDS
def test_a_pretrained_encoder_gets_a_fresh_head(kind: str, source: str, head: str, checkpoint, tokenizer):
    model, before = fine_tuned(head, tokenizer, id2label=FIVE)
    fresh = [FINE_TUNED[head]]
    if head in POOLED and source == "ForMaskedLM":
        fresh.append("pooler")
    folder = checkpoint(kind + source)
    assert load_weights(model, str(folder), tokenizer) == f"weights of {folder}, fresh: {', '.join(fresh)}"
    assert_only_these_are_fresh(model, before, fresh)


@pytest.mark.parametrize("head", FINE_TUNED)
@pytest.mark.parametrize("source", FINE_TUNED)
@KINDS
def test_a_head_is_taken_from_its_like_alone(kind: str, source: str, head: str, checkpoint, tokenizer):
    """A classifier of three classes, opened for these, for five, and by every other head."""
    labels = {} if kind == "Bert" and source == "QuestionAnswering" else {"num_labels": 3}
    folder = checkpoint(f"{kind}For{source}", **labels)
    for names in (labels, {"id2label": FIVE}):
        model, before = fine_tuned(head, tokenizer, **names)
        takes = head == source and (names is labels or head == "QuestionAnswering")
        fresh = [] if takes else [FINE_TUNED[head]]
        if head in POOLED and source not in POOLED:
            fresh.append("pooler")
        line = load_weights(model, str(folder), tokenizer)
        assert line == f"weights of {folder}, fresh: {', '.join(fresh) or 'nothing'}"
        assert_only_these_are_fresh(model, before, fresh)


def test_a_classifier_of_the_same_classes_in_another_order_is_not_taken(checkpoint, tokenizer):
    folder = checkpoint("KeelBertForSequenceClassification", id2label={0: "no", 1: "yes"})
    for names, fresh in (({0: "no", 1: "yes"}, "nothing"), ({0: "yes", 1: "no"}, "classifier")):
        model, _ = fine_tuned("SequenceClassification", tokenizer, id2label=names)
        assert load_weights(model, str(folder), tokenizer).endswith(f"fresh: {fresh}")


def test_class_weights_stay_with_their_classes(checkpoint, tmp_path: Path):
    """Who starts from a classifier has other classes; another pooling is a choice of a head's, not of pretraining."""
    folder = checkpoint("KeelBertForSequenceClassification", num_labels=3, class_weights=[1.0, 2.0, 3.0])
    settings = parse([f"--init_from={folder}", "--train.steps=1", "--objective.sequence_length=64"])
    assert settings.model.class_weights is None
    start = read_config(str(folder), KeelBertConfig)
    settings.model.pooling = "mean"
    with one_sentence("model.pooling is mean, but cls"):
        resolve(settings, start)
    assert resolve(settings, start, FREE | {"pooling"}).model.pooling == "mean"


def test_the_checkpoint_decides_the_architecture(checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture):
    given = [f"--init_from={checkpoint(layer_norm_eps=1e-6)}", "--train.steps=1", "--objective.sequence_length=64"]
    with pytest.raises(SystemExit):
        parse([*given, "--model.hidden_dropout_prob=0", "--print_config"])
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    again = parse([f"--config={printed}"])
    assert again.model.hidden_size == 32 and again.model.layer_norm_eps == 1e-6 and again.model.hidden_dropout_prob == 0
    assert again.tokenizer.path == again.init_from == str(checkpoint(layer_norm_eps=1e-6))
    printed.write_text(printed.read_text().replace(f"path: {again.init_from}", "path: null"))
    assert parse([f"--config={printed}"]).resolved == again.resolved


def test_a_longer_table_keeps_the_positions_it_had(run, checkpoint):
    native = checkpoint()
    longer = ["--objective.sequence_length=96", "--model.max_position_embeddings=96", "--optim.learning_rate=0"]
    folder = run(native, *longer)
    had = load_file(native / "model.safetensors")["bert.embeddings.position_embeddings.weight"]
    has = load_file(folder / "model/model.safetensors")["bert.embeddings.positions.weight"]
    assert has.shape == (96, 32) and torch.equal(has[:64], had) and has[64:].std() > 0
    assert AutoTokenizer.from_pretrained(folder / "model").model_max_length == 96


def test_rows_without_an_entry_are_kept_and_an_untied_decoder_stays_untied(run, checkpoint, tokenizer):
    native = checkpoint(vocab_size=1528, tie_word_embeddings=False)
    folder = run(native, "--optim.learning_rate=0")
    had, has = load_file(native / "model.safetensors"), load_file(folder / "model/model.safetensors")
    for ours, theirs in (
        ("bert.embeddings.tokens", "bert.embeddings.word_embeddings"),
        ("mlm.decoder", "cls.predictions.decoder"),
    ):
        assert len(has[f"{ours}.weight"]) == 1528
        assert torch.equal(has[f"{ours}.weight"], had[f"{theirs}.weight"])
    assert len(AutoTokenizer.from_pretrained(folder / "model")) == len(tokenizer)


# ---- new words ----

VOCABULARY = ("bert.embeddings.tokens.weight", "mlm.decoder.bias")
TEXT = ["A thermostat and thermostats, overthermostat; the (Thermostat)... THERMOSTAT's äpfel! thermostat_a.\n"] * 4
TEXT += ["zwei äpfel brachiosaurus, quokkas quokkas. und brachiosaurus is in the object of statement\n"] * 2


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def extended(request, tmp_path_factory: pytest.TempPathFactory, corpus: Path, make_documents):
    """A tokenizer that does not know the text above, and the same with its new words."""
    folder = tmp_path_factory.mktemp("extended")
    texts = [path.read_text() for path in sorted(corpus.iterdir())]
    topics = make_documents([*texts, "ä xä\n" * 100])
    old = build_tokenizer(TokenizerSettings(kind=request.param, vocab_size=1500), topics, folder)
    old.save_pretrained(folder / "old")
    (folder / "words.txt").write_text("Quokka\n\nthe\n  thermostat \n", encoding="utf-8")
    settings = TokenizerSettings(path=str(folder / "old"), new_words=2, words=str(folder / "words.txt"))
    return old, build_tokenizer(settings, make_documents(TEXT), folder)


def test_new_words_are_the_listed_and_the_most_frequent(extended):
    """Of words as frequent as one another the first by name; what the tokenizer knows whole is left out."""
    old, new = extended
    assert {word: n for word, n in new.get_vocab().items() if n < len(old)} == old.get_vocab()
    added = sorted(new.get_vocab().keys() - old.get_vocab().keys(), key=lambda word: new.get_vocab()[word])
    frequent = ["äpfel", "brachiosaurus"]
    assert [new.decode([new.get_vocab()[word]]).strip() for word in added] == ["quokka", "thermostat", *frequent]
    assert sorted(new.get_vocab().values()) == list(range(len(old) + 4)) and len(new) == len(old) + 4
    assert np.array_equal(regular_ids(new), [*regular_ids(old), *range(len(old), len(new))])


def test_a_new_word_is_one_token_as_a_word_and_none_inside_others(extended, tmp_path: Path):
    old, new = extended
    text = "The Thermostat of thermostats, an overthermostat and THERMOSTAT."
    encoded = new(text, add_special_tokens=False, return_offsets_mapping=True)
    number = new(" thermostat", add_special_tokens=False)["input_ids"]
    assert len(number) == 1 and number[0] >= len(old)
    spans = [
        text[slice(*span)].strip()
        for n, span in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        if n == number[0]
    ]
    assert spans == ["Thermostat", "THERMOSTAT"]
    assert new.decode(encoded["input_ids"]).split() == old.decode(old(text)["input_ids"][1:-1]).split()
    for other in ("of thermostats", "an overthermostat", "object", "a quokkas", "äpfelx", "athermostat"):
        assert new(other)["input_ids"] == old(other)["input_ids"], other
    starts = word_starts(new)
    assert starts[len(old) :].all() and np.array_equal(starts[: len(old)], word_starts(old))
    new.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXT) == new(TEXT)


@pytest.mark.parametrize("rows", [1500, 1502, 1600])
def test_a_new_word_begins_as_the_mean_of_its_pieces(rows: int, extended, tmp_path: Path):
    old, new = extended
    torch.manual_seed(0)
    source = KeelBertForPreTraining(KeelBertConfig(vocab_size=rows, **SHAPE))
    torch.nn.init.normal_(source.mlm.decoder.bias)
    source.save_pretrained(tmp_path)
    old.save_pretrained(tmp_path)
    model = KeelBertForPreTraining(KeelBertConfig(vocab_size=len(new), **SHAPE))
    said = load_weights(model, str(tmp_path), new)
    assert "4 new words" in said
    size = max(rows, len(new))
    assert model.config.vocab_size == size and model.mlm.decoder.out_features == size
    tables = {name: (model.get_parameter(name), source.get_parameter(name)) for name in VOCABULARY}
    for has, had in tables.values():
        assert len(has) == size and torch.equal(has[: len(old)], had[: len(old)])
        assert torch.equal(has[len(new) :], had[len(new) :])
        for word in ("quokka", "thermostat", "äpfel", "brachiosaurus"):
            (number,) = new(f" {word}", add_special_tokens=False)["input_ids"]
            was = old(f" {word}", add_special_tokens=False)["input_ids"]
            assert len(was) > 1 and torch.equal(has[number], had[was].mean(0))
    others = set(model.state_dict()) - {*VOCABULARY, "mlm.decoder.weight"}
    assert all(torch.equal(model.state_dict()[name], source.state_dict()[name]) for name in others)


def test_a_head_that_predicts_no_tokens_takes_new_words_too(extended, tmp_path: Path):
    old, new = extended
    source, _ = fine_tuned("TokenClassification", old)
    source.save_pretrained(tmp_path)
    old.save_pretrained(tmp_path)
    model, _ = fine_tuned("TokenClassification", new)
    assert "fresh: nothing; 4 new words" in load_weights(model, str(tmp_path), new)
    had, has = source.get_input_embeddings().weight, model.get_input_embeddings().weight
    assert torch.equal(has[: len(old)], had)
    (number,) = new(" quokka", add_special_tokens=False)["input_ids"]
    assert torch.equal(has[number], had[old(" quokka", add_special_tokens=False)["input_ids"]].mean(0))


def test_a_run_with_new_words(run, checkpoint, tokenizer, capsys: pytest.CaptureFixture):
    folder = run(checkpoint("KeelBertForPreTraining"), "--tokenizer.new_words=20", "--objective.whole_words=true")
    assert "20 new words" in capsys.readouterr().out
    saved = AutoTokenizer.from_pretrained(folder / "model")
    assert len(saved) == len(tokenizer) + 20
    native = to_native(KeelBertForPreTraining.from_pretrained(folder / "model"))
    assert native.config.vocab_size == len(tokenizer) + 20
    folder = run(folder / "model", "--tokenizer.new_words=5", name="again")
    assert len(AutoTokenizer.from_pretrained(folder / "model")) == len(tokenizer) + 25


# ---- mistakes ----


def test_what_cannot_be_started_from_is_one_sentence(run, checkpoint, tokenizer, tmp_path: Path, capsys):
    transformers.GPT2Config().save_pretrained(tmp_path / "gpt2")
    bare = tmp_path / "bare"
    transformers.BertForPreTraining(BertConfig(vocab_size=len(tokenizer), **SHAPE)).save_pretrained(bare)
    AutoTokenizer.from_pretrained(checkpoint()).save_pretrained(tmp_path / "small")
    transformers.BertModel(BertConfig(vocab_size=1400, **SHAPE)).save_pretrained(tmp_path / "small")
    BertConfig(**SHAPE).save_pretrained(tmp_path / "empty")
    tokenizer.save_pretrained(tmp_path / "empty")
    deeper = tmp_path / "deeper"
    transformers.BertModel(BertConfig(vocab_size=len(tokenizer), **SHAPE)).save_pretrained(deeper)
    tokenizer.save_pretrained(deeper)
    config = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    shutil.copytree(deeper, tmp_path / "shallower")
    (tmp_path / "shallower/config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    shutil.copytree(deeper, tmp_path / "wider")
    (tmp_path / "wider/config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    (tmp_path / "words.txt").write_text("two words\n")
    good = checkpoint()
    for init_from, more, expected in (
        (tmp_path / "nothing", [], "init_from: no checkpoint can be read from"),
        (tmp_path / "gpt2", [], "is a checkpoint of gpt2: this run starts from keel-bert or bert"),
        (checkpoint(is_decoder=True), [], "is_decoder=True has no keel form"),
        (good, ["--model.hidden_size=64"], "model.hidden_size is 64, but 32 in the checkpoint"),
        (good, ["--model.norm_position=pre"], "model.norm_position is pre, but post in the checkpoint"),
        (good, ["--model.max_position_embeddings=32", "--objective.sequence_length=32"], "is 32, but 64 in"),
        (good, ["--objective.sequence_length=65"], "set model.max_position_embeddings to at least 65"),
        (good, ["--tokenizer.path=elsewhere"], "tokenizer.path is elsewhere, but the weights of"),
        (bare, [], "it has no vocabulary"),
        (tmp_path / "small", [], "has 1500 entries, its model 1400"),
        (tmp_path / "empty", [], "init_from: no weights can be read from"),
        (deeper, [], "lacks encoder.layer.2"),
        (tmp_path / "shallower", [], "has encoder.layer.1"),
        (tmp_path / "wider", [], "is (64,) in the weights of"),
        (good, ["--tokenizer.new_words=100000"], "tokenizer.new_words is 100000 but this text has"),
        (good, [f"--tokenizer.words={tmp_path}/words.txt"], "'two words' in"),
        (good, ["--tokenizer.words=nowhere.txt"], "tokenizer.words: nowhere.txt cannot be read"),
        ("null", ["--tokenizer.new_words=5"], "set init_from or tokenizer.path"),
    ):
        with pytest.raises(SystemExit) as end:
            run(init_from, *more, name="bad")
        said = capsys.readouterr().err
        assert end.value.code in (1, 2) and expected in said, (expected, said)
        assert len(re.findall("error:", said)) == 1
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("convert", [lambda model: model, to_native], ids=["ours", "native"])
@pytest.mark.parametrize("head", ["BertForPreTraining", "Seq2SeqForConditionalGeneration", "ViTForImageClassification"])
def test_weights_that_are_no_numbers_or_of_another_size_are_named(head, convert, kind, tiny, tmp_path: Path):
    model = convert(tiny(f"Keel{head}").float())
    model.save_pretrained(tmp_path)
    if kind == "bin":
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert own_class(str(tmp_path)) is type(model)
    opened, missing = read_weights(str(tmp_path), type(model))
    assert not missing and all(torch.equal(weight, weights[name]) for name, weight in opened.state_dict().items())

    name = next(name for name, _ in model.named_parameters() if name.endswith(("fc1.bias", "up.bias", "dense.bias")))
    for change, parts in (
        (lambda weight: weight.where(torch.arange(len(weight)) > 0, torch.nan), ["1 of", "NaN", "diverged"]),
        (lambda weight: weight[1:], [f"({len(weights[name]) - 1},)", f"({len(weights[name])},)", "config.json"]),
    ):
        changed = {other: weight for other, weight in weights.items() if other not in model.all_tied_weights_keys}
        changed[name] = change(weights[name])
        if kind == "bin":
            torch.save(changed, tmp_path / "pytorch_model.bin")
        else:
            save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with one_sentence("init_from", name, str(tmp_path), *parts):
            read_weights(str(tmp_path), type(model))


@pytest.mark.parametrize("told", [None, True, False])
def test_a_cased_vocabulary_is_read_as_cased_unless_told_otherwise(told: bool | None, tmp_path: Path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "The", "the", "Spring", "in", "paris"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertConfig(vocab_size=len(words)).save_pretrained(tmp_path)
    if told is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": told}))
    expected = ["the", "in", "[UNK]"] if told else ["The", "in", "Spring"]
    assert load_tokenizer(str(tmp_path)).tokenize("The in Spring") == expected
    (tmp_path / "vocab.txt").write_text("\n".join(words[:5] + [word.lower() for word in words[6:]]))
    assert load_tokenizer(str(tmp_path)).tokenize("THE")[0] == ("[UNK]" if told is False else "the")


def test_a_unigram_tokenizer_takes_no_new_words(corpus: Path, tmp_path: Path, make_documents):
    topics = make_documents([path.read_text() for path in sorted(corpus.iterdir())][:20])
    build_tokenizer(TokenizerSettings(kind="unigram", vocab_size=900), topics, tmp_path).save_pretrained(tmp_path / "t")
    with pytest.raises(ValueError, match=r"new_words .* need a WordPiece or BPE tokenizer, and .* is Unigram"):
        build_tokenizer(TokenizerSettings(path=str(tmp_path / "t"), new_words=1), topics, tmp_path)


@pytest.mark.parametrize(
    "place, extra, expected",
    [("run/model", {}, "is a run's folder: give "), ("run", {"quantization_config": {"bits": 4}}, "are quantised")],
)
def test_a_checkpoint_that_is_no_start(place: str, extra: dict, expected: str, tmp_path: Path):
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "config.json").write_text(json.dumps({"model_type": "bert", **extra}))
    with pytest.raises(UserError, match=expected):
        read_config(str(tmp_path / "run"), KeelBertConfig)
