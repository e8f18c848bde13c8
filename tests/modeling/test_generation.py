"""`generate()` is transformers' own, in every mode and under every wrapper: with the cache, what it finds without.

A cache that does not reach the decoder goes unseen: every step then reads one token at position 0, and the model that
is handed over looks untrained.
"""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from searches import END, PAD, score, sentences
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    LogitsProcessorList,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    StaticCache,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
)
from transformers.generation import GenerationMixin, MaxLengthCriteria
from transformers.modeling_outputs import BaseModelOutput

from modeling import KeelSeq2SeqForConditionalGeneration
from modeling.convert import to_native
from modeling.seq2seq import CACHE

NAMES = ("cache", "past_key_values")  # of transformers since 5.24, and before


def test_nothing_of_transformers_is_overridden():
    for name in ("generate", "prepare_inputs_for_generation"):
        assert getattr(KeelSeq2SeqForConditionalGeneration, name) is getattr(GenerationMixin, name)
    for name in ("train", "_apply", "__getstate__", "__deepcopy__"):
        assert getattr(KeelSeq2SeqForConditionalGeneration, name, None) is getattr(PreTrainedModel, name, None)


OPTIONS = [
    {},
    {"output_scores": True},
    {"min_length": 6},
    {"min_new_tokens": 6, "num_beams": 2},
    {"do_sample": True, "top_k": 1},
    {"do_sample": True},
    {"do_sample": True, "num_beams": 2, "temperature": 0.7},
    {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.6},
    {"repetition_penalty": 1.0001},
    {"repetition_penalty": 1.4},
    {"no_repeat_ngram_size": 50},
    {"no_repeat_ngram_size": 1, "num_beams": 2},
    {"encoder_no_repeat_ngram_size": 1},
    {"bad_words_ids": [[3], [4]]},
    {"begin_suppress_tokens": [3, 4]},
    {"forced_bos_token_id": 7, "num_beams": 2},
    {"forced_eos_token_id": 0},
    {"exponential_decay_length_penalty": (2, 1.5), "num_beams": 2},
    {"sequence_bias": {(3,): 5.0}},
    {"renormalize_logits": True, "num_beams": 2},
    {"decoder_input_ids": torch.full((8, 2), 7)},
    {"decoder_start_token_id": [[7]] * 8},
    {"prefix_allowed_tokens_fn": lambda row, ids: [0, 3, 4, 5]},
    {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(4)])},
    {"logits_processor": LogitsProcessorList([TemperatureLogitsWarper(2.0)]), "num_beams": 2},
]


def generate(model, **options) -> torch.Tensor:
    torch.manual_seed(4)
    return model.generate(**options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ", ".join(options) or "none")
def test_with_the_cache_as_without_and_as_marian(lively, options):
    model = lively()
    torch.manual_seed(1)
    settings = sentences(8) | {"max_new_tokens": 10} | options
    found = generate(model, **settings)
    assert torch.equal(found, generate(model, **settings, use_cache=False))
    assert torch.equal(found, generate(to_native(model), **settings))
    assert found.unique().numel() > 3  # or the test is none


def quantised(model):
    return torch.ao.quantization.quantize_dynamic(model.float(), {nn.Linear})


def with_adapters(model):
    torch.manual_seed(5)
    adapted = get_peft_model(model.float(), LoraConfig(target_modules=["query", "value"], init_lora_weights=False))
    return adapted.eval()


def with_a_hook(model):
    model.register_forward_hook(lambda module, inputs, output: None)
    model.model.decoder.stack.blocks[0].register_forward_hook(lambda module, inputs, output: None)
    return model


