"""Properties of the three architectures: who sees whom, positions, decoding, tables that grow."""

import inspect
import math
from dataclasses import fields
from typing import Literal, get_args, get_origin

import pytest
import torch
from compare import DECODER, close, equal, gradients
from torch import Tensor, nn
from transformers import EncoderDecoderCache
from transformers.models.vit.modeling_vit import ViTConfig, ViTEmbeddings
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEConfig, ViTMAEEmbeddings

import modeling
from modeling.seq2seq import CACHE

LEARNED_AND_FIXED = pytest.mark.parametrize("position_embedding_type", ["learned", "sinusoidal"])
TEXT = ["KeelBertForMaskedLM", "KeelSeq2SeqForConditionalGeneration"]
FAMILIES = [*TEXT, "KeelViTForImageClassification"]
CLASSES = [name for name in modeling.__all__ if name.endswith("Model") or ("For" in name and "Output" not in name)]
START, END, PAD = 39, 0, 39  # of the small encoder-decoder


def tokens(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(2, 39, shape)


def inputs(model: nn.Module, length: int = 6) -> dict[str, Tensor]:
    if isinstance(model.config, modeling.KeelViTConfig):
        return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=torch.float64).view(2, 3, 8, 8)}
    choices = (3,) if isinstance(model, modeling.KeelBertForMultipleChoice) else ()
    ids = {"input_ids": tokens(2, *choices, length)}
    return ids | ({"decoder_input_ids": tokens(2, length)} if model.config.is_encoder_decoder else {})


