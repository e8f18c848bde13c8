"""BERT's examples: proportions, properties and frozen evaluation."""

from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pretraining.batches import Steps
from pretraining.data import draws
from pretraining.data.packing import IGNORED
from pretraining.data.plan import Plan, make_plan
from pretraining.data.text.masking import mask_tokens
from pretraining.data.text.next_sentence import NOT_NEXT
from pretraining.errors import UserError


def all_examples(objective, split="train", epoch=0):
    return objective.examples.examples(split, epoch, np.arange(len(objective.examples.data[split])))


def plan_of(objective, split: str, rows: int) -> Plan:
    index = objective.examples.index(split, 0)
    lengths = objective.examples.lengths(split, 0, index)
    return make_plan(index, lengths, (64,), lambda _: rows, 4096, 0, 0, shuffle=split == "train")


@pytest.fixture(scope="module")
def objective(make_objective):
    return make_objective()


@pytest.mark.parametrize("whole_words", [False, True])
def test_masking_proportions_over_100_000_targets(whole_words: bool, make_objective):
    """15 % of the tokens are targets; 80 % of them [MASK], 10 % random, 10 % kept; never a special token."""
    objective = make_objective(f"--objective.whole_words={whole_words}")
    mask, special = objective.examples.tokenizer.mask_token_id, objective.examples.special
    targets = masked = kept = tokens = 0
    replaced: list[np.ndarray] = []
    epoch = 0
    while targets < 100_000:
        for example in all_examples(objective, epoch=epoch):
            at = example["labels"] != IGNORED
            inputs, labels = example["input_ids"][at], example["labels"][at]
            assert not special[labels].any()
            tokens += int((~special[np.where(at, example["labels"], example["input_ids"])]).sum())
            targets += len(labels)
            masked += int((inputs == mask).sum())
            kept += int((inputs == labels).sum())
            replaced.append(inputs[(inputs != mask) & (inputs != labels)])
        epoch += 1
    random = np.concatenate(replaced)
    # Three standard stds of a proportion p over n draws: 3 sqrt(p (1 - p) / n) < 0.004.
    assert targets / tokens == pytest.approx(0.15, abs=0.004)
    assert masked / targets == pytest.approx(0.8, abs=0.004)
    assert kept / targets == pytest.approx(0.1, abs=0.004)
    assert len(random) / targets == pytest.approx(0.1, abs=0.004)
    assert not special[random].any()
    assert len(np.unique(random)) > 0.9 * len(objective.examples.regular)  # from all over the vocabulary


def test_half_of_the_pairs_are_true_and_the_others_come_from_another_document(objective):
    data = objective.examples.data["train"]
    index = np.arange(len(data))
    labels = []
    for epoch in range(20):
        pairs = objective.examples.draw("train", epoch, index)
        other = pairs.label == NOT_NEXT
        start, end = pairs.b[:, 0].T
        assert np.array_equal(start[~other], pairs.a[~other, 0, 1])
        document = np.searchsorted(data.documents, start, side="right") - 1
        assert np.array_equal(document != data.chunk_document, other)
        assert (end <= data.documents[document + 1]).all()  # B never crosses its document's end
        assert (np.diff(pairs.a[:, 0]) > 0).all() and (np.diff(pairs.b[:, 0]) > 0).all()
        labels.append(pairs.label[pairs.label != IGNORED])
    share = np.concatenate(labels).mean()
    assert share == pytest.approx(0.5, abs=3 * 0.5 / len(np.concatenate(labels)) ** 0.5)


def test_held_out_examples_are_the_same_under_every_seed(objective, make_objective):
    other = make_objective("--seed=5")
    for one, two in zip(all_examples(objective, "validation"), all_examples(other, "validation"), strict=True):
        assert all(np.array_equal(one[key], two[key]) for key in one)


def test_samples_are_as_many_as_asked(objective):
    model = objective.head.build_model(objective.examples.run.model).eval()
    assert [len(objective.scoring.samples(model, count)) for count in (0, 3)] == [0, 3]


def test_a_split_is_at_a_sentence_where_the_chunk_has_two(objective):
    data = objective.examples.data["train"]
    index = np.arange(len(data))
    pairs = objective.examples.draw("train", 0, index)
    starts = set(data.sentences.tolist())
    for i in index:
        inside = [s for s in range(data.chunks[i] + 1, data.chunks[i + 1]) if s in starts]
        assert not inside or pairs.a[i, 0, 1] in inside


