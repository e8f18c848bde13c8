"""Translation and denoising: examples, packed rows, judgement, and runs that resume to the same bits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
import torch
from accelerate import Accelerator
from runs import NUMBERS, learn_numbers, lines
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BertTokenizer, GenerationConfig, MarianMTModel

from modeling import KeelSeq2SeqConfig, KeelSeq2SeqForConditionalGeneration
from modeling.convert import to_native
from pretrain import main
from pretraining.cli import parse
from pretraining.data.packing import IGNORED
from pretraining.data.pairs.prepared import token_points, words_of
from pretraining.data.plan import make_plan
from pretraining.export import write_native
from pretraining.metrics import Bleu, ExactMatch
from pretraining.objectives import make_objective as objective_of
from pretraining.objectives.base import Objective
from pretraining.pictures.charts import fonts_for
from pretraining.publish.explore import pictures
from pretraining.publish.explore.texts import load_tokenizers, read_text
from pretraining.publish.source import find_source


@pytest.fixture(scope="module")
def arguments(seq2seq_arguments):
    return seq2seq_arguments


@pytest.fixture(scope="module", params=["translation", "separate", "denoising"])
def objective(request: pytest.FixtureRequest, arguments) -> Objective:
    settings = parse([*arguments(request.param), "--train.steps=1"])
    made = objective_of(settings)
    made.examples.prepare(is_builder=True)
    return made


def rows_of(objective: Objective, count: int) -> list[list[dict[str, np.ndarray]]]:
    """The examples of the epoch's first rows."""
    index = objective.examples.index("train", 0)
    lengths = objective.examples.lengths("train", 0, index)
    plan = make_plan(index, lengths, objective.examples.row_lengths, lambda _: count, 64, 0, 0)
    return [objective.examples.examples("train", 0, row) for row in plan.step(0)]


def test_lengths_are_those_of_the_examples(objective: Objective):
    for split in ("train", "validation"):
        index = objective.examples.index(split, 2)
        examples = objective.examples.examples(split, 2, index)
        found = [[len(example["input_ids"]), len(example["labels"])] for example in examples]
        assert np.array_equal(objective.examples.lengths(split, 2, index), found)
        assert np.max(found) <= 32 and (np.max(found, axis=0) <= objective.examples.row_lengths).all()
        end = objective.examples.tokenizer.eos_token_id
        assert all(example[side][-1] == end for example in examples for side in ("input_ids", "labels"))


def test_packed_examples_get_the_loss_that_they_get_alone(objective: Objective):
    """In fp64, and against a native Marian that knows no packing, fed one example at a time."""
    model = objective.head.build_model(objective.examples.run.model).double().eval()
    native = to_native(model)
    assert isinstance(native, MarianMTModel)
    rows = rows_of(objective, 4)
    batch = objective.examples.collate(rows, max(map(len, rows)))
    total = model(**batch.tensors, num_items_in_batch={"labels": 1}).loss
    alone = 0.0
    for example in (example for row in rows for example in row):
        source, target = (torch.from_numpy(example[name])[None] for name in ("input_ids", "labels"))
        alone += native(input_ids=source, labels=target).loss.item() * target.numel()
    assert total.item() == pytest.approx(alone, rel=1e-9)
    assert batch.units == sum(len(side) for row in rows for example in row for side in example.values())
    assert batch.targets == {"labels": sum(len(example["labels"]) for row in rows for example in row)}


def test_what_has_texts_written_during_a_run_is_named(arguments):
    run = [*arguments("translation"), "--train.steps=1"]
    cases = {
        "objective.generate_examples above 0": [],
        "evaluation.samples above 0": ["--objective.generate_examples=0"],
        "": ["--objective.generate_examples=0", "--evaluation.samples=0"],
    }
    for expected, more in cases.items():
        settings = parse([*run, *more])
        assert settings.objective.searches(settings) == expected


