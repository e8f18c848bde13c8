"""Our greedy and beam search: transformers' tokens, whatever shares the batch."""

import pytest
import torch
from searches import END, PAD, WIDTH, both, sentences
from torch import Tensor

from modeling import decoding, inference
from modeling.convert import to_native

LAYOUTS = [
    {},
    {"norm_position": "pre"},
    {"norm_position": "pre", "position_embedding_type": "learned", "embedding_norm": True},
    {"qkv_bias": False, "scale_embedding": False, "type_vocab_size": 2, "hidden_act": "gelu"},
    {"tie_word_embeddings": False, "decoder_layers": 1},
]
SEARCHES = [
    {},
    {"eos_token_id": [END, 5, 7]},
    {"eos_token_id": None},
    {"synced_gpus": False},  # as transformers' trainer passes it
    *({"num_beams": 4, "early_stopping": early} for early in (True, False, "never")),
    *({"num_beams": 4, "length_penalty": p, "early_stopping": "never"} for p in (-1.0, 0.0, 0.6, 2.0)),
    *({"num_beams": 4, "length_penalty": p} for p in (0.6, 2.0)),
    {"num_beams": 5, "num_return_sequences": 3, "early_stopping": True},
    {"num_beams": 3, "num_return_sequences": 3, "eos_token_id": [END, 5, 7]},
    {"num_beams": 3, "eos_token_id": None},
    {"num_beams": 2, "pad_token_id": 0, "eos_token_id": 5},
]


@pytest.mark.parametrize("most", [4, 24])
@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_tokens_are_marian_s(lively, monkeypatch, search, most):
    model = lively()
    torch.manual_seed(1)
    ours, theirs = both(monkeypatch, model, to_native(model), **sentences(100), **search, max_new_tokens=most)
    assert torch.equal(ours, theirs)
    assert len(ours.unique(dim=0)) > 80 and ours.unique().numel() > 30  # or the test is none
    if search.get("eos_token_id", END) == END:
        ended = (ours == END).any(-1)
        assert ended.any() and (most > 4 or not ended.all())


@pytest.mark.parametrize("beams", [1, 4])
def test_targets_longer_than_the_room_that_caches_start_with(lively, monkeypatch, beams):
    torch.manual_seed(1)
    settings = sentences(20) | {"num_beams": beams, "max_new_tokens": 39, "eos_token_id": 7}
    ours, theirs = both(monkeypatch, lively(), **settings)
    assert torch.equal(ours, theirs) and ours.shape[1] > decoding.ROOM + 1


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("fields", LAYOUTS, ids=str)
def test_tokens_are_transformers_in_every_layout(lively, monkeypatch, fields, beams):
    """Where there is no native form too."""
    torch.manual_seed(1)
    settings = sentences(30) | {"num_beams": beams, "max_new_tokens": 38}
    ours, theirs = both(monkeypatch, lively(**fields), **settings)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("beams", [1, 4])
def test_single_precision_is_as_good(lively, monkeypatch, beams):
    """Equal tokens, or else equally good ones."""
    model = lively()
    torch.manual_seed(1)
    settings = sentences(100) | {"num_beams": beams, "max_new_tokens": 24}
    try:
        ours, theirs = both(monkeypatch, model.float(), to_native(model), **settings)
        if not torch.equal(ours, theirs):
            scores = [score(model, settings, found) for found in (ours, theirs)]
            torch.testing.assert_close(*scores, rtol=0, atol=1e-4)
    finally:
        model.double()


