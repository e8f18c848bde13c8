"""Our greedy and beam search: transformers' tokens, whatever shares the batch; and what is left to transformers."""

import copy
import gc
import pickle
import weakref
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList, TemperatureLogitsWarper
from transformers.generation import GenerationMixin, MaxLengthCriteria
from transformers.modeling_outputs import BaseModelOutput

from modeling import KeelSeq2SeqConfig, KeelSeq2SeqForConditionalGeneration, decoding, generation, inference
from modeling.convert import to_native

END, PAD, WIDTH = 0, 39, 12
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "encoder_layers": 2, "decoder_layers": 2}
IDS = {"vocab_size": 40, "eos_token_id": END, "pad_token_id": PAD, "decoder_start_token_id": PAD}
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


def sentences(count: int) -> dict[str, Tensor]:
    """Of 2 to 12 random tokens, padded on the right."""
    lengths = torch.randint(2, WIDTH + 1, (count,))
    mask = (torch.arange(WIDTH) < lengths[:, None]).long()
    return {"input_ids": torch.randint(1, PAD, mask.shape).where(mask == 1, PAD), "attention_mask": mask}


@pytest.fixture(scope="module")
def lively():
    """`lively(**fields)`: a model in float64 that has learnt a little of copying its source: it varies, and it ends."""
    built: dict[str, KeelSeq2SeqForConditionalGeneration] = {}
    fixed = {"hidden_dropout_prob": 0.0, "max_position_embeddings": 40}

    def build(**fields) -> KeelSeq2SeqForConditionalGeneration:
        if str(fields) not in built:
            torch.manual_seed(0)
            model = KeelSeq2SeqForConditionalGeneration(KeelSeq2SeqConfig(**{**SIZES, **IDS, **fixed, **fields}))
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            for _ in range(120):
                batch = sentences(32)
                labels = batch["input_ids"].where(batch["attention_mask"] == 1, -100)
                labels = nn.functional.pad(labels, (0, 1), value=-100)
                labels[torch.arange(32), batch["attention_mask"].sum(1)] = END
                model(**batch, labels=labels).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            built[str(fields)] = model.double().eval()
        return built[str(fields)]

    return build


@contextmanager
def only(monkeypatch, theirs: bool):
    """Whoever's turn it is not may not search."""

    def refuse(*args, **kwargs):
        raise AssertionError("the wrong search")

    searches = (
        ((generation, "Decoder"),) if theirs else ((GenerationMixin, "_sample"), (GenerationMixin, "_beam_search"))
    )
    with monkeypatch.context() as patch:
        for owner, name in searches:
            patch.setattr(owner, name, refuse)
        yield


def both(monkeypatch, model, theirs=None, **settings) -> tuple:
    """What our search finds, and what transformers' finds with the same model or with `theirs`."""
    with only(monkeypatch, theirs=False):
        ours = model.generate(**settings)
    with only(monkeypatch, theirs=True):
        return ours, GenerationMixin.generate(theirs or model, **settings)


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


def negate(weight: Tensor) -> None:
    with torch.no_grad():
        weight.neg_()


def a_fused_step(model) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    model(**sentences(4), labels=torch.ones(4, 3, dtype=torch.long)).loss.backward()
    optimizer.step()


def a_few_numbers(model) -> None:
    model.lm_head.weight.data[1:20] = 0.0
    model.train()
    model.eval()