def test_the_loss_is_plain_at_evaluations_and_smoothed_in_training(objective: Objective):
    model = objective.head.build_model(objective.examples.run.model).eval()
    model.config.label_smoothing = 0.1
    rows = rows_of(objective, 2)
    batch = objective.examples.collate(rows, max(map(len, rows))).tensors
    with torch.no_grad():
        (total, count), (right, _) = objective.scoring.sums(model, batch).values()
        out = model(**batch)
    logits, labels = out.logits[batch["labels"] != IGNORED], batch["labels"][batch["labels"] != IGNORED]
    plain = torch.nn.functional.cross_entropy(logits, labels)
    assert float(total / count) == pytest.approx(float(plain), rel=1e-5)
    assert int(right) == int((logits.argmax(-1) == labels).sum())


def test_what_is_written_is_judged_against_all_targets(objective: Objective, monkeypatch: pytest.MonkeyPatch):
    index = objective.examples.index("validation", 0)[:8]
    model = objective.head.build_model(objective.examples.run.model)
    right = [
        objective.examples.decode("labels", example["labels"])
        for example in objective.examples.examples("validation", 0, index)
    ]
    asked: list[int] = []

    def generate(self, model, sources, beams):
        asked.append(beams)
        return [*right[:-1], "something else"][-len(sources) :]

    monkeypatch.setattr(type(objective.scoring), "generate", generate)
    of_eight = objective.examples.run.changed({"objective.generate_examples": 8})
    accelerator = Accelerator(cpu=True)
    found = objective.for_phase(of_eight).scoring.score_outputs(model, index, accelerator, final=False)
    assert found["exact_match"] == 7 / 8
    assert found["bleu"] == Bleu().score([*right[:-1], "something else"], right)
    none = objective.for_phase(of_eight.changed({"objective.generate_examples": 0}))
    assert none.scoring.score_outputs(model, index, accelerator, final=False) == {} and asked == [1]


def test_metrics_are_those_of_sacrebleu():
    written, right = ["The dog sat on a mat .", "hello"], ["The dog sat on the mat .", "hello"]
    assert Bleu().score(written, right) == sacrebleu.corpus_bleu(written, [right]).score
    assert Bleu().signature().startswith("nrefs:1|case:mixed|eff:no|tok:13a")
    written, right = ["一只狗在草地上跑。", "你好"], ["一只狗在沙滩上跑。", "你好"]
    assert Bleu("zh").score(written, right) == sacrebleu.corpus_bleu(written, [right], tokenize="zh").score > 40
    assert "tok:zh" in Bleu("zh").signature() and Bleu().score(written, right) == 0
    assert ExactMatch().score(written, right) == 0.5


def test_word_alignments_become_those_of_tokens(objective: Objective):
    backends = [tokenizer.backend_tokenizer for tokenizer in objective.examples.tokenizers.values()]
    sides = ["seven eight", "78 nine"]
    words = list(map(words_of, backends, sides))
    tokens = [
        backend.encode(side, add_special_tokens=False).tokens for backend, side in zip(backends, sides, strict=True)
    ]
    spelt = [
        "".join(token for token, word in zip(*side, strict=True) if word == 1)
        for side in zip(tokens, words, strict=True)
    ]
    assert [text.strip("Ġ ") for text in spelt] == ["eight", "nine"]
    odd = words_of(backends[0], "seven  eight")  # as aligners count, two spaces are one
    assert [*dict.fromkeys(odd)] == [0, 1]
    points = token_points("0-1 1-0", *words)
    assert {(int(words[0][s]), int(words[1][t])) for s, t in points} == {(0, 1), (1, 0)}
    count = [[int((side == word).sum()) for word in (0, 1)] for side in words]
    assert len(points) == count[0][0] * count[1][1] + count[0][1] * count[1][0]


