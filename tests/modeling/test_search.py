"""Our greedy and beam search: transformers' tokens, whatever shares the batch."""

import copy
from functools import partial
from types import MethodType

import pytest
import torch
from peft import LoraConfig, get_peft_model
from searches import END, PAD, WIDTH, ours, score, sentences, theirs
from torch import Tensor, nn

from modeling import search as searching
from modeling import search_weights
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
def test_tokens_are_marian_s(lively, search, most):
    model = lively()
    torch.manual_seed(1)
    batch = sentences(100)
    found = ours(model, batch, most, **search)
    assert torch.equal(found, theirs(to_native(model), batch, most, **search))
    assert len(found.unique(dim=0)) > 80 and found.unique().numel() > 30  # or the test is none
    if search.get("eos_token_id", END) == END:
        ended = (found == END).any(-1)
        assert ended.any() and (most > 4 or not ended.all())


@pytest.mark.parametrize("beams", [1, 4])
def test_targets_longer_than_the_room_that_caches_start_with(lively, beams):
    torch.manual_seed(1)
    settings = lively(), sentences(20), 39
    options = {"num_beams": beams, "eos_token_id": 7}
    found = ours(*settings, **options)
    assert torch.equal(found, theirs(*settings, **options)) and found.shape[1] > searching.ROOM + 1


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("fields", LAYOUTS, ids=str)
def test_tokens_are_transformers_in_every_layout(lively, fields, beams):
    """Where there is no native form too."""
    torch.manual_seed(1)
    settings = lively(**fields), sentences(30), 38
    assert torch.equal(ours(*settings, num_beams=beams), theirs(*settings, num_beams=beams))


@pytest.mark.parametrize("beams", [1, 4])
def test_single_precision_is_as_good(lively, beams):
    """Equal tokens, or else equally good ones."""
    model = copy.deepcopy(lively()).float()
    torch.manual_seed(1)
    batch = sentences(100)
    found = ours(model, batch, 24, num_beams=beams), theirs(to_native(model), batch, 24, num_beams=beams)
    if not torch.equal(*found):
        torch.testing.assert_close(*(score(model, batch, targets) for targets in found), rtol=0, atol=1e-4)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3, "length_penalty": 0.6, "num_return_sequences": 2}], ids=str)
