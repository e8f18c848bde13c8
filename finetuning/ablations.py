"""What is it that helps? Runs that differ in one thing alone, over seeds, with a table and a picture.

    python -m finetuning.ablations labels --config configs/finetune/pydocs-package.yaml --model runs/bert-pydocs/model
    python -m finetuning.ablations pooling --config configs/finetune/pydocs-package.yaml --model runs/bert-pydocs/model
    python -m finetuning.ablations pretraining --config configs/finetune/pydocs-package.yaml
    python -m finetuning.ablations images --config configs/pretrain/vit-digits.yaml

`labels` compares pretrained with fresh weights over growing numbers of labels, `pooling` the vector of [CLS] with the
mean of all, `pretraining` what is learnt beside masked words and which words are masked, `images` the ViT with
transformers' ResNet of as many parameters over growing numbers of images (Muon, where the settings name it, is for the
matrices of the ViT's blocks: the ResNet then learns by AdamW). All runs of a command take the same number
of steps. Each is an ordinary run in a folder of its own in RUNS/NAME: the same command goes on where it was killed, and
begins no finished run again. Other settings are those of finetune.py (of `images`: of pretrain.py).
"""

import argparse
from pathlib import Path

import yaml

from finetuning.cli import parse_finetune
from finetuning.run import variant
from finetuning.series import Member, Score, draw_summaries, is_main, summarise, table, to_records, train_members
from finetuning.tasks import make_task
from pretraining import files
from pretraining.cli import parse
from pretraining.errors import UserError, one_sentence_errors
from pretraining.objectives import make_objective

PROGRAM = "finetuning.ablations"
BUDGETS = ("epochs", "tokens", "minutes", "steps")
# The metric that is shown, unless the settings name one: the first of these that the runs have.
METRICS = ("entity_f1", "accuracy", "f1", "micro_f1", "pearson", "loss")
# How the pretrainings of the ablation differ.
PRETRAININGS: dict[str, list[str]] = {
    "next sentence": ["--objective.next_sentence=nsp", "--objective.whole_words=false"],
    "sentence order": ["--objective.next_sentence=sop", "--objective.whole_words=false"],
    "neither": ["--objective.next_sentence=none", "--objective.whole_words=false"],
    "neither, whole words": ["--objective.next_sentence=none", "--objective.whole_words=true"],
}


def numbers(text: str) -> list[int]:
    """Growing counts, from the command line."""
    found = sorted({int(part) for part in text.split(",")})
    if min(found) < 1:
        raise ValueError(text)
    return found