def sinusoids(positions: int, width: int) -> Tensor:
    """Vaswani 2017, 3.5, entry by entry: PE(p, 2i) = sin(p / 10000^(2i/d)), PE(p, 2i + 1) = cos(the same)."""
    table = torch.empty(positions, width, dtype=torch.float64)
    for position in range(positions):
        for column in range(width):
            angle = position / 10000 ** (2 * (column // 2) / width)
            table[position, column] = math.cos(angle) if column % 2 else math.sin(angle)
    return table


# Who sees whom


@pytest.mark.parametrize("norm_position", ["post", "pre"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_decoder_is_causal(tiny, attention, norm_position):
    model = tiny("KeelSeq2SeqForConditionalGeneration", norm_position=norm_position)
    model.set_attn_implementation(attention)
    given = inputs(model)
    before = model(**given).logits
    for changed in range(6):
        other = given["decoder_input_ids"].clone()
        other[:, changed] = 2 + (other[:, changed] - 1) % 37
        after = model(**given | {"decoder_input_ids": other}).logits
        equal(after[:, :changed], before[:, :changed])
        assert (after[:, changed:] != before[:, changed:]).any(-1).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("head", [*TEXT, "KeelBertForSequenceClassification"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_is_not_seen(tiny, head, pooling, attention):
    fields = {"pooling": pooling} if "Bert" in head else {}
    model = tiny(head, **fields)
    model.set_attn_implementation(attention)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    given, masks = inputs(model), {"attention_mask": mask}
    if model.config.is_encoder_decoder:
        masks["decoder_attention_mask"] = mask
    short = model(**{name: x[:1, :4] for name, x in given.items()}).logits
    padded = model(**given, **masks).logits[:1]
    close(padded[:, :4] if padded.ndim == 3 else padded, short)


@pytest.mark.parametrize("head", FAMILIES)
def test_attention_rows_are_distributions(tiny, head):
    model = tiny(head)
    model.set_attn_implementation("eager")
    outputs = model(**inputs(model), output_attentions=True)
    kinds = {name: layers for name, layers in outputs.items() if name.endswith("attentions")}
    assert len(kinds) == (3 if model.config.is_encoder_decoder else 1)
    for name, layers in kinds.items():
        assert len(layers) == 2
        for weights in layers:
            assert weights.shape[:2] == (2, 2) and (weights >= 0).all()
            close(weights.sum(-1), torch.ones_like(weights[..., 0]))
            assert weights.triu(1).any() != (name == "decoder_attentions")


# Positions


@pytest.mark.parametrize("width", [7, 16])
def test_sinusoids_are_the_papers(width):
    close(modeling.embeddings.SinusoidalPositions(50, width).weight, sinusoids(50, width).float(), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", TEXT)
def test_sinusoids_survive_loading(tiny, head, dtype, tmp_path):
    tiny(head, position_embedding_type="sinusoidal").save_pretrained(tmp_path)
    model = getattr(modeling, head).from_pretrained(tmp_path, dtype=dtype)
    tables = [table for table in model.buffers() if table.shape == (10, 16)]
    assert len(tables) == 1 + model.config.is_encoder_decoder
    for table in tables:
        assert table.dtype == dtype
        close(table, sinusoids(10, 16).to(dtype), atol=1e-6, rtol=2**-8 if dtype == torch.bfloat16 else 1e-6)


@LEARNED_AND_FIXED
@pytest.mark.parametrize("head", TEXT)
def test_no_token_beyond_the_table(tiny, head, position_embedding_type):
    model = tiny(head, position_embedding_type=position_embedding_type)
    model(**inputs(model, length=10))
    for long in inputs(model):
        with pytest.raises(ValueError, match="max_position_embeddings=10"):
            model(**inputs(model, length=10) | {long: tokens(2, 11)})
    if model.config.is_encoder_decoder:
        past = model(**inputs(model, length=10))[CACHE]
        with pytest.raises(ValueError, match="11 tokens"):
            model(tokens(2, 10), decoder_input_ids=tokens(2, 1), cache=past)


@LEARNED_AND_FIXED
@pytest.mark.parametrize("head", TEXT)
def test_a_resized_table_keeps_what_it_knew(tiny, head, position_embedding_type, tmp_path):
    model = tiny(head, position_embedding_type=position_embedding_type)
    before = model(**inputs(model)).logits
    model.resize_position_embeddings(30)
    equal(model(**inputs(model)).logits, before)
    longer = model(**inputs(model, length=30)).logits
    model.save_pretrained(tmp_path)
    loaded = getattr(modeling, head).from_pretrained(tmp_path).eval()
    assert loaded.config.max_position_embeddings == 30
    close(loaded(**inputs(model, length=30)).logits, longer, rtol=1e-6, atol=1e-6)
    if position_embedding_type == "sinusoidal":
        for table in (table for table in loaded.buffers() if table.shape == (30, 16)):
            close(table, sinusoids(30, 16).to(table.dtype), atol=1e-6)
    model.resize_position_embeddings(6)
    equal(model(**inputs(model)).logits, before)
    with pytest.raises(ValueError, match="max_position_embeddings=6"):
        model(**inputs(model, length=7))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_interpolated_positions_are_the_native_ones(tiny, pooling):
    model = tiny("KeelViTModel", pooling=pooling)
    ours = model.embeddings
    native = ViTEmbeddings(ViTConfig(hidden_size=16, image_size=8, patch_size=2, num_channels=3)).double()
    cls = torch.zeros(1, 1, 16, dtype=torch.float64) if pooling == "mean" else ours.positions[:, :0]
    native.position_embeddings = nn.Parameter(torch.cat([cls, ours.positions], 1))
    for height, width in ((8, 8), (12, 6), (4, 16)):
        x = torch.zeros(1, 1 + height * width // 4, 16)
        expected = native.interpolate_pos_encoding(x, height, width)[:, cls.shape[1] :]
        close(ours.interpolated(height // 2, width // 2), expected)
        pixels = torch.rand(1, 3, height, width, dtype=torch.float64)
        assert model(pixels, interpolate_pos_encoding=True).last_hidden_state.shape == expected.shape
        if (height, width) == (8, 8):
            equal(model(pixels, interpolate_pos_encoding=True).last_hidden_state, model(pixels).last_hidden_state)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_sincos2d_is_that_of_the_released_mae(tiny, pooling):
    native = ViTMAEEmbeddings(ViTMAEConfig(hidden_size=16, image_size=8, patch_size=2))
    native.initialize_weights()
    model = tiny("KeelViTModel", position_embedding_type="sincos2d", pooling=pooling)
    own = model.embeddings.interpolated(4, 4)
    close(own, native.position_embeddings.data[:, pooling == "mean" :].double(), atol=1e-6)
    assert not any("positions" in name for name in model.state_dict())
    # Three times as fine, every third patch lies where one was.
    fine = model.embeddings.interpolated(12, 12)[:, -144:].view(12, 12, 16)
    close(fine[1::3, 1::3].flatten(0, 1), own[0, -16:])
    with pytest.raises(ValueError, match="hidden_size=18 is no multiple of 4"):
        tiny("KeelViTModel", position_embedding_type="sincos2d", hidden_size=18)


@pytest.mark.parametrize("head", ["KeelViTForImageClassification", "KeelViTForMaskedImageModeling"])
@pytest.mark.parametrize("position_embedding_type", ["learned", "sincos2d"])
@pytest.mark.parametrize("fields", [{}, {"pooling": "mean"}, DECODER])
def test_larger_images_for_good(tiny, head, position_embedding_type, fields, tmp_path):
    model = tiny(head, position_embedding_type=position_embedding_type, **fields)
    small, large = (torch.rand(2, 3, side, side, dtype=torch.float64) for side in (8, 12))
    before, expected = model(small)[0], model(large, interpolate_pos_encoding=True)[0]
    model.resize_position_embeddings(12)
    close(model(large)[0], expected)
    if position_embedding_type == "sincos2d":  # nothing was learned that could be lost
        close(model(small, interpolate_pos_encoding=True)[0], before)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert loaded.config.image_size == 12
    close(loaded(large)[0], expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="image_size=13 is no multiple of patch_size=2"):
        model.resize_position_embeddings(13)
    with pytest.raises(ValueError, match=r"image_size=\(16, 1024\) must be one number"):  # as ViTConfig takes it
        type(model.config)(image_size=(16, 1024))


def test_images_of_another_shape_are_refused(tiny):
    model = tiny("KeelViTModel")
    for shape, match in (((1, 3, 8, 6), "image_size is 8"), ((1, 1, 8, 8), "num_channels=3")):
        with pytest.raises(ValueError, match=match):
            model(torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match="mask token"):
        model(torch.zeros(1, 3, 8, 8, dtype=torch.float64), torch.ones(1, 16))


# What is not computed


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("norm_position", ["post", "pre"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_what_no_head_reads_changes_nothing(tiny, pooling, norm_position, attention):
    """The last layer of a classifier sees to the class token alone, unless the states of all are asked for."""
    fields = {"pooling": pooling, "norm_position": norm_position, "num_labels": 3, "drop_path_rate": 0.5}
    model = tiny("KeelViTForImageClassification", **fields)
    model.set_attn_implementation(attention)
    given = inputs(model) | {"labels": torch.tensor([2, 0])}
    whole = model(**given, output_hidden_states=True)
    assert [x.shape[1] for x in whole.hidden_states] == [16 + (pooling == "cls")] * 3
    close(model(**given).logits, whole.logits)
    found = []
    for whole in (False, True):
        torch.manual_seed(3)
        found.append(gradients(model.train(), [given | {"output_hidden_states": whole}]))
    assert set(found[1][1]) == {name for name, _ in model.named_parameters()}
    for name, gradient in found[0][1].items():
        close(gradient, found[1][1][name])
    close(found[0][0], found[1][0])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("norm_position", ["post", "pre"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_what_no_head_of_texts_reads_changes_nothing(tiny, pooling, norm_position, packed):
    """The last feed-forward of a classifier skips what is not pooled, unless the states of all are asked for."""
    model = tiny("KeelBertForSequenceClassification", pooling=pooling, norm_position=norm_position, num_labels=3)
    given = {"input_ids": torch.tensor([[2, 5, 3, 2, 6, 7, 3, 0], [2, 8, 9, 3, 2, 4, 3, 0]])}
    ids = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 2, 2, 2, 0]])
    given |= {"sequence_ids": ids} if packed else {"attention_mask": (ids > 0).long()}
    given["labels"] = torch.tensor([[2, 0], [1, 1]] if packed else [2, 0])
    whole = model(**given, output_hidden_states=True)
    assert whole.hidden_states[-1].shape[:2] == (2, 8)
    close(model(**given).logits, whole.logits)
    skipped, full = (gradients(model.train(), [given | {"output_hidden_states": whole}]) for whole in (False, True))
    for name, gradient in skipped[1].items():
        close(gradient, full[1][name])
    close(skipped[0], full[0])


@pytest.mark.parametrize("head", FAMILIES)
def test_depth_drops_in_a_line(tiny, head):
    depths = {"encoder_layers": 5, "decoder_layers": 3} if "Seq2Seq" in head else {"num_hidden_layers": 5}
    model = tiny(head, drop_path_rate=0.2, **depths)
    stacks = [module for module in model.modules() if isinstance(module, modeling.layers.Stack)]
    for stack in stacks:
        rates = torch.linspace(0, 0.2, len(stack.blocks)).tolist()
        for block, rate in zip(stack.blocks, rates, strict=True):
            residuals = [module for module in block.modules() if isinstance(module, modeling.layers.Residual)]
            assert [x.drop_path_rate for x in residuals] == [pytest.approx(rate)] * len(residuals)
    equal(model(**inputs(model)).logits, tiny(head, **depths)(**inputs(model)).logits)
    assert (model.train()(**inputs(model)).logits != model.eval()(**inputs(model)).logits).any()
    with pytest.raises(ValueError, match="drop_path_rate=1"):
        tiny(head, drop_path_rate=1)


# Decoding


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("norm_position", ["post", "pre"])
@LEARNED_AND_FIXED
def test_cached_decoding_is_decoding(tiny, position_embedding_type, norm_position, packed):
    model = tiny(
        "KeelSeq2SeqForConditionalGeneration",
        position_embedding_type=position_embedding_type,
        norm_position=norm_position,
    )
    given = inputs(model)
    ids = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 3, 3]])
    source = {"sequence_ids": ids} if packed else {"attention_mask": ids.clamp(max=1)}
    whole = model(**given, **source, **({"decoder_sequence_ids": ids} if packed else {}), use_cache=False)
    memory, past, steps = None, None, []
    for step in [slice(0, 2), slice(2, 3), slice(3, 6)]:
        seen = {"decoder_sequence_ids": ids[:, : step.stop]} if packed else {}
        outputs = model(
            given["input_ids"] if memory is None else None,
            encoder_outputs=memory,
            decoder_input_ids=given["decoder_input_ids"][:, step],
            cache=past,
            use_cache=True,
            **source,
            **seen,
        )
        memory, past = (outputs.encoder_last_hidden_state,), outputs[CACHE]
        steps.append(outputs.logits)
    assert isinstance(past, EncoderDecoderCache) and past.get_seq_length() == 6
    logits, real = torch.cat(steps, 1), (ids != 0) if packed else torch.ones_like(ids).bool()
    close(logits[real], whole.logits[real])


def test_generate_is_greedy_search(tiny):
    model, source = tiny("KeelSeq2SeqForConditionalGeneration"), tokens(3, 6)
    expected = torch.full((3, 1), START)
    for _ in range(8):
        following = model(source, decoder_input_ids=expected).logits[:, -1].argmax(-1)
        following[(expected == END).any(-1)] = PAD
        expected = torch.cat([expected, following[:, None]], 1)
    found = model.generate(source, max_new_tokens=8, do_sample=False)
    equal(found, expected[:, : found.shape[1]])
    assert PAD not in model.generate(source, max_new_tokens=8, do_sample=False, eos_token_id=-1)[:, 1:]


def test_generate_is_beam_search(tiny):
    """With as many beams as there are prefixes, the search is exhaustive: nothing of its length is likelier."""
    model, source = tiny("KeelSeq2SeqForConditionalGeneration", vocab_size=12, pad_token_id=11), tokens(3, 6) % 9 + 2
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 11
    model.generation_config.pad_token_id = 11
    settings = {"max_new_tokens": 2, "min_new_tokens": 2, "num_beams": 12, "do_sample": False}
    found = model.generate(source, **settings, output_scores=True, return_dict_in_generate=True)
    pairs = torch.cartesian_prod(torch.arange(12), torch.arange(12))
    for row, best, score in zip(source, found.sequences, found.sequences_scores, strict=True):
        tried = torch.cat([torch.full((144, 1), 11), pairs], 1)
        logprob = model(row.expand(144, -1), decoder_input_ids=tried[:, :-1]).logits.log_softmax(-1)
        total = logprob.gather(2, tried[:, 1:, None]).sum((1, 2))
        total[(pairs == END).any(1)] = -torch.inf  # min_new_tokens forbids the end
        equal(best, tried[total.argmax()])
        close(score * 2, total.max().to(score.dtype), rtol=1e-5, atol=1e-6)
    equal(model.generate(source, **settings, use_cache=False), found.sequences)


# Tokens


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_padding_is_never_trained(tiny, label_smoothing):
    """CTranslate2 takes the row of padding, which is the start token's too, for zero; the tied output would move it."""
    model = tiny("KeelSeq2SeqForConditionalGeneration", label_smoothing=label_smoothing).train()
    labels = tokens(2, 6).index_fill(1, torch.tensor([5]), -100)
    model(tokens(2, 6).index_fill(1, torch.tensor([5]), PAD), labels=labels).loss.backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient.any(-1).sum() == 39 and not gradient[PAD].any()


@pytest.mark.parametrize("size", [48, 64])
@pytest.mark.parametrize(
    ("head", "shared"), [*((head, True) for head in [*TEXT, "KeelBertForPreTraining"]), (TEXT[1], False)]
)
def test_new_tokens_keep_ties(tiny, head, shared, size, tmp_path):
    model = tiny(head, **({} if shared else {"share_encoder_decoder_embeddings": False}))
    plain = {"use_cache": False} if model.config.is_encoder_decoder else {}  # padding's logit without the others' mean
    before = model(**inputs(model), **plain)[0]
    model.resize_token_embeddings(size)
    torch.manual_seed(0)
    model.save_pretrained(tmp_path)
    loaded = getattr(modeling, head).from_pretrained(tmp_path, dtype=torch.float64)
    for one in (model, loaded):
        read, table = (embeddings.weight for embeddings in (one.get_input_embeddings(), one.get_output_embeddings()))
        assert read.shape == table.shape == (size, 16) and (read is table) == shared
        if one.config.is_encoder_decoder:
            assert one.model.decoder.embeddings.tokens.weight is table
        after = one.eval()(**inputs(one), **plain)[0]
        assert after.shape[-1] == size
        close(after[..., :40], before)
        bias = one.final_logits_bias[0] if one.config.is_encoder_decoder else one.get_output_embeddings().bias
        assert bias.shape == (size,) and not bias[40:].any()
    equal(loaded(**inputs(loaded))[0], model(**inputs(model))[0])


# What forward is given


@pytest.mark.parametrize("name", CLASSES)
def test_an_argument_that_nobody_reads_is_refused(tiny, name):
    """In **kwargs it would vanish, and the model would compute as if it had not been given."""
    model = tiny(name)
    model.set_attn_implementation("eager")
    known = inspect.signature(model.forward).parameters
    assert all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in known.values())
    for unknown in ("cahce", "cache_params", "head_mask", "decoder_position_ids", "is_causal"):
        with pytest.raises(TypeError, match=f"{name}.forward\\(\\) got an unexpected keyword argument '{unknown}'"):
            model(**inputs(model), **{unknown: None})
    model(**inputs(model), output_attentions=True, output_hidden_states=True, return_dict=True)


@pytest.mark.parametrize("family", ["KeelBertConfig", "KeelSeq2SeqConfig", "KeelViTConfig"])
def test_a_choice_that_nobody_knows_is_refused(family: str):
    """In the configuration of every family, and with what there is."""
    config_class = getattr(modeling, family)
    choices = {each.name: get_args(each.type) for each in fields(config_class) if get_origin(each.type) is Literal}
    assert {"norm_position", "initializer", "position_embedding_type"} <= choices.keys()
    for name, known in choices.items():
        with pytest.raises(ValueError, match=f"{name}='middle' is unknown; there are: {', '.join(known)}"):
            config_class(**{name: "middle"})