def test_pairs_that_are_too_long_or_too_unlike_are_left_out_and_counted(arguments, tmp_path: Path):
    path = tmp_path / "odd.tsv"
    good = "".join(f"one two three {i}\t{i} {i} {i}\n" for i in range(300))
    path.write_text(f"{good}{'one two three four five ' * 20}\t1\n{'seven ' * 4}\t7\n")
    objective = objective_of(
        parse([*arguments("translation"), "--train.steps=1", f'--data.files=["{path}"]', "--tokenizer.vocab_size=290"])
    )
    lines = objective.examples.prepare(is_builder=True)
    said = " ".join(lines)
    assert "1 longer than 32 tokens" in said and "1 more than 9 times as long as their other side" in said
    assert sum(map(len, objective.examples.kept.values())) == 300
    held = tmp_path / "held.tsv"
    held.write_text(f"{'eight ' * 4}\t8\n{'one two three four five ' * 20}\t1\nnine\t9\n")
    named = ["--train.steps=1", f'--data.files=["{path}"]', f'--data.validation_files=["{held}"]']
    objective = objective_of(parse([*arguments("translation"), *named, "--tokenizer.vocab_size=290"]))
    assert "left out: 1 longer than 32 tokens" in " ".join(
        objective.examples.prepare(is_builder=True)
    )  # or scores would not compare
    assert len(objective.examples.kept["validation"]) == 2


