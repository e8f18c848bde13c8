"""What `generate()` keeps for our searches, and what it leaves to transformers."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from searches import both, only, sentences
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList, TemperatureLogitsWarper
from transformers.generation import GenerationMixin, MaxLengthCriteria
from transformers.modeling_outputs import BaseModelOutput

from modeling import KeelSeq2SeqForConditionalGeneration

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


class Nowhere(nn.Module):
    def forward(self, position_ids: Tensor) -> Tensor:
        return torch.zeros(*position_ids.shape, 32, dtype=torch.double)


class Reversed(nn.Module):
    """Without weights, as an activation is, but in another place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(-1)


SURGERY = {
    "a subclass": lambda model: setattr(model, "__class__", type("Mine", (type(model),), {"__module__": "mine"})),
    "a bias": lambda model: setattr(model.lm_head, "bias", nn.Parameter(torch.randn(40).double() * 9)),
    "dropout": lambda model: model.model.encoder.stack.blocks[0].attention_residual.train(),
    "forward": lambda model: setattr(
        model.model.decoder.stack.blocks[0].feed_forward, "forward", lambda x: torch.zeros_like(x)
    ),
    "forward of a matrix": lambda model: setattr(model.lm_head, "forward", lambda x: torch.zeros(*x.shape[:-1], 40)),
    "forward of the last norm": lambda model: setattr(model.model.decoder.stack.norm, "forward", lambda x: x * 2),
    "an activation": lambda model: setattr(model.model.decoder.stack.blocks[0].feed_forward, "activation", nn.Tanh()),
    "instead of dropout": lambda model: setattr(model.model.encoder.embeddings, "dropout", Reversed()),
    "instead of positions": lambda model: setattr(model.model.encoder.embeddings, "positions", Nowhere()),
    "nothing instead of a matrix": lambda model: setattr(
        model.model.encoder.stack.blocks[0].attention, "output", nn.Identity()
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
    padded = {"input_ids": ids.expand(2, -1), "attention_mask": torch.tensor([[1] * 41, [1] * 7 + [0] * 34])}
    for inputs in ({"input_ids": ids}, padded):
        with pytest.raises(ValueError, match="41 tokens, but"):
            lively().generate(**inputs, max_new_tokens=5, num_beams=beams)
    with pytest.raises(ValueError, match="41 tokens, but"):
        lively().generate(ids[:, :4], max_new_tokens=60, num_beams=beams, eos_token_id=None)


# What it keeps


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
    "positions": lambda model: negate(model.model.decoder.embeddings.positions.weight),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_are_kept_for_steps_are_those_of_now(lively, change):
    model = copy.deepcopy(lively(type_vocab_size=2))
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