def test_chunks_cover_every_document_without_overlap(objective):
    data = objective.examples.data["train"]
    assert (np.diff(data.chunks) >= 2).all() and (np.diff(data.chunks) <= 64 - 3).all()
    assert set(data.documents.tolist()) <= set(data.chunks.tolist())
    assert data.chunks[0] == 0 and data.chunks[-1] == len(data.tokens)


def test_sentence_order_exchanges_half_of_the_pairs(make_objective):
    objective = make_objective("--objective.next_sentence=sop")
    data = objective.examples.data["train"]
    pairs = objective.examples.draw("train", 0, np.arange(len(data)))
    share = pairs.label[pairs.label != IGNORED].mean()
    assert share == pytest.approx(0.5, abs=1.5 / (pairs.label != IGNORED).sum() ** 0.5)
    for i, example in enumerate(all_examples(objective)):
        inside = np.where(example["labels"] == IGNORED, example["input_ids"], example["labels"])
        text = np.sort(inside[~objective.examples.special[inside]])
        assert np.array_equal(text, np.sort(data.tokens[data.chunks[i] : data.chunks[i + 1]]))


def test_the_share_of_examples_with_a_pair_label_is_told(make_objective):
    for kind in ("nsp", "sop"):
        objective = make_objective(f"--objective.next_sentence={kind}")
        shares = [
            np.mean([example["next_sentence_label"] != IGNORED for example in all_examples(objective, split)])
            for split in ("train", "validation")
        ]
        line = objective.examples.describe_pairs()[0]
        assert f"({kind}): {shares[0]:.0%} of the train examples and {shares[1]:.0%} of the validation" in line
    assert make_objective("--objective.next_sentence=none").examples.describe_pairs() == []


def test_text_that_nothing_can_be_asked_of_is_refused(make_objective, tmp_path: Path):
    """Documents of two sentences: the first stays where it is, and one alone has no order."""
    text = "\n\n".join(f"This is number {number}. It is followed by {number + 1}." for number in range(100))
    (tmp_path / "short.txt").write_text(text, encoding="utf-8")
    short = [f'--data.files=["{tmp_path}/short.txt"]', "--data.document=blank_line", "--tokenizer.vocab_size=100"]
    with pytest.raises(UserError, match="No example of the train split has two whole sentences"):
        make_objective(*short, "--objective.next_sentence=sop")
    assert make_objective(*short).examples.pair_shares["train"] > 0.5


def test_a_run_whose_pairs_followed_other_rules_is_not_resumed(objective, make_objective, monkeypatch):
    monkeypatch.setattr("pretraining.objectives.mlm_nsp.VERSION", 0)
    assert make_objective().examples.fingerprint != objective.examples.fingerprint
    none = make_objective("--objective.next_sentence=none")
    assert none.examples.fingerprint == none.examples.corpus.fingerprint  # its examples are what they were


def test_without_pairs_an_example_is_one_segment(make_objective):
    objective = make_objective("--objective.next_sentence=none")
    assert set(objective.examples.collate([[]], 1).targets) == {"labels"}
    for example in all_examples(objective, "validation"):
        assert not example["token_type_ids"].any()
        assert (example["input_ids"] == objective.examples.tokenizer.sep_token_id).sum() == 1


def test_an_example_is_a_function_of_seed_epoch_and_index(objective, make_objective):
    index = np.array([5, 3, 9])
    first = objective.examples.examples("train", 2, index)
    again = objective.examples.examples("train", 2, index[::-1])[::-1]
    for one, other in zip(first, again, strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in one)
    other_epoch = objective.examples.examples("train", 3, index)
    other_seed = make_objective("--seed=1").examples.examples("train", 2, index)
    for changed in (other_epoch, other_seed):
        assert any(
            not np.array_equal(one["labels"], other["labels"]) for one, other in zip(first, changed, strict=True)
        )


@pytest.mark.parametrize("kind", ["nsp", "sop", "none"])
def test_lengths_are_those_of_the_examples(kind: str, make_objective):
    objective = make_objective(f"--objective.next_sentence={kind}")
    lengths = objective.examples.lengths("train", 1, objective.examples.index("train", 1))
    assert lengths.max() <= 64
    assert lengths.tolist() == [len(example["input_ids"]) for example in all_examples(objective, epoch=1)]