def read_options(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options of this command, and the settings of its runs."""
    parser = argparse.ArgumentParser(
        f"python -m {PROGRAM}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("ablation", choices=list(ABLATIONS), help="What is compared.")
    parser.add_argument("--name", help="The folder in RUNS; default: ablation-ABLATION.")
    parser.add_argument("--runs", default="runs", help="The folder of all runs.")
    parser.add_argument("--seed", type=int, default=0, help="The first seed.")
    parser.add_argument("--seeds", type=int, default=3, help="Runs of each kind, with seeds one after another.")
    parser.add_argument("--steps", type=int, default=300, help="Steps of every run.")
    parser.add_argument(
        "--counts", type=numbers, default=numbers("100,300,1000"), help="Labels, or images: --counts 100,300,1000."
    )
    parser.add_argument("--metric", help="The metric that is shown; default: the one that decides which model is best.")
    parser.add_argument(
        "--pretrain_config",
        default="configs/pretrain/bert-pydocs.yaml",
        help="Of the ablation pretraining: the settings that the pretrainings have in common.",
    )
    parser.add_argument("--pretrain_steps", type=int, default=300, help="Of the ablation pretraining: their steps.")
    options, rest = parser.parse_known_args(arguments)
    options.name = options.name or f"ablation-{options.ablation}"
    if min(options.seeds, options.steps, options.pretrain_steps) < 1:
        parser.error("--seeds, --steps and --pretrain_steps: at least 1.")
    return options, rest


def same_steps(steps: int) -> list[str]:
    """The budget of every run, whatever the settings say."""
    return [f"--train.{name}={steps if name == 'steps' else 'null'}" for name in BUDGETS]


def seeds_of(options: argparse.Namespace) -> range:
    return range(options.seed, options.seed + options.seeds)


def folder_of(options: argparse.Namespace) -> Path:
    return Path(options.runs) / options.name


# ---- what is compared ----


def compare_labels(options: argparse.Namespace, rest: list[str]) -> list[Score]:
    """The checkpoint and fresh weights of its shape, over growing numbers of training examples."""
    settings = parse_finetune([*rest, "--start=both", *same_steps(options.steps)])
    members = []
    for count in options.counts:
        fewer = settings.changed({"data.examples": count})
        for seed in seeds_of(options):
            for start in ("pretrained", "scratch"):
                run = variant(fewer, start, seed, str(folder_of(options)), f"{start}-{count}-{seed}")
                members.append(Member(start, count, run, make_task))
    return train_members(members, options.metric)


def compare_pooling(options: argparse.Namespace, rest: list[str]) -> list[Score]:
    """The first token's vector and the mean of all tokens'."""
    members = []
    kinds = {
        pooling: parse_finetune([*rest, f"--model.pooling={pooling}", *same_steps(options.steps)])
        for pooling in ("cls", "mean")
    }
    for seed in seeds_of(options):
        for pooling, settings in kinds.items():
            start = "scratch" if settings.start == "scratch" else "pretrained"
            run = variant(settings, start, seed, str(folder_of(options)), f"{pooling}-{seed}")
            members.append(Member(pooling, None, run, make_task))
    return train_members(members, options.metric)


def compare_pretraining(options: argparse.Namespace, rest: list[str]) -> list[Score]:
    """Pretrainings of equal steps that differ in what is learnt, each fine-tuned; every seed is of both."""
    steps, folder = same_steps(options.steps), folder_of(options)
    # A mistake in the settings of the fine-tuning is told now, not after the pretraining.
    parse_finetune([*rest, *steps, "--start=scratch", "--tokenizer.path=none"])
    base = ["--config", options.pretrain_config, *same_steps(options.pretrain_steps)]
    pretrainings = {name: parse([*base, *differs]) for name, differs in PRETRAININGS.items()}
    checkpoints: list[Member] = []
    for seed in seeds_of(options):
        for name, settings in pretrainings.items():
            title = f"pretrain-{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            own = settings.changed({"name": title, "seed": seed, "runs": str(folder)})
            checkpoints.append(Member(name, None, own, make_objective))
    train_members(checkpoints)
    members: list[Member] = []
    for name, _, checkpoint, _ in checkpoints:
        settings = parse_finetune([*rest, f"--init_from={checkpoint.folder / 'model'}", *steps])
        run = variant(settings, "pretrained", checkpoint.seed, str(folder), checkpoint.name.removeprefix("pretrain-"))
        members.append(Member(name, None, run, make_task))
    return train_members(members, options.metric)


def compare_images(options: argparse.Namespace, rest: list[str]) -> list[Score]:
    """ViT and ResNet from fresh weights, over growing numbers of images, with the same augmentation."""
    from finetuning.resnet_objective import resnet_objective  # heavy, as is what it imports

    settings = parse(["--model.family=vit", *rest, *same_steps(options.steps)])
    if settings.family != "vit" or settings.objective.name != "classification":
        raise UserError(
            f"the ablation images is of model.family vit and objective.name classification, and these are "
            f"{settings.family} and {settings.objective.name}: leave them out."
        )
    if settings.optim.layer_decay != 1 or settings.init_from is not None:
        raise UserError(
            "the ablation images starts from fresh weights, and a ResNet has no blocks that learn at rates of their "
            "own: leave init_from and optim.layer_decay out."
        )
    # Batch norm's statistics are of a micro-batch, which must therefore be the step; and no kernel is to be chosen.
    convolved = settings.changed({"train.micro_batch": settings.train.rows_per_step, "train.kernel": "eager"})
    kinds = {"ViT": (settings, make_objective), "ResNet": (convolved, resnet_objective)}
    members = []
    for count in options.counts:
        for seed in seeds_of(options):
            for name, (own, make) in kinds.items():
                run = {"name": f"{name}-{count}-{seed}", "seed": seed, "runs": str(folder_of(options))}
                members.append(Member(name, count, own.changed({"data.examples": count, **run}), make))
    return train_members(members, options.metric)


ABLATIONS = {
    "labels": (compare_labels, "pretrained and fresh weights", "labels"),
    "pooling": (compare_pooling, "which vector the classifier reads", ""),
    "pretraining": (compare_pretraining, "what is pretrained, then fine-tuned", ""),
    "images": (compare_images, "ViT and ResNet of one size", "images"),
}


# ---- what it shows ----


def deciding_metric(run: str) -> str | None:
    """The metric that the settings of a run name, to decide which of its checkpoints is best."""
    settings = yaml.safe_load(Path(run, "config.yaml").read_text())
    metric: str | None = settings["objective"]["metric"]
    return metric


def choose_metric(scores: list[Score], asked: str | None) -> str:
    """The metric that is shown."""
    return asked or next(name for name in METRICS if name in scores[0].metrics)


def write_report(options: argparse.Namespace, scores: list[Score]) -> None:
    """results.md, results.json and results.png, in the folder of the ablation."""
    _, title, unit = ABLATIONS[options.ablation]
    folder, metric = folder_of(options), choose_metric(scores, options.metric or deciding_metric(scores[0].folder))
    summaries = summarise(scores, metric)
    seeds = f"{options.seeds} seeds, mean ± 95 % interval" if options.seeds > 1 else "one seed: no interval"
    lines = [f"{title}: {metric}, {options.steps:,} steps, {seeds}", "", *table(summaries, unit)]
    found = {
        "ablation": options.ablation,
        "metric": metric,
        "steps": options.steps,
        "summary": to_records(summaries),
        "runs": [score._asdict() for score in scores],
    }
    files.write_text(folder / "results.md", "\n".join(lines) + "\n")
    files.write_text(folder / "results.json", files.to_json(found, indent=1))
    draw_summaries(summaries, title, metric, unit, folder / "results.png")
    print("", *lines, "", f"  written: {folder}/results.md, results.json, results.png", sep="\n", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """`arguments` instead of the command line's."""
    options, rest = read_options(arguments)
    with one_sentence_errors(PROGRAM):
        compare, _, _ = ABLATIONS[options.ablation]
        scores = compare(options, rest)
        if is_main():
            write_report(options, scores)


if __name__ == "__main__":
    main()
