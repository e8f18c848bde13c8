"""Learning rates against transformers' schedules, who decays and how fast, Muon beside AdamW, the average."""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from accelerate.utils import DistributedType
from torch import nn

from modeling import KeelViTConfig, KeelViTForMaskedImageModeling
from pretraining.checkpoint import State
from pretraining.data.plan import Plan
from pretraining.launch import check_scale
from pretraining.optim import FullPrecisionMuon, learning_rate, make_average, make_optimizer, parameter_groups
from pretraining.run import Run
from pretraining.settings import OptimSettings, TrainSettings

STEPS, WARMUP = 200, 20


def rates(settings: OptimSettings, hidden_size: int = 64) -> list[float]:
    return [learning_rate(settings, hidden_size, step + 1, step / STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_are_those_of_transformers(schedule: str):
    """With the warm-up as a share of the budget, step n's rate is exactly theirs."""
    ours = rates(OptimSettings(learning_rate=3e-4, schedule=schedule, warmup=WARMUP / STEPS))  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-4)
    make = getattr(transformers, f"get_{schedule}_schedule_with_warmup")
    theirs = make(optimizer, WARMUP) if schedule == "constant" else make(optimizer, WARMUP, STEPS)
    for rate in ours:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15)
        optimizer.step()
        theirs.step()


def test_noam_is_the_formula_of_the_paper():
    """d^-0.5 min(n^-0.5, n w^-1.5) (Vaswani 2017, 5.3)."""
    ours = rates(OptimSettings(learning_rate=None, schedule="noam", warmup=WARMUP), hidden_size=512)
    expected = [512**-0.5 * min(n**-0.5, n * WARMUP**-1.5) for n in range(1, STEPS + 1)]
    assert ours == pytest.approx(expected, rel=1e-12)