def test_rows_hold_the_examples_and_are_98_percent_full(objective):
    plan = plan_of(objective, "train", 32)
    assert plan.fill >= 0.98
    rows = plan.step(0)
    examples = [objective.examples.examples("train", 0, row) for row in rows]
    batch = objective.examples.collate(examples, plan.sequences_per_row).tensors
    for r, row in enumerate(examples):
        for i, example in enumerate(row):
            at = batch["sequence_ids"][r] == i + 1
            for key in ("input_ids", "token_type_ids", "labels"):
                assert batch[key][r, at].tolist() == example[key].tolist()
            assert batch["position_ids"][r, at].tolist() == list(range(len(example["input_ids"])))
            start = int(batch["sequence_starts"][r, i])
            assert batch["input_ids"][r, start] == objective.examples.tokenizer.cls_token_id
            assert batch["next_sentence_label"][r, i] == example["next_sentence_label"]
        assert (batch["next_sentence_label"][r, len(row) :] == IGNORED).all()
    padding = batch["sequence_ids"] == 0
    assert (batch["labels"][padding] == IGNORED).all()


@pytest.mark.parametrize(("micro_batch", "ranks", "rows"), [(1000, 1, 32), (1000, 2, 16), (16, 1, 16), (5, 1, 5)])
def test_a_micro_batch_is_never_larger_than_the_step(objective, micro_batch: int, ranks: int, rows: int):
    plan = plan_of(objective, "train", 32)
    batches = Steps(objective.examples, "train", 0, plan, micro_batch, 0, ranks)[0, 0.0]
    assert {len(batch.tensors["input_ids"]) for batch in batches} == {rows}


def test_an_empty_row_has_no_targets(objective):
    batch = objective.examples.collate([[], []], 3)
    assert batch.targets == {"labels": 0, "next_sentence_label": 0} and batch.units == 0
    assert all((batch.tensors[name] == IGNORED).all() for name in batch.targets)


def test_a_batch_without_a_pair_label_learns_from_its_masks(objective):
    model = objective.head.build_model(objective.examples.run.model).eval()
    examples = objective.examples.examples("train", 0, np.arange(4))
    for example in examples:
        example["next_sentence_label"] = np.array(IGNORED)
    batch = objective.examples.collate([[example] for example in examples], 1).tensors
    out = model(**batch, num_items_in_batch={"labels": torch.tensor(7), "next_sentence_label": torch.tensor(1)})
    assert torch.isfinite(out.loss) and torch.equal(out.loss, out.mlm_loss)
    sums = objective.scoring.sums(model, batch)
    assert [float(part) for part in sums["nsp_accuracy"]] == [0, 0]


def test_whole_words_are_hidden_whole():
    ids = np.arange(40)
    starts = np.arange(40) % 4 == 0  # words of four tokens
    maskable = np.ones(40, dtype=bool)
    maskable[20:22] = False  # a special token inside what would be one word
    for seed in range(50):
        _, labels = mask_tokens(
            ids, maskable, starts, np.random.default_rng(seed), 0.3, 0.8, 0.1, mask_id=99, replacements=np.array([98])
        )
        hidden = (labels != IGNORED).reshape(10, 4)
        whole = np.delete(hidden, 5, axis=0)
        assert (whole.all(1) | ~whole.any(1)).all()
        assert hidden[5, 2] == hidden[5, 3] and not hidden[5, :2].any()
        assert 1 <= hidden.sum() <= round(0.3 * 38)


def test_evaluation_gives_the_loss_and_accuracy_of_the_batch(objective):
    settings = objective.examples.run
    model = objective.head.build_model(settings.model).eval()
    plan = plan_of(objective, "validation", 8)
    rows = [objective.examples.examples("validation", 0, row) for row in plan.step(0)]
    batch = objective.examples.collate(rows, plan.sequences_per_row).tensors
    with torch.no_grad():
        sums = objective.scoring.sums(model, batch)
        out = model(**{name: value for name, value in batch.items() if name != "logits_to_keep"})
    measures = {name: float(total / count) for name, (total, count) in sums.items()}
    at = batch["labels"] != IGNORED
    right = (out.prediction_logits.argmax(-1) == batch["labels"])[at].float().mean()
    assert measures["mlm_loss"] == pytest.approx(float(out.mlm_loss), rel=1e-5)
    assert measures["nsp_loss"] == pytest.approx(float(out.nsp_loss), rel=1e-5)
    assert measures["mlm_accuracy"] == pytest.approx(float(right), abs=1e-6)


