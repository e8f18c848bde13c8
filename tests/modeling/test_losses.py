"""What a loss is divided by: micro-batches, however cut, add up to the loss and the gradients of the whole batch."""

import pytest
import torch
from compare import DECODER, close, gradients, some
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import ModelOutput
from transformers.trainer_pt_utils import LabelSmoother

from modeling import KeelBertConfig, KeelViTConfig
from modeling.losses import grouped_loss
from modeling.seq2seq import CACHE
from modeling.vit_masked import patch_statistics

SIZE, TOKENS = 8, 6  # examples in the batch, tokens in an example
CUTS = [1, 2, 5]  # examples in each micro-batch


def inputs(head: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    if "ViT" in head:
        return {"pixel_values": torch.rand(SIZE, 3, 8, 8, dtype=torch.float64)}
    shape = (SIZE, 3, TOKENS) if "MultipleChoice" in head else (SIZE, TOKENS)
    return {"input_ids": torch.randint(2, 39, shape)}


WEIGHTS = [0.5, 3.0, 0.0, 1.25]
WEIGHTED = {"num_labels": 4, "class_weights": WEIGHTS, "label_smoothing": 0.1}

torch.manual_seed(0)
CASES = {  # class, fields of its configuration, its targets
    "masked tokens": ("KeelBertForMaskedLM", {}, {"labels": some(40, SIZE, TOKENS)}),
    "pretraining": (
        "KeelBertForPreTraining",
        {},
        {"labels": some(40, SIZE, TOKENS), "next_sentence_label": some(2, SIZE)},
    ),
    "next sentence": ("KeelBertForNextSentencePrediction", {}, {"labels": some(2, SIZE)}),
    "classes": ("KeelBertForSequenceClassification", {"num_labels": 4}, {"labels": some(4, SIZE)}),
    "several classes": (
        "KeelBertForSequenceClassification",
        {"num_labels": 4},
        {"labels": torch.rand(SIZE, 4).round()},
    ),
    "regression": ("KeelBertForSequenceClassification", {"num_labels": 1}, {"labels": torch.rand(SIZE)}),
    "tokens": ("KeelBertForTokenClassification", {"num_labels": 4}, {"labels": some(4, SIZE, TOKENS)}),
    "answers": (
        "KeelBertForQuestionAnswering",
        {},
        {"start_positions": some(TOKENS, SIZE), "end_positions": some(TOKENS, SIZE)},
    ),
    "choices": ("KeelBertForMultipleChoice", {}, {"labels": some(3, SIZE)}),
    "translation": ("KeelSeq2SeqForConditionalGeneration", {}, {"labels": some(39, SIZE, TOKENS)}),
    "smoothed": ("KeelSeq2SeqForConditionalGeneration", {"label_smoothing": 0.1}, {"labels": some(39, SIZE, TOKENS)}),
    "images": ("KeelViTForImageClassification", {"num_labels": 4}, {"labels": some(4, SIZE)}),
    "smoothed images": (
        "KeelViTForImageClassification",
        {"num_labels": 4, "label_smoothing": 0.1},
        {"labels": some(4, SIZE)},
    ),
    "mixed images": (
        "KeelViTForImageClassification",
        {"num_labels": 4, "label_smoothing": 0.1},
        {
            "labels": some(4, SIZE),
            "partner_labels": torch.randint(4, (SIZE,)),
            "partner_weight": torch.rand(SIZE),
        },
    ),
    "weighted classes": ("KeelBertForSequenceClassification", WEIGHTED, {"labels": some(4, SIZE)}),
    "weighted tokens": ("KeelBertForTokenClassification", WEIGHTED, {"labels": some(4, SIZE, TOKENS)}),
    "weighted images": ("KeelViTForImageClassification", WEIGHTED, {"labels": some(4, SIZE)}),
    "weighted several classes": (
        "KeelBertForSequenceClassification",
        {"num_labels": 4, "class_weights": WEIGHTS},
        {"labels": torch.rand(SIZE, 4).round()},
    ),
    "weighted mixed images": (
        "KeelViTForImageClassification",
        WEIGHTED,
        {
            "labels": some(4, SIZE),
            "partner_labels": torch.randint(4, (SIZE,)),
            "partner_weight": torch.rand(SIZE),
        },
    ),
    "patches": ("KeelViTForMaskedImageModeling", {}, {"bool_masked_pos": torch.rand(SIZE, 16) < 0.5}),
    "decoded patches": (
        "KeelViTForMaskedImageModeling",
        DECODER | {"reconstruction_target": "normalized_pixels"},
        {"bool_masked_pos": torch.rand(SIZE, 16).argsort(-1) < 12},
    ),
    "colors": (
        "KeelViTForMaskedImageModeling",
        {"reconstruction_target": "mean_color"},
        {"labels": some(512, SIZE, 16)},
    ),
}
ONE_KIND = [name for name, (_, _, targets) in CASES.items() if list(targets) == ["labels"]]


def prepared(tiny, case: str):
    """The model in training mode, the batch with its targets, and how many targets it has."""
    head, fields, targets = CASES[case]
    count = {
        name: value.sum() if value.dtype == torch.bool else (value != -100).sum() for name, value in targets.items()
    }
    return tiny(head, **fields).train(), inputs(head) | targets, count


def cut(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Micro-batches with unequal numbers of targets."""
    pieces = {name: value.split(CUTS) for name, value in batch.items()}
    return [{name: pieces[name][index] for name in pieces} for index in range(len(CUTS))]


@pytest.mark.parametrize("case", CASES)
def test_counted_micro_batches_add_up_to_the_batch(tiny, case):
    model, batch, count = prepared(tiny, case)
    micro = [piece | {"num_items_in_batch": count} for piece in cut(batch)]
    close(gradients(model, micro), gradients(model, [batch]))


@pytest.mark.parametrize("case", ONE_KIND)
def test_one_number_counts_labels(tiny, case):
    model, batch, count = prepared(tiny, case)
    micro = [piece | {"num_items_in_batch": count["labels"]} for piece in cut(batch)]
    close(gradients(model, micro), gradients(model, [batch]))


def test_one_number_inflates_no_other_loss(tiny):
    model, batch, count = prepared(tiny, "pretraining")
    whole, pieces = model(**batch), cut(batch)
    parts = [model(**piece, num_items_in_batch=count["labels"]) for piece in pieces]
    close(sum(part.mlm_loss for part in parts), whole.mlm_loss)
    means = torch.stack([model(**piece).nsp_loss for piece in pieces])
    shares = torch.stack([(piece["labels"] != -100).sum() for piece in pieces]).double() / count["labels"]
    close(torch.stack([part.nsp_loss for part in parts]), means * shares)


def expected(case: str, output: ModelOutput, batch: dict[str, Tensor]) -> Tensor:
    """The mean over the batch's targets, by torch's own losses."""
    if case == "pretraining":
        masked = cross_entropy(output.prediction_logits.flatten(0, 1), batch["labels"].flatten())
        return masked + cross_entropy(output.seq_relationship_logits, batch["next_sentence_label"])
    if case == "answers":
        start = cross_entropy(output.start_logits, batch["start_positions"])
        return (start + cross_entropy(output.end_logits, batch["end_positions"])) / 2
    weight = torch.tensor(WEIGHTS).double() if "weighted" in case else None
    if case in ("several classes", "weighted several classes"):
        return binary_cross_entropy_with_logits(output.logits, batch["labels"].double(), pos_weight=weight)
    if case == "regression":
        return mse_loss(output.logits[:, 0], batch["labels"].double())
    if "patches" in case:
        shown = batch["bool_masked_pos"].view(SIZE, 4, 1, 4, 1).expand(-1, -1, 2, -1, 2).reshape(SIZE, 1, 8, 8)
        shown = shown.expand(-1, 3, -1, -1)
        if case == "patches":
            return (output.reconstruction - batch["pixel_values"]).abs()[shown].mean()
        mean, std = patch_statistics(batch["pixel_values"], 2)
        return (output.reconstruction * std + mean - batch["pixel_values"]).div(std).square()[shown].mean()
    logits = output.reconstruction if case == "colors" else output.logits
    logits, labels = logits.flatten(0, -2), batch["labels"].flatten()
    if case == "smoothed":  # padding, the last entry of the vocabulary, is never a target
        return cross_entropy(logits[:, :-1], labels, label_smoothing=0.1)
    if case == "smoothed images":
        return cross_entropy(logits, labels, label_smoothing=0.1)
    if case in ("mixed images", "weighted mixed images"):  # as one target, a distribution
        share, real = batch["partner_weight"].double()[:, None], labels != -100
        own, partner = (torch.eye(4).double()[x.clamp(min=0)] for x in (labels, batch["partner_labels"]))
        both = ((1 - share) * own + share * partner)[real]
        return cross_entropy(logits[real], both, weight=weight, label_smoothing=0.1)
    if weight is not None:  # torch's mean would divide by the sum of the labels' weights
        total = cross_entropy(logits, labels, weight=weight, label_smoothing=0.1, reduction="sum")
        return total / (labels != -100).sum()
    return cross_entropy(logits, labels)


@pytest.mark.parametrize("case", CASES)
def test_uncounted_loss_is_the_mean_over_its_targets(tiny, case):
    model, batch, _ = prepared(tiny, case)
    output = model(**batch)
    close(output.loss, expected(case, output, batch))
    assert CACHE not in output  # training keeps no cache


@pytest.mark.parametrize("case", CASES)
def test_no_targets_no_gradient(tiny, case):
    model, batch, count = prepared(tiny, case)
    empty = {name: torch.full_like(batch[name], 0 if "patches" in case else -100) for name in count}
    loss, grads = gradients(model, [batch | empty | {"num_items_in_batch": count}])
    assert loss == 0 and not any(grad.any() for grad in grads.values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("case", ["pretraining", "translation", "images"])
def test_activation_checkpointing_changes_nothing(tiny, case, dropout):
    head, fields, targets = CASES[case]
    model, batch = tiny(head, **fields, hidden_dropout_prob=dropout).train(), inputs(head) | targets
    torch.manual_seed(0)
    plain = gradients(model, [batch])
    model.activation_checkpointing_enable()
    torch.manual_seed(0)
    close(plain, gradients(model, [batch]))


@pytest.mark.parametrize("case", ["masked tokens", "translation"])
def test_trainer_accumulates_exactly(tiny, case, tmp_path):
    """transformers' own models multiply gradients by the number of micro-batches (transformers#47688)."""

    def weights(accumulated: int) -> dict[str, Tensor]:
        model, batch, _ = prepared(tiny, case)
        optimizer = SGD(model.parameters(), lr=0.1)  # unlike Adam it shows the scale of a gradient
        Trainer(
            model,
            TrainingArguments(
                str(tmp_path),
                per_device_train_batch_size=SIZE // 2 // accumulated,
                gradient_accumulation_steps=accumulated,
                num_train_epochs=1,
                max_grad_norm=0,
                use_cpu=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=[{name: value[index] for name, value in batch.items()} for index in range(SIZE)],
            optimizers=(optimizer, LambdaLR(optimizer, lambda step: 1.0)),
        ).train()
        return dict(model.named_parameters())

    close(weights(accumulated=4), weights(accumulated=1))


def test_mixed_labels_are_classes(tiny):
    """Of mixed images with label smoothing in use: none. Of other problems: refused."""
    model, batch, _ = prepared(tiny, "mixed images")
    plain = {name: batch[name] for name in ("pixel_values", "labels")}
    close(model.eval()(**plain).loss, cross_entropy(model(**plain).logits, batch["labels"]))
    weightless = batch | {"partner_weight": torch.zeros(SIZE)}
    close(model.train()(**weightless).loss, model(**plain).loss)
    with pytest.raises(ValueError, match="go together"):
        model(**plain, partner_labels=batch["partner_labels"])
    with pytest.raises(ValueError, match="problem_type is multi_label_classification"):
        model(**batch | {"labels": torch.rand(SIZE, 4).round()})


@pytest.mark.parametrize("counted", [None, 40])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_of_padding_are_no_targets(tiny, smoothing, counted):
    model = tiny("KeelSeq2SeqForConditionalGeneration", label_smoothing=smoothing).train()
    batch = inputs("translation") | {"labels": some(39, SIZE, TOKENS)}
    padded = batch["labels"].masked_fill(batch["labels"] == -100, model.config.pad_token_id)
    expected = gradients(model, [batch])
    count = None if counted is None else padded.numel()  # as `Trainer` counts them
    close(gradients(model, [batch | {"labels": padded, "num_items_in_batch": count}]), expected)


@pytest.mark.parametrize("loss", ["LabelSmoother", "torch"])
def test_padding_is_in_no_mean_of_a_loss_of_somebody_elses(tiny, loss):
    """Trainer's `label_smoothing_factor`: gradients as if padding were no entry, a value off by 20 smoothing / V."""
    labels, batch = some(39, SIZE, TOKENS), inputs("translation")

    def smoothed(model, mean_over: int) -> Tensor:
        start = model.prepare_decoder_input_ids_from_labels(labels)
        output = model(**batch, decoder_input_ids=start)
        if loss == "LabelSmoother" and mean_over == 40:
            return LabelSmoother(0.1)(output, labels)
        epsilon = 0.1 * (mean_over if mean_over == 40 else 39) / 40  # a fortieth of the smoothing is padding's
        return cross_entropy(output.logits[..., :mean_over].flatten(0, 1), labels.flatten(), label_smoothing=epsilon)

    found, expected = (tiny("KeelSeq2SeqForConditionalGeneration").train() for _ in range(2))
    values = smoothed(found, 40), smoothed(expected, 39)
    for value in values:
        value.backward()
    assert 0 < values[0] - values[1] < 21 * 0.1 / 40
    for one, two in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-6, atol=1e-3)
    assert not found.lm_head.weight.grad[39].any()


# Softmaxes over groups of scores

GROUPS = torch.tensor([[1, 1, 2, 2, 2, 0], [3, 1, 3, 1, 0, 3], [0] * 6])  # three rows of six scores
PLACES = torch.tensor([[1, 4, -100], [3, -100, 0], [-100] * 3])  # the right member of each of three groups


@pytest.mark.parametrize("counted", [False, True])
def test_grouped_loss_is_cross_entropy_in_each_group(counted):
    torch.manual_seed(0)
    scores = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    losses = []
    for row, group in (PLACES != -100).nonzero().tolist():
        inside = (GROUPS[row] == group + 1).nonzero()[:, 0]  # places of its members
        index = (inside == PLACES[row, group]).nonzero()[0]
        losses.append(cross_entropy(scores[row, inside][None], index))
    expected = torch.stack(losses).sum() / (10 if counted else len(losses))
    found = grouped_loss(scores, GROUPS, PLACES, "labels", {"labels": 10} if counted else None)
    close(found, expected)
    close(torch.autograd.grad(found, scores), torch.autograd.grad(expected, scores))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_grouped_loss_of_half_precision_is_that_of_float32(dtype):
    scores = (4 * torch.randn(3, 6)).to(dtype)
    close(*(grouped_loss(x, GROUPS, PLACES, "labels", None) for x in (scores, scores.float())))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("places", [PLACES, torch.full((3, 3), -100)])
def test_grouped_loss_has_no_nan_where_a_group_has_no_member(places):
    scores = torch.randn(3, 6, requires_grad=True)
    with torch.autograd.detect_anomaly(check_nan=True):
        loss = grouped_loss(scores, GROUPS, places, "labels", None)
        loss.backward()
    assert loss.isfinite() and scores.grad is not None and scores.grad.isfinite().all()
    assert bool(scores.grad.any()) == bool((places != -100).any())


def test_grouped_loss_is_infinite_where_the_right_one_is_no_member():
    places = PLACES.where(PLACES != 4, 0)
    assert grouped_loss(torch.randn(3, 6), GROUPS, places, "labels", None).isposinf()


# Weights of classes


@pytest.mark.parametrize("case", [name for name in CASES if "weighted" in name and "mixed" not in name])
def test_evaluation_knows_no_weights(tiny, case):
    head, fields, targets = CASES[case]
    batch = inputs(head) | targets
    plain = tiny(head, num_labels=4)
    close(tiny(head, **fields)(**batch).loss, plain(**batch).loss)


@pytest.mark.parametrize("config", [KeelBertConfig, KeelViTConfig])
def test_weights_that_do_not_suit_the_classes_are_refused(config):
    assert config(num_labels=3, class_weights=[1, 2.5, 0]).class_weights == [1, 2.5, 0]
    for fields, weights, message in (
        ({"num_labels": 3}, [1.0, 2.0], "2 numbers for 3 classes"),
        ({"num_labels": 1}, [1.0], "regression has none"),
        ({"num_labels": 2, "problem_type": "regression"}, [1.0, 2.0], "regression has none"),
        ({}, [1.0, -1.0], "at least 0"),
        ({}, [1.0, float("nan")], "at least 0 and finite"),
    ):
        with pytest.raises(ValueError, match=message):
            config(**fields, class_weights=weights)