def score(model, batch, found) -> Tensor:
    """Mean log-probability of each target's tokens up to its end."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logprobs = model(**inputs, decoder_input_ids=found[:, :-1]).logits.log_softmax(-1)
    real = found[:, 1:] != PAD
    return (logprobs.gather(2, found[:, 1:, None])[..., 0] * real).sum(1) / real.sum(1)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3, "length_penalty": 0.6, "num_return_sequences": 2}], ids=str)
def test_company_and_side_of_padding_do_not_matter(lively, search):
    model = lively()
    torch.manual_seed(2)
    batch, search = sentences(20), {**search, "max_new_tokens": 20}
    together = model.generate(**batch, **search)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) > 5
    left = {name: torch.stack([*map(torch.roll, value, [WIDTH - n for n in lengths])]) for name, value in batch.items()}
    assert (left["attention_mask"][:, -1] == 1).all()
    assert torch.equal(model.generate(**left, **search), together)
    for ids, n, expected in zip(batch["input_ids"], lengths, together.split(len(together) // 20), strict=True):
        alone = model.generate(ids[None, :n], **search)
        assert torch.equal(alone, expected[:, : alone.shape[1]]) and (expected[:, alone.shape[1] :] == PAD).all()


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_a_step_is_the_whole_model(lively, beams):
    """Cached = computed anew from the first token on: every logit, while beams change places and sentences leave."""
    model = lively()
    torch.manual_seed(3)
    batch = sentences(6)
    memory = model.model.encoder(**batch).last_hidden_state
    decoder = decoding.Decoder(inference.weights_of(model), memory, batch["attention_mask"] == 1, beams)
    prefixes, rows = torch.full((6 * beams, 1), PAD), torch.arange(6)
    for step in range(decoding.ROOM + 2):
        logits = decoder(prefixes[:, -1])
        seen = {name: value[rows].repeat_interleave(beams, 0) for name, value in batch.items()}
        torch.testing.assert_close(logits, model(**seen, decoder_input_ids=prefixes).logits[:, -1].float())
        if beams > 1:
            parents = (torch.randint(beams, (len(rows), beams)) + torch.arange(len(rows))[:, None] * beams).flatten()
            decoder.follow(parents)
            prefixes = prefixes[parents]
        prefixes = torch.cat([prefixes, torch.randint(1, PAD, (len(prefixes), 1))], 1)
        if step in (5, 20):
            stay = torch.tensor([0, 2, 3, 5] if step == 5 else [1, 3])
            decoder.keep(stay)
            prefixes, rows = prefixes.unflatten(0, (-1, beams))[stay].flatten(0, 1), rows[stay]


@pytest.mark.parametrize("beams", [1, 4])
def test_finished_sentences_leave_the_batch(lively, monkeypatch, beams):
    model, sizes = lively(), []
    step = decoding.Decoder.__call__
    monkeypatch.setattr(decoding.Decoder, "__call__", lambda self, ids: sizes.append(len(ids)) or step(self, ids))
    torch.manual_seed(1)
    found = model.generate(**sentences(100), num_beams=beams, max_new_tokens=24)
    assert sizes[0] == 100 * beams and sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 3
    if beams == 1:
        for length, size in enumerate(sizes, 1):
            going_on = int(((found[:, 1:length] == END).sum(1) == 0).sum())
            assert going_on <= size and (size - going_on) * decoding.LEAVE < size


@pytest.mark.parametrize("count", [1, 4, 8])
def test_best_of_is_topk(count):
    torch.manual_seed(0)
    for columns in (40, 10 * decoding.CHUNK, 12 * decoding.CHUNK + 5):
        scores = torch.randn(6, columns)
        scores[1, -count:] += 9.0
        scores[2] = scores[2].round()  # ties
        scores[3, 7] = torch.nan
        top, index = decoding.best_of(scores, count)
        expected, places = scores.topk(count)
        torch.testing.assert_close(top, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(index[[0, 1, 3, 4, 5]], places[[0, 1, 3, 4, 5]])
        torch.testing.assert_close(scores.gather(1, index), top, rtol=0, atol=0, equal_nan=True)


@torch.no_grad()
def test_sources_share_rows(lively, monkeypatch):
    model, sizes = lively(), []
    encoder, weights = model.model.encoder, inference.weights_of(model)
    torch.manual_seed(1)
    batch = sentences(40)
    batch["attention_mask"][:5, 1] = 0  # padding within a source, too
    real = batch["attention_mask"] == 1
    embed = inference.EmbeddingWeights.__call__
    with monkeypatch.context() as patch:
        spy = lambda self, ids, places: sizes.append(ids.numel()) or embed(self, ids, places)  # noqa: E731
        patch.setattr(inference.EmbeddingWeights, "__call__", spy)
        found = inference.encode(weights, batch["input_ids"], real)
    assert sizes[0] < 1.15 * real.sum() and 1.15 * sizes[0] < real.numel()
    expected = encoder(**batch).last_hidden_state
    assert found.shape == expected.shape
    torch.testing.assert_close(found[real], expected[real])
    torch.testing.assert_close(
        inference.encode(weights, batch["input_ids"], None), encoder(batch["input_ids"]).last_hidden_state
    )


@torch.no_grad()
@pytest.mark.parametrize("fields", LAYOUTS, ids=str)
@pytest.mark.parametrize("length", [1, 7, 12])
def test_a_step_of_one_sentence_is_the_whole_model(lively, length, fields):
    """Short sources are folded into the weights."""
    model, source = lively(**fields), torch.randint(1, PAD, (1, length))
    weights = inference.weights_of(model)
    decoder = decoding.Decoder(weights, inference.encode(weights, source, None), None, beams=2)
    assert (decoder.folded is None) == (length == 12)
    targets = torch.randint(1, PAD, (2, 5))
    for step in range(5):
        logits = decoder(targets[:, step])
        expected = model(source.expand(2, -1), decoder_input_ids=targets[:, : step + 1]).logits[:, -1]
        torch.testing.assert_close(logits, expected.float())


@pytest.mark.parametrize("beams", [1, 3])
def test_half_precision(lively, beams):
    """Under autocast, and of a model that is half itself: nearly as good by the model's own scores."""
    model = lively()
    torch.manual_seed(1)
    settings = sentences(30) | {"num_beams": beams, "max_new_tokens": 20}
    expected = score(model, settings, model.generate(**settings)).mean()
    try:
        with torch.autocast("cpu", torch.bfloat16):
            model.float()
            half = [model.generate(**settings)]
        half.append(model.bfloat16().generate(**settings))
    finally:
        model.double()
    for found in half:
        assert score(model, settings, found).mean() > expected - 0.1