CHANGES = {
    "in place": lambda model: negate(model.model.decoder.stack.blocks[0].feed_forward.down.weight),
    "other memory": lambda model: setattr(model.lm_head.weight, "data", model.lm_head.weight.data.flip(1)),
    "another parameter": lambda model: setattr(
        model.model.decoder.stack.blocks[1].cross_attention.value, "weight", nn.Parameter(torch.randn(32, 32).double())
    ),
    "a buffer": lambda model: negate(model.final_logits_bias),
    "loaded": lambda model: model.load_state_dict({name: x.flip(0) for name, x in model.state_dict().items()}),
    "dtype": lambda model: negate(model.bfloat16().double().lm_head.weight),
    "a fused step": a_fused_step,
    "through .data": lambda model: model.model.encoder.stack.blocks[0].attention.value.weight.data.neg_(),
    "a few numbers through .data": a_few_numbers,
    "an activation": lambda model: setattr(model.model.decoder.stack.blocks[0].feed_forward, "activation", nn.Tanh()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_are_kept_for_steps_are_those_of_now(lively, change):
    model = copy.deepcopy(lively())
    torch.manual_seed(1)
    settings = sentences(20) | {"max_new_tokens": 10}
    before = model.generate(**settings)
    kept = model.kept_weights
    model.eval().generate(**settings)
    assert model.kept_weights is kept is not None
    CHANGES[change](model)
    after = model.generate(**settings)
    assert torch.equal(after, GenerationMixin.generate(model, **settings, renormalize_logits=True))
    assert not torch.equal(after, before)


def test_weights_are_not_kept_longer_than_they_serve(lively):
    model, batch = copy.deepcopy(lively()), sentences(2)
    for drop in (model.train, model.float, torch.compile(model).train):
        model.eval().generate(**batch, max_new_tokens=4)
        assert model.kept_weights is not None
        drop()
        assert model.kept_weights is None
    model.eval().generate(**batch, max_new_tokens=4)
    assert copy.deepcopy(model).kept_weights is None
    model.model.encoder.owner = [model]  # a circle, as hooks make them
    gone = weakref.ref(model)
    del model, drop
    gc.collect()
    assert gone() is None
    with torch.inference_mode():  # whose tensors do not tell when they change
        born = KeelSeq2SeqForConditionalGeneration(lively().config).eval()
        assert born.generate(**batch, max_new_tokens=4).shape[0] == 2 and born.kept_weights is None


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
def test_sources_share_rows(lively):
    model, sizes = lively(), []
    encoder, weights = model.model.encoder, inference.weights_of(model)
    torch.manual_seed(1)
    batch = sentences(40)
    batch["attention_mask"][:5, 1] = 0  # padding within a source, too
    real = batch["attention_mask"] == 1
    hook = encoder.embeddings.register_forward_hook(lambda module, args, output: sizes.append(output[..., 0].numel()))
    try:
        found = inference.encode(weights, batch["input_ids"], real)
    finally:
        hook.remove()
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


# What is left to transformers


OTHERS = [
    {"do_sample": True},
    {"do_sample": True, "num_beams": 2, "temperature": 0.7},
    {"min_length": 6},
    {"min_new_tokens": 6, "num_beams": 2},
    {"repetition_penalty": 1.4},
    {"no_repeat_ngram_size": 1, "num_beams": 2},
    {"encoder_no_repeat_ngram_size": 1},
    {"bad_words_ids": [[3], [4]]},
    {"suppress_tokens": [3, 4]},
    {"begin_suppress_tokens": [3, 4]},
    {"forced_bos_token_id": 7, "num_beams": 2},
    {"forced_eos_token_id": 0},
    {"exponential_decay_length_penalty": (2, 1.5), "num_beams": 2},
    {"sequence_bias": {(3,): 5.0}},
    {"renormalize_logits": True, "num_beams": 2},
    {"use_cache": False},
    {"cache_implementation": "static"},
    {"decoder_input_ids": torch.full((8, 2), 7)},
    {"decoder_start_token_id": [[7]] * 8},
    {"max_time": 60.0},
    {"prefix_allowed_tokens_fn": lambda row, ids: [0, 3, 4, 5]},
    {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(4)])},
    {"logits_processor": LogitsProcessorList([TemperatureLogitsWarper(2.0)]), "num_beams": 2},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_every_other_option_is_transformers(lively, monkeypatch, options):
    model = lively()
    torch.manual_seed(1)
    settings = sentences(8) | {"max_new_tokens": 10} | options
    with only(monkeypatch, theirs=True):
        torch.manual_seed(4)
        found = model.generate(**settings)
    torch.manual_seed(4)
    assert torch.equal(found, GenerationMixin.generate(model, **settings))


def test_outputs_by_name_are_transformers(lively, monkeypatch):
    torch.manual_seed(1)
    settings = sentences(3) | {"max_new_tokens": 10, "return_dict_in_generate": True, "num_beams": 2}
    with only(monkeypatch, theirs=True):
        found = lively().generate(**settings, output_scores=True, output_attentions=True)
    assert found.sequences_scores.shape == (3,) and found.past_key_values is not None
    torch.manual_seed(1)
    with only(monkeypatch, theirs=False):  # the hooks that recorded the attentions are idle now
        assert torch.equal(lively().generate(**sentences(3), max_new_tokens=10, num_beams=2), found.sequences)


def test_memory_that_is_given_is_transformers(lively, monkeypatch):
    model = lively()
    torch.manual_seed(1)
    batch = sentences(4)
    memory = BaseModelOutput(model.model.encoder(**batch).last_hidden_state)
    with only(monkeypatch, theirs=True):
        found = model.generate(encoder_outputs=memory, attention_mask=batch["attention_mask"], max_new_tokens=10)
    assert torch.equal(found, model.generate(**batch, max_new_tokens=10))


def test_what_changes_the_modules_is_transformers(lively, monkeypatch):
    """A hook sees every step, a layer of another kind is used, and dropout drops."""
    model = lively()
    torch.manual_seed(1)
    settings = sentences(4) | {"max_new_tokens": 6}
    calls, layer = [], model.model.decoder.stack.blocks[0]
    hook = layer.register_forward_hook(lambda *args: calls.append(1))
    with only(monkeypatch, theirs=True):
        assert model.generate(**settings).shape[1] == len(calls) + 1
    hook.remove()
    changed = torch.nn.utils.parametrizations.weight_norm(layer.attention.query)
    with only(monkeypatch, theirs=True):
        model.generate(**settings)
    torch.nn.utils.parametrize.remove_parametrizations(changed, "weight")
    with only(monkeypatch, theirs=True):
        model.train().generate(**settings)
    model.eval()


class Adapted(nn.Module):
    """A linear layer and what is added to it, as adapters wrap them: without parameters of its own."""

    def __init__(self, inner: nn.Linear):
        super().__init__()
        self.inner = inner

    weight = property(lambda self: self.inner.weight)
    bias = property(lambda self: self.inner.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).flip(-1)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_adapters_are_transformers(lively, monkeypatch, side):
    model = copy.deepcopy(lively())
    torch.manual_seed(1)
    settings = sentences(20) | {"max_new_tokens": 10}
    before = model.generate(**settings)
    attention = getattr(model.model, side).stack.blocks[0].attention
    attention.query = Adapted(attention.query)
    with only(monkeypatch, theirs=True):
        assert not torch.equal(model.generate(**settings), before)


SURGERY = {
    "a subclass": lambda model: setattr(model, "__class__", type("Mine", (type(model),), {"__module__": "mine"})),
    "a bias": lambda model: setattr(model.lm_head, "bias", nn.Parameter(torch.randn(40).double() * 9)),
    "dropout": lambda model: model.model.encoder.stack.blocks[0].attention_residual.train(),
    "forward": lambda model: setattr(
        model.model.decoder.stack.blocks[0].feed_forward, "forward", lambda x: torch.zeros_like(x)
    ),
    "another kind": lambda model: setattr(
        model.model.decoder.stack.blocks[0], "feed_forward", nn.Sequential(nn.Linear(32, 32).double(), nn.Tanh())
    ),
}


@pytest.mark.parametrize("change", SURGERY)
def test_other_models_are_transformers(lively, monkeypatch, change):
    model = copy.deepcopy(lively())
    SURGERY[change](model)
    torch.manual_seed(1)
    with only(monkeypatch, theirs=True):
        model.generate(**sentences(4), max_new_tokens=6)


def test_compiled_models_are_copied_whole(lively):
    model = KeelSeq2SeqForConditionalGeneration(lively().config).eval()
    model.compile(backend="eager")
    model.generate(**sentences(2), max_new_tokens=4)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert copied.kept_weights is None and copied._compiled_call_impl is None


def test_a_hook_on_the_model_is_called(lively):
    model, calls = lively(), []
    hook = model.register_forward_hook(lambda *args: calls.append(1))
    try:
        torch.manual_seed(1)
        assert model.generate(**sentences(4), max_new_tokens=6).shape[1] == len(calls) + 1
    finally:
        hook.remove()


@pytest.mark.filterwarnings("ignore")
def test_quantised_models_are_transformers(lively, monkeypatch):
    model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(lively()).float(), {nn.Linear})
    torch.manual_seed(1)
    with only(monkeypatch, theirs=True):
        assert model.generate(**sentences(4), max_new_tokens=6).shape[0] == 4