def test_references_are_what_people_wrote(arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not what is left of it in the tokens, where upper case and rare characters may be lost."""
    path = tmp_path / "odd.tsv"
    path.write_text("".join(f"one two {i}\tEins Zwei  {i}, Ω{chr(0x4E00 + i)}\n" for i in range(300)))
    run = [*arguments("translation"), "--train.steps=1", f'--data.files=["{path}"]', "--tokenizer.kind=unigram"]
    objective = objective_of(parse([*run, "--tokenizer.cased=false", "--tokenizer.vocab_size=320"]))
    objective.examples.prepare(is_builder=True)
    index = objective.examples.index("validation", 0)[:5]
    examples = objective.examples.examples("validation", 0, index)
    references = objective.examples.references(index, examples)
    assert all(text.startswith("Eins Zwei  ") and "Ω" in text for text in references)
    sources = [objective.examples.decode("input_ids", example["input_ids"]).split()[-1] for example in examples]
    assert sources == [text.split()[2].strip(",") for text in references]
    assert not set(references) & {objective.examples.decode("labels", example["labels"]) for example in examples}


def test_rows_have_room_for_what_only_a_later_epoch_has(arguments, tmp_path: Path):
    """Of a source of weight 0.1 each epoch takes another tenth."""
    path = tmp_path / "texts"
    path.mkdir()
    for number in range(204):
        (path / f"{number}.txt").write_text(f"word {number}." if number < 200 else f"long {number} " * 12)
    run = [*arguments("denoising"), f'--data.files=["{path}/*.txt"]', "--data.weight=0.1", "--train.steps=1"]
    run += ["--objective.sequence_length=64", "--objective.row_length=null", "--tokenizer.vocab_size=270"]
    run += ["--data.validation_fraction=0.03"]
    for seed in range(20):
        objective = objective_of(parse([*run, "--data.near_duplicates=1", f"--seed={seed}"]))
        objective.examples.prepare(is_builder=True)
        first, *later = (
            objective.examples.lengths("train", at, objective.examples.index("train", at)).max() for at in range(40)
        )
        if first < max(later):
            break
    assert (
        objective.examples.lengths("validation", 0, objective.examples.index("validation", 0)).max()
        <= first
        < max(later)
    )
    assert max(later) <= max(objective.examples.row_lengths)


def test_how_a_finished_model_writes_may_still_be_chosen(arguments, tmp_path: Path):
    """One beam pays no penalty; a run that has ended is judged and handed over again with others."""
    run = [*arguments("translation"), "--train.steps=2", f"--runs={tmp_path}", "--name=one"]
    main([*run, "--objective.beams=1", "--objective.length_penalty=0.6"])
    written = GenerationConfig.from_pretrained(tmp_path / "one/model")
    assert written.num_beams in (None, 1) and written.max_length == 33
    main([*run, "--objective.beams=3", "--objective.length_penalty=0.6"])
    written = GenerationConfig.from_pretrained(tmp_path / "one/model")
    assert (written.num_beams, written.length_penalty) == (3, 0.6)
    results = json.loads((tmp_path / "one/results.json").read_text())
    assert results["step"] == 2 and results["examples"] == 39


BAD = {
    "beyond the position table": (["--objective.sequence_length=65", "--objective.row_length=null"], "position table"),
    "no pair is alike": (["--objective.max_ratio=0.5"], "Nothing of the train split is left"),
    "wordpiece cannot write": (["--tokenizer.kind=wordpiece"], "choose bpe or unigram"),
    "another family's objective": (["--objective.name=sentence_pairs"], "sentence_pairs"),
    "a tokenizer that puts more around a text": (["--tokenizer.path={tmp}/around"], "reads a text and then its end"),
    "a tokenizer that pads with the end": (["--tokenizer.path={tmp}/padded"], "for padding and for the end"),
    "a model of no heads": (["--model.num_attention_heads=0"], "num_attention_heads=0 must be at least 1"),
    "a share of more than all": (["--model.label_smoothing=1.5"], "label_smoothing=1.5 must be at least 0"),
    "nothing to train a tokenizer on": (["--tokenizer.sample_characters=0"], "sample_characters is 0"),
    "a measure that is not taken": (
        ["--objective.metric=bleu", "--objective.generate_examples=0"],
        "objective.generate_examples",
    ),
    "nothing held out": (["--data.validation_fraction=0"], "Nothing is held out"),
    "a tokenizer without an end": (["--tokenizer.path={tmp}/bert"], "eos_token"),
    "one tokenizer for two vocabularies": (
        ["--tokenizer.path={tmp}/bert", "--tokenizer.separate=true"],
        "a folder with target/tokenizer.json",
    ),
    "two of unlike sizes": (["--tokenizer.path={tmp}/unlike", "--tokenizer.separate=true"], "both must have the same"),
    "two, from a checkpoint of one": (["--init_from={tmp}/one", "--tokenizer.separate=true"], "has one vocabulary"),
    "one, from a checkpoint of two": (["--init_from={tmp}/two", "--tokenizer.separate=false"], "has two vocabularies"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_is_one_sentence(case: str, arguments, tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one"]
    BertTokenizer({word: i for i, word in enumerate(words)}).save_pretrained(tmp_path / "bert")
    for folder, more in (("unlike", []), ("unlike/target", ["two"])):
        unlike = BertTokenizer({word: i for i, word in enumerate(words + more)}, eos_token="[SEP]")
        unlike.save_pretrained(tmp_path / folder)
    BertTokenizer({word: i for i, word in enumerate(words)}, eos_token="[SEP]").save_pretrained(tmp_path / "around")
    end = {"eos_token": "[SEP]", "pad_token": "[SEP]"}
    BertTokenizer({word: i for i, word in enumerate(words)}, **end).save_pretrained(tmp_path / "padded")
    for folder, shared in (("one", True), ("two", False)):
        KeelSeq2SeqConfig(share_encoder_decoder_embeddings=shared).save_pretrained(tmp_path / folder)
    more, expected = BAD[case]
    wrong = [argument.replace("{tmp}", str(tmp_path)) for argument in more]
    with pytest.raises(SystemExit) as ended:
        main([*arguments("translation"), "--train.steps=1", f"--runs={tmp_path}/runs", *wrong])
    error = capsys.readouterr().err
    assert ended.value.code in (1, 2) and expected in error and "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_one_text_has_one_vocabulary(arguments, tmp_path: Path, capsys: pytest.CaptureFixture):
    KeelSeq2SeqConfig(share_encoder_decoder_embeddings=False).save_pretrained(tmp_path)
    for wrong in ("--tokenizer.separate=true", f"--init_from={tmp_path}"):
        with pytest.raises(SystemExit):
            parse([*arguments("denoising"), "--train.steps=1", wrong])
        assert "tokenizer.separate is for pairs" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["translation", "separate", "denoising"])
def test_a_run_resumes_to_the_same_bits_and_is_the_same_however_it_is_cut(name: str, arguments, tmp_path: Path):
    """Across the border of an epoch, dropout and smoothing on, the mean of the last checkpoints exported."""
    run = [*arguments(name), "--train.steps=8", "--checkpoint.every=2", "--checkpoint.keep=3", "--evaluation.every=4"]
    run += [
        "--checkpoint.export=average",
        "--model.label_smoothing=0.1",
        f"--runs={tmp_path}",
        "--objective.generate_examples=4",
    ]
    run += ["--train.rows_per_step=60", "--train.micro_batch=60"] if name != "denoising" else []
    main([*run, "--name=whole"])
    whole = tmp_path / "whole"
    shutil.copytree(whole / "checkpoints/step-4", tmp_path / "part/checkpoints/step-4")
    main([*run, "--name=part"])
    for file in ("model.safetensors", "optimizer.bin"):
        path = f"checkpoints/step-8/{file}"
        assert (whole / path).read_bytes() == (tmp_path / "part" / path).read_bytes(), file
    assert (whole / "results.json").read_text() == (tmp_path / "part/results.json").read_text()
    assert [line for line in lines(whole) if line["step"] > 4] == lines(tmp_path / "part")
    parts = [load_file(whole / f"checkpoints/step-{step}/model.safetensors") for step in (4, 6, 8)]
    model = KeelSeq2SeqForConditionalGeneration.from_pretrained(whole / "model")
    for parameter, weight in model.named_parameters():
        assert torch.allclose(weight, sum(part[parameter] for part in parts) / 3, atol=1e-7), parameter

    exact = ["--model.hidden_dropout_prob=0", "--train.steps=3", "--checkpoint.export=last"]
    main([*run, *exact, "--name=one"])
    main([*run, *exact, "--name=four", "--train.micro_batch=7"])
    for one, other in zip(lines(tmp_path / "one"), lines(tmp_path / "four"), strict=True):
        assert {k: v for k, v in one.items() if "loss" in k} == pytest.approx(
            {k: v for k, v in other.items() if "loss" in k}, rel=1e-4
        )


def test_translation_goes_on_from_denoising(arguments, tmp_path: Path):
    """The same architecture and tokenizer; its first evaluation is that of the weights it starts from."""
    main([*arguments("denoising"), "--train.steps=2", f"--runs={tmp_path}", "--name=first"])
    more = ["--train.steps=2", f"--runs={tmp_path}", "--name=second", f"--init_from={tmp_path}/first/model"]
    without = [
        part for part in arguments("translation") if not part.startswith(("--model.h", "--model.i", "--model.n"))
    ]
    main([*[part for part in without if "vocab_size" not in part], *more])
    first, second = (json.loads((tmp_path / name / "model/config.json").read_text()) for name in ("first", "second"))
    assert first["vocab_size"] == second["vocab_size"] == 1500
    assert lines(tmp_path / "second")[0]["step"] == 0


def test_each_side_may_have_a_vocabulary_of_its_own(arguments, tmp_path: Path):
    """Learnt, opened with both tokenizers, drawn, and gone on from: the tokenizers stay, and what was known."""
    folder = learn_numbers(arguments("separate"), tmp_path)
    model = KeelSeq2SeqForConditionalGeneration.from_pretrained(folder / "model").eval()
    source, target = (AutoTokenizer.from_pretrained(folder / path) for path in ("model", "model/target"))
    assert len(source) == len(target) == model.config.vocab_size and source.pad_token_id == target.pad_token_id
    for tokenizer, text, kind in ((source, "seven eight", str.isalpha), (target, "78", str.isdigit)):
        learnt = {token for token in tokenizer.get_vocab() if len(token) > 1} - {*tokenizer.all_special_tokens}
        assert learnt and all(kind(token.strip("Ġ")) for token in learnt)
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text
    read, written = (side.embeddings.tokens.weight for side in (model.model.encoder, model.model.decoder))
    assert model.lm_head.weight is written and not torch.equal(read, written)
    random = np.random.default_rng(5)
    numbers = [random.integers(10, size=random.integers(1, 9)) for _ in range(40)]
    inputs = source([" ".join(NUMBERS[d] for d in n) for n in numbers], return_tensors="pt", padding=True)
    found = model.generate(**inputs)
    assert torch.equal(found, to_native(model).generate(**inputs))
    texts = [text.strip() for text in target.batch_decode(found, skip_special_tokens=True)]
    assert np.mean([text == "".join(map(str, n)) for text, n in zip(texts, numbers, strict=True)]) > 0.5
    text = " ".join(NUMBERS[d] for d in numbers[0])
    source_of_run = find_source(folder)
    assert read_text(source_of_run.open(), *load_tokenizers(source_of_run), text).written == texts[0]

    data = [part for part in arguments("separate") if not part.startswith(("--model.", "--tokenizer."))]
    data += ["--model.family=seq2seq", f"--runs={tmp_path}", f"--init_from={folder}/model", "--train.steps=1"]
    main([*data, "--name=second"])
    for path in ("tokenizer.json", "target/tokenizer.json"):
        assert (tmp_path / "second/model" / path).read_bytes() == (folder / "model" / path).read_bytes()
    known = json.loads((folder / "results.json").read_text())["eval_loss"]
    assert lines(tmp_path / "second")[0]["eval_loss"] == pytest.approx(known, rel=1e-4)


def test_whoever_opens_it_writes_as_it_was_judged(translator: Path):
    """Beams and length are the checkpoint's own; no space comes before the first word."""
    model = AutoModelForSeq2SeqLM.from_pretrained(translator / "model")
    tokenizer = AutoTokenizer.from_pretrained(translator / "model")
    assert (model.generation_config.num_beams, model.generation_config.max_length) == (2, 33)
    written = tokenizer.decode(
        model.generate(**tokenizer("seven eight", return_tensors="pt"))[0], skip_special_tokens=True
    )
    assert written == written.strip() != ""


@pytest.mark.parametrize("beams", [1, 4])
def test_keel_transformers_and_ctranslate2_write_the_same(beams: int, translator: Path, tmp_path: Path):
    """From one checkpoint: by our own search, by transformers' on the native Marian, and by CTranslate2 on that."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    tokenizer = AutoTokenizer.from_pretrained(translator / "model")
    model = KeelSeq2SeqForConditionalGeneration.from_pretrained(translator / "model").eval()
    write_native(translator / "model", tmp_path / "native")
    random = np.random.default_rng(5)
    texts = [" ".join(NUMBERS[d] for d in random.integers(10, size=random.integers(1, 9))) for _ in range(40)]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    options = {"num_beams": beams, "max_length": 24, "length_penalty": 1.0, "early_stopping": False}
    ours = model.generate(**inputs, **options)
    theirs = MarianMTModel.from_pretrained(tmp_path / "native").eval().generate(**inputs, **options)
    written = tokenizer.batch_decode(ours, skip_special_tokens=True)
    assert written == tokenizer.batch_decode(theirs, skip_special_tokens=True)
    assert len(set(written)) > 30

    ctranslate2.converters.TransformersConverter(str(tmp_path / "native")).convert(str(tmp_path / "engine"))
    engine = ctranslate2.Translator(str(tmp_path / "engine"), device="cpu", compute_type="float32", intra_threads=1)
    tokens = [tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) for text in texts]
    found = engine.translate_batch(tokens, beam_size=beams, min_decoding_length=0, max_decoding_length=23)
    ids = [tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in found]
    same = [tokenizer.decode(one, skip_special_tokens=True) == other for one, other in zip(ids, written, strict=True)]
    assert np.mean(same) > (0.99 if beams == 1 else 0.9)  # its beams end a sentence by a rule of its own


def test_a_head_learns_the_alignments_that_it_is_taught(arguments, tmp_path: Path):
    """Numbers whose words come in the order of their digits; the head finds each digit's word on held-out ones."""
    random = np.random.default_rng(1)
    rows = []
    for _ in range(600):
        digits = random.integers(10, size=random.integers(2, 7))
        points = " ".join(f"{i}-{i}" for i in range(len(digits)))
        rows.append("\t".join((" ".join(NUMBERS[d] for d in digits), " ".join(map(str, digits)), points)))
    path = tmp_path / "aligned.tsv"
    path.write_text("\n".join(["words\tdigits\tpoints", *rows]) + "\n")
    more = [f'--data.files=["{path}"]', "--data.columns=[words, digits]", "--data.alignment_column=points"]
    more += ["--model.alignment_layer=0", "--model.alignment_weight=1", "--train.kernel=eager", "--train.steps=120"]
    more += ["--optim.optimizer=muon", "--optim.learning_rate=1e-2", "--tokenizer.vocab_size=290"]
    run = [*arguments("translation"), *more, "--model.hidden_dropout_prob=0", f"--runs={tmp_path}"]
    main([*run, "--name=aligned", "--log.every=40"])
    model = KeelSeq2SeqForConditionalGeneration.from_pretrained(tmp_path / "aligned/model", attn_implementation="eager")
    objective = objective_of(parse(run))
    objective.examples.prepare(is_builder=True)
    right = []
    for pair in objective.examples.index("validation", 0)[:20]:
        (example,) = objective.examples.examples("validation", 0, np.array([pair]))
        source, target = (torch.from_numpy(example[name])[None] for name in ("input_ids", "labels"))
        found = model.align(source, target)
        assert torch.allclose(found.sum(-1), torch.ones_like(found.sum(-1)), atol=1e-5)
        points = {tuple(point) for point in objective.examples.data["validation"].alignment(pair).tolist()}
        right += [(int(s), t) in points for t, s in enumerate(found[0].argmax(-1)[:-1])]
    assert np.mean(right) > 0.8

    with pytest.raises(ValueError, match="choose eager"):
        model.set_attn_implementation("sdpa")
        model.align(source, target)
    for wrong, expected in (
        (["--train.kernel=sdpa"], "set train.kernel to eager"),
        (["--data.alignment_column=null"], "no pair has"),
    ):
        objective = objective_of(parse([*run, *wrong]))
        with pytest.raises(ValueError, match=expected):
            objective.examples.prepare(is_builder=True)


def test_alignments_of_packed_pairs_are_those_of_each_alone(arguments, tmp_path: Path):
    path = tmp_path / "aligned.tsv"
    rows = [f"one two {NUMBERS[i % 10]}\t{i} 2\t0-1 1-0 2-0" for i in range(300)]
    path.write_text("\n".join(["words\tdigits\tpoints", *rows]) + "\n")
    more = [f'--data.files=["{path}"]', "--data.columns=[words, digits]", "--data.alignment_column=points"]
    more += ["--model.alignment_layer=0", "--train.kernel=eager", "--tokenizer.vocab_size=280", "--train.steps=1"]
    objective = objective_of(parse([*arguments("translation"), *more]))
    objective.examples.prepare(is_builder=True)
    model = objective.head.build_model(objective.examples.run.model).double().eval()
    model.set_attn_implementation("eager")
    rows_ = rows_of(objective, 3)
    batch = objective.examples.collate(rows_, max(map(len, rows_))).tensors
    packed = model(**batch, num_items_in_batch={"labels": 1, "alignment_labels": 1}).loss
    alone = 0.0
    for example in (example for row in rows_ for example in row):
        single = {name: torch.from_numpy(value)[None] for name, value in example.items()}
        alone += model(**single, num_items_in_batch={"labels": 1, "alignment_labels": 1}).loss.item()
    assert packed.item() == pytest.approx(alone, rel=1e-9)
    assert (batch["alignment_labels"] != IGNORED).any()


@pytest.mark.usefixtures("pictures")
def test_attention_maps_are_drawn_from_a_checkpoint(translator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every panel shows what the model looked at: rows that add up to 1, over the tokens that stand beside them."""
    seen: list[tuple] = []
    draw = pictures.draw_attention
    monkeypatch.setattr(pictures, "draw_attention", lambda *all: (seen.append(all), draw(*all)))
    paths = pictures.draw_pictures(find_source(translator), ["seven eight nine"], tmp_path)
    assert [path.name for path in paths] == [f"attention-1-{name}.png" for name in ("encoder", "decoder", "cross")]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    for layers, queries, keys, *_ in seen:
        assert len(layers) == 1 and layers[0].shape == (2, len(queries), len(keys))
        assert np.allclose(layers[0].sum(-1), 1, atol=1e-5)
    assert seen[0][1] == seen[0][2] == seen[2][2] and "".join(seen[0][1]).startswith("_seven")
    families, missing = fonts_for("a\U0010fffd")  # one that no font has is spelt as its code point, not as a box
    assert families and missing == {"\U0010fffd"}