def test_wsd_is_stable_then_falls_to_zero():
    ours = rates(OptimSettings(learning_rate=1.0, schedule="wsd", warmup=10, decay=0.25))
    assert ours[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert set(ours[10:150]) == {1.0}
    assert ours[150:] == pytest.approx([(200 - n) / 50 for n in range(150, 200)])


def test_matrices_decay_and_vectors_do_not():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    decayed, rest = parameter_groups(model, OptimSettings(weight_decay=0.1))
    assert {p.ndim for p in decayed["params"]} == {2} and {p.ndim for p in rest["params"]} == {1}
    assert len(decayed["params"]) + len(rest["params"]) == len(list(model.parameters()))
    optimizer = make_optimizer(model, OptimSettings(weight_decay=0.1))
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.allclose(p, old * (0.95 if p.ndim == 2 else 1.0))


def test_of_a_vit_matrices_and_kernels_decay_alone():
    config = KeelViTConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = KeelViTForMaskedImageModeling(config)
    groups = parameter_groups(model, OptimSettings(weight_decay=0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, rest = (
        [p for group in groups if (group["weight_decay"] > 0) == on for p in group["params"]] for on in (1, 0)
    )
    assert all(names[id(p)].endswith(".weight") and p.ndim in (2, 4) for p in decayed)
    spared = {names[id(p)].rpartition(".")[2] for p in rest if p.ndim == 3}
    assert spared == {"positions", "cls_token", "mask_token"}


@pytest.mark.parametrize(
    ("budget", "state"),
    [
        ({"steps": 40}, State(step=10)),
        ({"epochs": 2}, State(epoch=0, step_in_epoch=3)),
        ({"epochs": 4}, State(epoch=2, passes=0.5, step_in_epoch=3)),
        ({"tokens": 4000}, State(tokens=1000)),
        ({"minutes": 2}, State(seconds=30.0)),
    ],
)
def test_progress_is_the_share_of_the_budget(budget: dict, state: State):
    rows = torch.arange(7).numpy()
    plan = Plan(examples=rows[:6], offsets=rows, bounds=rows, tokens_before=500 * rows, fill=1.0, sequences_per_row=1)
    settings = TrainSettings(**budget)
    run: Any = SimpleNamespace(state=state, settings=SimpleNamespace(train=settings), plan=plan)
    now = Run.progress_before(run, state.step_in_epoch)
    assert now == pytest.approx(0.25)
    # Two steps ahead in the plan: a step is 1 of 40, 1 of 6 of an epoch, 500 tokens; a clock tells nothing ahead.
    step = {"steps": 1 / 40, "epochs": 1 / 6 / settings.epochs if settings.epochs else 0, "tokens": 1 / 8, "minutes": 0}
    ahead = Run.progress_before(run, state.step_in_epoch + 2)
    assert ahead == pytest.approx(now + 2 * step[next(iter(budget))])
    done = State(step=100, epoch=9, passes=9, tokens=10**6, seconds=1e6)
    run.state = done
    assert Run.progress_before(run, 0) == 1.0


def test_lower_layers_learn_slower(tiny):
    """Layer-wise decay (Clark 2020): heads at the full rate, embeddings slowest, every parameter in one group."""
    model = tiny("KeelBertForPreTraining")
    groups = parameter_groups(model, OptimSettings(layer_decay=0.5))
    scale = {id(p): group["scale"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert len(scale) == sum(len(group["params"]) for group in groups) == len(named)
    for name, expected in (("embeddings.", 1 / 8), (".blocks.0.", 1 / 4), (".blocks.1.", 1 / 2), ("nsp.", 1.0)):
        assert {scale[id(p)] for n, p in named.items() if expected is not None and name in n} == {expected}


def test_each_stack_learns_slower_from_its_own_top(tiny):
    """Encoder and decoder of unlike depth: both last blocks are a layer from what stands on them."""
    sizes = {"encoder_layers": 3, "decoder_layers": 1, "share_encoder_decoder_embeddings": False}
    model = tiny("KeelSeq2SeqForConditionalGeneration", position_embedding_type="learned", **sizes)
    groups = parameter_groups(model, OptimSettings(layer_decay=0.5))
    scale = {id(p): group["scale"] for group in groups for p in group["params"]}
    named = {name: scale[id(p)] for name, p in model.named_parameters()}
    expected = {"encoder.embeddings.": 1 / 16, "decoder.embeddings.": 1 / 4, "decoder.stack.blocks.0.": 1 / 2}
    expected |= {f"encoder.stack.blocks.{number}.": 2.0 ** (number - 3) for number in range(3)}
    for part, value in expected.items():
        assert {scale for name, scale in named.items() if part in name} == {value}, part
    rest = {scale for name, scale in named.items() if not any(part in name for part in expected)}
    assert rest <= {1.0}


def test_groups_are_the_same_whatever_the_decay(tiny):
    """A resumed run finds the groups of its checkpoint, from no decay and to none."""
    model = tiny("KeelBertForPreTraining")
    for layer_decay in (1.0, 0.5):
        some, none = (
            [
                [id(p) for p in group["params"]]
                for group in parameter_groups(model, OptimSettings(weight_decay=decay, layer_decay=layer_decay))
            ]
            for decay in (0.1, 0.0)
        )
        assert some == none


def test_muon_in_full_precision_is_torch_s_but_for_rounding():
    """Torch orthogonalises in bf16 (2^-8): over steps of every shape the weights differ by far less than they moved."""
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((16, 16), (16, 16), (8, 48), (48, 8))]
    moved = []
    for kind in (torch.optim.Muon, FullPrecisionMuon):
        weights = [nn.Parameter(weight.clone()) for weight in start]
        optimizer = kind(weights, lr=0.05, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        torch.manual_seed(1)
        for _ in range(5):
            for weight in weights:
                weight.grad = torch.randn_like(weight)
            optimizer.step()
        moved.append([weight.detach() - begun for weight, begun in zip(weights, start, strict=True)])
    for one, other in zip(*moved, strict=True):
        assert (one - other).norm() < 0.03 * one.norm()


@pytest.mark.parametrize(("precision", "kind"), [("bf16", torch.optim.Muon), ("fp32", FullPrecisionMuon)])
def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest(tiny, precision: str, kind: type):
    """Each part moves as that optimizer alone would; state and learning rates survive saving."""
    settings = OptimSettings(optimizer="muon", weight_decay=0.1)

    def gradients(model: nn.Module, seed: int) -> None:
        torch.manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn_like(p)

    def rate(optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.01

    ours, theirs, resumed = (tiny("KeelBertForPreTraining").float() for _ in range(3))
    optimizer = make_optimizer(ours, settings, precision)
    matrices = [p for n, p in theirs.named_parameters() if ".blocks." in n and p.ndim == 2]
    assert len(matrices) == 2 * 6  # query, key, value, output, up, down
    own = {id(p) for p in matrices}
    others = [p for p in theirs.parameters() if id(p) not in own]
    alone = [
        kind(matrices, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [
                {"params": [p for p in others if p.ndim >= 2], "weight_decay": 0.1},
                {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
            ],
            eps=1e-6,
            fused=True,
        ),
    ]
    for seed in range(3):
        for model, parts in ((ours, [optimizer]), (theirs, alone)):
            gradients(model, seed)
            for part in parts:
                rate(part)
                part.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)

    resumed.load_state_dict(ours.state_dict())
    again = make_optimizer(resumed, settings, precision)
    again.load_state_dict(deepcopy(optimizer.state_dict()))
    for model, one in ((ours, optimizer), (resumed, again)):
        gradients(model, 9)
        rate(one)
        one.step()
    for one, other in zip(ours.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_average_is_exponential_with_a_growing_memory():
    model = nn.Linear(1, 1, bias=False)
    average = make_average(model, 0.5)
    expected = None
    for step in range(12):
        with torch.no_grad():
            model.weight.fill_(step)
        average.update_parameters(model)
        share = 1 - min(0.5, (1 + step) / (10 + step))
        expected = float(step) if expected is None else expected + share * (step - expected)
        assert average.module.weight.item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_what_has_not_been_shown_right_is_refused_where_weights_are_cut(kind: DistributedType, make_objective):
    deepspeed = SimpleNamespace(deepspeed_config={})
    state = SimpleNamespace(deepspeed_plugin=deepspeed)
    accelerator = SimpleNamespace(distributed_type=kind, num_processes=4, state=state, is_fsdp2=True)
    plain = make_objective("--train.micro_batch=8")
    settings = plain.examples.run.changed({"evaluation.samples": 4})
    check_scale(accelerator, settings)  # 32 rows on 4 processes: one micro-batch of 8 each
    assert deepspeed.deepspeed_config == (
        {"train_micro_batch_size_per_gpu": 8} if kind == DistributedType.DEEPSPEED else {}
    )
    for change in ({"optim.optimizer": "muon"}, {"optim.ema": 0.9}):
        with pytest.raises(ValueError, match=f"has not been shown right under {kind.value}"):
            check_scale(accelerator, settings.changed(change))
        check_scale(SimpleNamespace(distributed_type=DistributedType.MULTI_GPU), settings.changed(change))
    with pytest.raises(
        ValueError, match=f"objective.generate_examples above 0 has not been shown right under {kind.value}"
    ):
        searching = SimpleNamespace(searches=lambda run: "objective.generate_examples above 0")
        check_scale(accelerator, SimpleNamespace(**{**vars(settings), "objective": searching}))
    if kind == DistributedType.FSDP:
        with pytest.raises(ValueError, match="fsdp_version: 1 has not been shown right"):
            check_scale(SimpleNamespace(distributed_type=kind, num_processes=4, is_fsdp2=False), settings)
    if kind == DistributedType.DEEPSPEED:
        with pytest.raises(ValueError, match=r"set train\.micro_batch to 8"):
            check_scale(accelerator, settings.changed({"train.micro_batch": 4}))