def test_options_come_from_everywhere(lively, monkeypatch):
    """The arguments before the given configuration, that one before the model's own, this one before the defaults."""
    model = lively()
    torch.manual_seed(1)
    own, batch = model.generation_config, sentences(20)
    given = GenerationConfig(length_penalty=2.0, max_length=9)
    try:
        model.generation_config = GenerationConfig(**own.to_diff_dict() | {"num_beams": 3, "max_new_tokens": 7})
        for settings in ({}, {"num_beams": 1}, {"generation_config": given}, {"max_new_tokens": 3, "num_beams": 2}):
            ours, theirs = both(monkeypatch, model, **batch, **settings)
            assert torch.equal(ours, theirs)
            inputs = batch["input_ids"], settings.pop("generation_config", None)
            assert torch.equal(model.generate(*inputs, attention_mask=batch["attention_mask"], **settings), ours)
    finally:
        model.generation_config = own


@pytest.mark.parametrize(
    "options",
    [
        {"num_beam": 4},
        {"num_return_sequences": 2},
        {"num_beams": 2, "num_return_sequences": 3},
        {"early_stopping": "soon", "num_beams": 2},
        {"max_new_tokens": 0},
        {"inputs": torch.ones(1, 3, dtype=torch.long)},
    ],
    ids=str,
)
def test_transformers_refuses(lively, options):
    torch.manual_seed(1)
    settings = sentences(4) | {"max_new_tokens": 6} | options
    with pytest.raises(ValueError) as ours:
        lively().generate(**settings)
    with pytest.raises(ValueError) as theirs:
        GenerationMixin.generate(lively(), **settings)
    assert str(ours.value) == str(theirs.value)


def test_without_a_length_transformers_warns(lively):
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="max_new_tokens"):
        assert lively().generate(**sentences(8)).shape[1] <= 21


@pytest.mark.parametrize("beams", [1, 2])
def test_beyond_the_table_of_positions(lively, beams):
    ids = torch.ones(1, 41, dtype=torch.long)
    with pytest.raises(ValueError, match="41 tokens, but"):
        lively().generate(ids, max_new_tokens=5, num_beams=beams)
    with pytest.raises(ValueError, match="41 tokens, but"):
        lively().generate(ids[:, :4], max_new_tokens=60, num_beams=beams, eos_token_id=None)