def with_a_forward_of_its_own(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def with_checkpoints_of_gradients(model):
    model.activation_checkpointing_enable()
    return model


WRAPPERS = {
    "plain": lambda model: model,
    "LoRA": with_adapters,
    "a hook": with_a_hook,
    "a compiled forward": with_a_forward_of_its_own,
    "quantised": quantised,
    "gradient checkpointing": with_checkpoints_of_gradients,
    "bf16": lambda model: model.bfloat16(),
}
ROUNDED = ("quantised", "bf16")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_however_the_model_is_wrapped(lively, wrap, beams):
    model = WRAPPERS[wrap](copy.deepcopy(lively()))
    torch.manual_seed(1)
    batch, options = sentences(20), {"max_new_tokens": 10, "num_beams": beams}
    found = model.generate(**batch, **options)
    if wrap in ROUNDED:  # otherwise with other shapes: as good by the plain model's own scores
        best = score(lively(), batch, lively().generate(**batch, **options)).mean()
        assert score(lively(), batch, found).mean() > best - 0.2
    else:
        assert torch.equal(found, model.generate(**batch, **options, use_cache=False))
    assert found.unique().numel() > 10


def test_while_training(lively):
    """With no gradients there is no second pass to write the cache twice."""
    model = with_checkpoints_of_gradients(copy.deepcopy(lively())).train()  # without dropout
    torch.manual_seed(1)
    settings = sentences(8) | {"max_new_tokens": 10}
    assert torch.equal(model.generate(**settings), lively().generate(**settings))


class Copies(Dataset):
    def __init__(self, count: int):
        torch.manual_seed(1)
        batch = sentences(count)
        self.rows = [{name: value[i] for name, value in batch.items()} for i in range(count)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        row = self.rows[at]
        labels = row["input_ids"].where(row["attention_mask"] == 1, -100)
        return row | {"labels": labels}


@pytest.mark.filterwarnings("ignore")
def test_seq2seq_trainer_predicts(lively, tmp_path):
    model, data = copy.deepcopy(lively()).float(), Copies(20)
    options = {"report_to": [], "use_cpu": True, "predict_with_generate": True, "generation_max_length": 12}
    trainer = Seq2SeqTrainer(model=model, args=Seq2SeqTrainingArguments(str(tmp_path), **options))
    found = torch.from_numpy(trainer.predict(data).predictions)
    found[found == -100] = PAD
    batch = {name: torch.stack([row[name] for row in data.rows]) for name in ("input_ids", "attention_mask")}
    expected = model.generate(**batch, max_length=12, use_cache=False)
    assert torch.equal(found[:, : expected.shape[1]], expected) and (found[:, expected.shape[1] :] == PAD).all()


def test_outputs_by_name(lively):
    torch.manual_seed(1)
    found = lively().generate(
        **sentences(3),
        max_new_tokens=10,
        num_beams=2,
        return_dict_in_generate=True,
        output_scores=True,
        output_attentions=True,
    )
    assert found.sequences_scores.shape == (3,) and isinstance(found[CACHE], EncoderDecoderCache)
    assert len(found.cross_attentions) == len(found.scores)


def test_memory_that_is_given(lively):
    model = lively()
    torch.manual_seed(1)
    batch = sentences(4)
    memory = BaseModelOutput(model.model.encoder(**batch).last_hidden_state)
    found = model.generate(encoder_outputs=memory, attention_mask=batch["attention_mask"], max_new_tokens=10)
    assert torch.equal(found, model.generate(**batch, max_new_tokens=10))


@pytest.mark.parametrize("ending", [END, -1])
def test_padding_is_never_written(lively, ending):
    torch.manual_seed(1)
    found = lively().generate(**sentences(20), max_new_tokens=10, eos_token_id=ending)
    after = (found == ending).cumsum(1) - (found == ending).int()
    assert PAD not in found[:, 1:][after[:, 1:] == 0]


PREFIX = [[PAD, 7], [PAD, 7, 9, 3], [PAD]]
SIDES = [
    *({}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "top_k": 1}, {"use_cache": False}),
    *({"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}, {"assistant_model": True}),
]


def padded_left(rows: list[list[int]], width: int, name: str, mask: str) -> dict[str, torch.Tensor]:
    ids = [[PAD] * (width - len(row)) + row for row in rows]
    real = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {name: torch.tensor(ids), mask: torch.tensor(real)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("starts", [[[PAD]] * 3, PREFIX], ids=["start", "prefix"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
@pytest.mark.parametrize("options", SIDES, ids=str)
def test_a_left_padded_batch_is_each_row_alone(lively, options, positions, starts, kernel):
    model = copy.deepcopy(lively(position_embedding_type=positions))
    model.set_attn_implementation(kernel)
    options = options | ({"assistant_model": copy.deepcopy(model)} if "assistant_model" in options else {})
    sources = [[5, 9, 31, 7, 2, 8, 11], [4, 4], [12, 3, 25, 6]]

    def written(rows: list[int], source_width: int, start_width: int) -> list[list[int]]:
        batch = padded_left([sources[row] for row in rows], source_width, "input_ids", "attention_mask")
        targets = [starts[row] for row in rows], start_width, "decoder_input_ids", "decoder_attention_mask"
        found = generate(model, **batch, **padded_left(*targets), **options, max_new_tokens=8)[:, start_width:]
        return [row[: row.index(END) + 1] if END in row else row for row in found.tolist()]

    alone = [text for row in range(3) for text in written([row], len(sources[row]), len(starts[row]))]
    one_by_one = "assistant_model" in options or "prompt_lookup_num_tokens" in options  # they take no batches
    batches = [[0], [1], [2]] if one_by_one else [[0, 1, 2]]
    assert [text for rows in batches for text in written(rows, 7, max(map(len, starts)))] == alone


# The cache


def caches(model) -> dict[str, EncoderDecoderCache]:
    static = {"config": model.config, "max_cache_len": 12}
    return {
        "dynamic": EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config)),
        "static": EncoderDecoderCache(StaticCache(**static), StaticCache(**static)),
    }


@torch.no_grad()
@pytest.mark.parametrize("parts", [(1,) * 8, (3, 5), (8,), (5, 1, 2)], ids=str)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("given_as", NAMES)
def test_a_cache_by_either_name_is_the_whole_forward(lively, given_as, kind, parts):
    """Decoded in parts, of however many tokens, with padding in the source and in the targets."""
    model, batch = lively(), sentences(4)
    batch["input_ids"][0], batch["attention_mask"][0] = 5, 1  # a full one: a static cache of memory is that wide
    targets = torch.randint(1, PAD, (4, 8))
    mask = torch.ones(4, 8, dtype=torch.long)
    mask[1, :2] = mask[2, 0] = 0
    expected = model(**batch, decoder_input_ids=targets, decoder_attention_mask=mask, use_cache=False).logits
    for target_model in (model, model.model):
        cache, found, first = caches(model)[kind], [], 0
        for size in parts:
            last = first + size
            out = target_model(
                **batch,
                decoder_input_ids=targets[:, first:last],
                decoder_attention_mask=mask[:, :last],
                use_cache=True,
                **{given_as: cache},
            )
            assert out[CACHE] is cache
            found.append(out[0])
            first = last
        states = torch.cat(found, 1)
        if target_model is model:
            real = mask == 1
            torch.testing.assert_close(states[real], expected[real])
        else:
            torch.testing.assert_close((model.lm_head(states) + model.final_logits_bias)[real], expected[real])


def test_two_caches_are_refused(lively):
    model = lively()
    cache, other = caches(model).values()
    inputs = {"input_ids": torch.ones(1, 3).long(), "decoder_input_ids": torch.ones(1, 1).long()}
    for called in (model, model.model):
        with pytest.raises(ValueError, match="two names of one argument"):
            called(**inputs, cache=cache, past_key_values=other)
    model(**inputs, cache=cache, past_key_values=cache)


def test_a_cache_is_refused_where_layers_run_twice(lively):
    model = with_checkpoints_of_gradients(copy.deepcopy(lively())).train()
    inputs = {"input_ids": torch.ones(1, 3).long(), "decoder_input_ids": torch.ones(1, 1).long()}
    with pytest.raises(ValueError, match="takes no cache"):
        model(**inputs, cache=caches(model)["dynamic"])
    assert CACHE not in model(**inputs)


@pytest.mark.parametrize("beams", [1, 2])
def test_beyond_the_table_of_positions(lively, beams):
    ids = torch.ones(1, 41, dtype=torch.long)
    with pytest.raises(ValueError, match="41 tokens, but"):
        lively().generate(ids, max_new_tokens=5, num_beams=beams)
    with pytest.raises(ValueError, match="41 tokens, but"):
        lively().generate(ids[:, :4], max_new_tokens=60, num_beams=beams, eos_token_id=None)