def test_masks_do_not_repeat_across_examples():
    """Neighbouring indices must not share a generator's stream."""
    first = [draws.generator(0, 0, draws.MASK, i).random(4).tobytes() for i in range(1000)]
    assert len(set(first)) == 1000


def by_segments(q, k, v, bounds, _, longest, __, scale, window_size):
    """What torch's variable-length kernel computes (CUDA alone), segment by segment."""
    assert window_size == (-1, -1) and len(bounds) - 1 >= len(set(bounds.tolist())) - 1
    parts = []
    for start, end in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        assert 0 <= end - start <= longest
        x, y, z = (t[start:end].transpose(0, 1) for t in (q, k, v))
        parts.append(((x @ y.transpose(1, 2) * scale).softmax(-1) @ z).transpose(0, 1))
    return torch.cat(parts)


def test_rows_tell_a_maskless_kernel_where_examples_begin(objective, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_segments)
    config = objective.examples.run.model
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    model = objective.head.build_model(config).double()
    plan = plan_of(objective, "train", 8)
    rows = [objective.examples.examples("train", 0, row) for row in [*plan.step(0), plan.step(0)[0][:0]]]
    batch = objective.examples.collate(rows, plan.sequences_per_row).tensors
    assert len(batch["cu_seq_lens_q"]) == 9 * (plan.sequences_per_row + 1) + 1
    found = {}
    for kernel in ("eager", "varlen"):
        model.set_attn_implementation(kernel)
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        found[kernel] = [loss.detach(), *(p.grad.clone() for p in model.parameters())]
    for one, other in zip(found["eager"], found["varlen"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="cu_seq_lens"):
        model(**{name: value for name, value in batch.items() if not name.startswith("cu_seq")})
    ids = batch["input_ids"][:2]
    alone = model(input_ids=ids).prediction_logits  # every row one sequence
    with pytest.raises(ValueError, match="takes no mask"):
        model(input_ids=ids, attention_mask=torch.arange(64)[None].expand(2, -1) < 60)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(alone, model(input_ids=ids).prediction_logits, rtol=1e-9, atol=1e-12)
    config.attention_probs_dropout_prob = 0.1
    with pytest.raises(ValueError, match="no dropout"):
        dropping = objective.head.build_model(config).train()
        dropping.set_attn_implementation("varlen")
        dropping(**batch)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.1


@pytest.mark.parametrize(("phases", "start", "trained"), [([24], 0, 24), ([40, 24], 0, 40), ([24], 48, 48)])
def test_positions_that_were_never_trained_begin_as_copies(phases: list[int], start: int, trained: int, objective):
    """Beltagy 2020, 4.1: over and over; what a phase or `init_from` has trained, and every other weight, stays."""
    examples = copy(objective.examples)
    examples.run = replace(examples.run, trained_positions=start)
    head = type(objective.head)(examples)
    model = head.build_model(examples.run.model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    changed = [examples.run.changed({"objective.sequence_length": length}) for length in phases]
    head.enter_phase(model, [examples.for_phase(settings) for settings in changed])
    table = model.get_position_embeddings().weight
    old = before.pop("bert.embeddings.positions.weight")
    assert torch.equal(table, old[torch.arange(len(old)) % trained]) and not torch.equal(table, old)
    after = model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_a_phase_shares_the_text_and_cuts_it_anew(objective):
    """Nothing is read or tokenised again, and each phase has its own lengths, targets and fingerprint."""
    changes = {"objective.sequence_length": 24, "objective.next_sentence": "none"}
    short = objective.for_phase(objective.examples.run.changed(changes)).examples
    assert short.data["train"].tokens is objective.examples.data["train"].tokens
    assert (
        np.diff(short.data["train"].chunks).max() == 22 and np.diff(objective.examples.data["train"].chunks).max() == 61
    )
    assert not short.pairs and objective.examples.pairs
    assert short.fingerprint != objective.examples.fingerprint