def test_company_and_side_of_padding_do_not_matter(lively, search):
    model = lively()
    torch.manual_seed(2)
    batch = sentences(20)
    together = ours(model, batch, 20, **search)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) > 5
    left = {name: torch.stack([*map(torch.roll, value, [WIDTH - n for n in lengths])]) for name, value in batch.items()}
    assert (left["attention_mask"][:, -1] == 1).all()
    assert torch.equal(ours(model, left, 20, **search), together)
    for ids, n, expected in zip(batch["input_ids"], lengths, together.split(len(together) // 20), strict=True):
        alone = ours(model, {"input_ids": ids[None, :n]}, 20, **search)
        assert torch.equal(alone, expected[:, : alone.shape[1]]) and (expected[:, alone.shape[1] :] == PAD).all()


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_a_step_is_the_whole_model(lively, beams):
    """Cached = computed anew from the first token on: every logit, while beams change places and sentences leave."""
    model = lively()
    torch.manual_seed(3)
    batch = sentences(6)
    memory = model.model.encoder(**batch).last_hidden_state
    decoder = searching.Decoder(search_weights.weights_of(model), memory, batch["attention_mask"] == 1, beams)
    prefixes, rows = torch.full((6 * beams, 1), PAD), torch.arange(6)
    for step in range(searching.ROOM + 2):
        logits = decoder(prefixes[:, -1])
        seen = {name: value[rows].repeat_interleave(beams, 0) for name, value in batch.items()}
        torch.testing.assert_close(
            logits, model(**seen, decoder_input_ids=prefixes, use_cache=False).logits[:, -1].float()
        )
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
    step = searching.Decoder.__call__
    monkeypatch.setattr(searching.Decoder, "__call__", lambda self, ids: sizes.append(len(ids)) or step(self, ids))
    torch.manual_seed(1)
    found = ours(model, sentences(100), 24, num_beams=beams)
    assert sizes[0] == 100 * beams and sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 3
    if beams == 1:
        for length, size in enumerate(sizes, 1):
            going_on = int(((found[:, 1:length] == END).sum(1) == 0).sum())
            assert going_on <= size and (size - going_on) * searching.LEAVE < size


@pytest.mark.parametrize("count", [1, 4, 8])
def test_best_of_is_topk(count):
    torch.manual_seed(0)
    for columns in (40, 10 * searching.CHUNK, 12 * searching.CHUNK + 5):
        scores = torch.randn(6, columns)
        scores[1, -count:] += 9.0
        scores[2] = scores[2].round()  # ties
        scores[3, 7] = torch.nan
        top, index = searching.best_of(scores, count)
        expected, places = scores.topk(count)
        torch.testing.assert_close(top, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(index[[0, 1, 3, 4, 5]], places[[0, 1, 3, 4, 5]])
        torch.testing.assert_close(scores.gather(1, index), top, rtol=0, atol=0, equal_nan=True)


@torch.no_grad()
def test_sources_share_rows(lively, monkeypatch):
    model, sizes = lively(), []
    encoder, weights = model.model.encoder, search_weights.weights_of(model)
    torch.manual_seed(1)
    batch = sentences(40)
    batch["attention_mask"][:5, 1] = 0  # padding within a source, too
    real = batch["attention_mask"] == 1
    embed = search_weights.EmbeddingWeights.__call__
    with monkeypatch.context() as patch:
        spy = lambda self, ids, places: sizes.append(ids.numel()) or embed(self, ids, places)  # noqa: E731
        patch.setattr(search_weights.EmbeddingWeights, "__call__", spy)
        found = search_weights.encode(weights, batch["input_ids"], real)
    assert sizes[0] < 1.15 * real.sum() and 1.15 * sizes[0] < real.numel()
    expected = encoder(**batch).last_hidden_state
    assert found.shape == expected.shape
    torch.testing.assert_close(found[real], expected[real])
    torch.testing.assert_close(
        search_weights.encode(weights, batch["input_ids"], None), encoder(batch["input_ids"]).last_hidden_state
    )


@torch.no_grad()
@pytest.mark.parametrize("fields", LAYOUTS, ids=str)
@pytest.mark.parametrize("length", [1, 7, 12])
def test_a_step_of_one_sentence_is_the_whole_model(lively, length, fields):
    """Short sources are folded into the weights."""
    model, source = lively(**fields), torch.randint(1, PAD, (1, length))
    weights = search_weights.weights_of(model)
    decoder = searching.Decoder(weights, search_weights.encode(weights, source, None), None, beams=2)
    assert (decoder.folded is None) == (length == 12)
    targets = torch.randint(1, PAD, (2, 5))
    for step in range(5):
        logits = decoder(targets[:, step])
        expected = model(source.expand(2, -1), decoder_input_ids=targets[:, : step + 1], use_cache=False).logits[:, -1]
        torch.testing.assert_close(logits, expected.float())


@pytest.mark.parametrize("beams", [1, 3])
def test_half_precision(lively, beams):
    """Under autocast, and of a model that is half itself: nearly as good by the model's own scores."""
    model = lively()
    torch.manual_seed(1)
    batch = sentences(30)
    expected = score(model, batch, ours(model, batch, 20, num_beams=beams)).mean()
    single = copy.deepcopy(model).float()
    with torch.autocast("cpu", torch.bfloat16):
        search = searching.Search(single)
    half = [search(**batch, max_length=21, num_beams=beams)]  # it computes as when it was made
    half.append(ours(single.bfloat16(), batch, 20, num_beams=beams))
    for found in half:
        assert score(model, batch, found).mean() > expected - 0.1


# However the model is wrapped


def with_onednn(model) -> None:
    """As `train.linear: onednn` does, in the dtype at hand."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.forward = MethodType(lambda self, x: nn.functional.linear(x, self.weight, self.bias), module)


WRAPS = {
    "a forward on every matrix": with_onednn,
    "a forward on the model": lambda model: setattr(model, "forward", partial(type(model).forward, model)),
    "gradient checkpointing": lambda model: model.activation_checkpointing_enable(),
    "compiled": lambda model: model.compile(backend="eager"),
    "a hook": lambda model: model.model.decoder.stack.blocks[0].register_forward_hook(lambda *args: None),
    "training, with dropout": lambda model: model.train(),
    "attentions recorded": lambda model: model(**sentences(1), labels=torch.ones(1, 2).long(), output_attentions=True),
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_wraps_change_nothing(lively, wrap):
    model = copy.deepcopy(lively())
    torch.manual_seed(1)
    batch = sentences(20)
    expected = ours(model, batch, 10)
    WRAPS[wrap](model)
    assert torch.equal(ours(model, batch, 10), expected)


def test_moving_averages_are_searched(lively):
    averaged = torch.optim.swa_utils.AveragedModel(lively())
    torch.manual_seed(1)
    batch = sentences(20)
    assert torch.equal(ours(averaged.module, batch, 10), ours(lively(), batch, 10))


def test_a_search_is_of_the_weights_that_it_was_made_of(lively):
    model = copy.deepcopy(lively())
    torch.manual_seed(1)
    batch = sentences(20)
    search = searching.Search(model)
    before = search(**batch, max_length=11)
    with torch.no_grad():
        model.model.decoder.stack.blocks[0].feed_forward.down.weight.neg_()
    assert torch.equal(search(**batch, max_length=11), before)
    after = searching.Search(model)(**batch, max_length=11)
    assert torch.equal(after, theirs(model, batch, 10)) and not torch.equal(after, before)


class Adapted(nn.Module):
    """A linear layer and what is added to it, as adapters wrap them: without parameters of its own."""

    def __init__(self, inner: nn.Linear):
        super().__init__()
        self.inner = inner

    weight = property(lambda self: self.inner.weight)
    bias = property(lambda self: self.inner.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).flip(-1)


def adapt(side: str):
    def change(model) -> None:
        attention = getattr(model.model, side).stack.blocks[0].attention
        attention.query = Adapted(attention.query)

    return change


def decoder_block(model):
    return model.model.decoder.stack.blocks[0]


SURGERY = {
    "an adapter in the encoder": adapt("encoder"),
    "an adapter in the decoder": adapt("decoder"),
    "an activation": lambda model: setattr(decoder_block(model).feed_forward, "activation", nn.Tanh()),
    "no matrix": lambda model: setattr(model.model.encoder.stack.blocks[0].attention, "output", nn.Identity()),
    "another feed-forward": lambda model: setattr(decoder_block(model), "feed_forward", nn.Sequential(nn.Tanh())),
    "no positions": lambda model: setattr(model.model.encoder.embeddings, "positions", nn.Identity()),
    "one block more": lambda model: model.model.decoder.stack.blocks.append(copy.deepcopy(decoder_block(model))),
    "a parametrised matrix": lambda model: nn.utils.parametrizations.weight_norm(decoder_block(model).attention.query),
    "another kind of weight": lambda model: setattr(
        model.lm_head, "weight", type("Packed", (nn.Parameter,), {})(model.lm_head.weight.data)
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", SURGERY)
def test_a_model_of_other_layers_is_refused(lively, change):
    """Reading their weights alone would be another model."""
    model = copy.deepcopy(lively())
    SURGERY[change](model)
    with pytest.raises(ValueError, match="a search reads plain weights"):
        searching.Search(model)


@pytest.mark.filterwarnings("ignore")
def test_quantised_and_adapted_models_are_refused(lively):
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(lively()).float(), {nn.Linear})
    adapted = get_peft_model(copy.deepcopy(lively()), LoraConfig(target_modules=["query", "value"]))
    for model in (quantised, adapted.base_model.model):
        with pytest.raises(ValueError, match="a search reads plain weights"):
            searching.Search(model)


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 1},
        {"num_return_sequences": 2},
        {"num_beams": 2, "num_return_sequences": 3},
        {"num_beams": 2, "early_stopping": "soon"},
        {"max_length": 60, "input_ids": torch.ones(1, 41, dtype=torch.long)},
    ],
    ids=str,
)
def test_what_cannot_be_searched_is_refused(lively, options):
    with pytest.raises(ValueError):
        searching.Search(lively())(**{"input_ids": torch.ones(1, 3, dtype=torch.long), "max_length": 9} | options)


def test_an_option_that_it_does_not_know_is_refused(lively):
    with pytest.raises(TypeError, match="repetition_penalty"):
        searching.Search(lively())(torch.ones(1, 3, dtype=torch.long), max_length=9, repetition_penalty=2.0)
