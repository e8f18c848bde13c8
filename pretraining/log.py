"""What a run tells: a progress bar, metrics.jsonl, curves, and Accelerate's trackers."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from accelerate import Accelerator, PartialState
from tqdm import tqdm

from pretraining import files
from pretraining.checkpoint import State
from pretraining.errors import UserError, one_line
from pretraining.settings import LogSettings, Settings

GROUPS = 25  # Classes or locales whose metrics are printed.


def wandb_mode(settings: LogSettings) -> str:
    """`auto` is online where wandb knows an account; never a question on the terminal."""
    if settings.wandb != "auto":
        return settings.wandb
    import wandb

    return os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")


def flat(resolved: str) -> dict[str, bool | int | float | str]:
    """Resolved settings by their names on the command line, of plain values: tensorboard takes no other."""
    return {
        ".".join(filter(None, (section, name))): value if isinstance(value, bool | int | float) else str(value)
        for section, values in (yaml.safe_load(resolved) or {}).items()
        for name, value in (values if isinstance(values, dict) else {"": values}).items()
    }


class Log:
    """Speaks on the main process alone."""

    def __init__(self, process: PartialState, folder: Path, settings: LogSettings):
        self.folder, self.settings = folder, settings
        self.main = process.is_main_process
        self.path = folder / "metrics.jsonl"
        self.bar: tqdm | None = None
        self.accelerator: Accelerator | None = None

    def say(self, line: str) -> None:
        if self.main:
            tqdm.write(line)

    @contextmanager
    def running(self, accelerator: Accelerator, settings: Settings, state: State) -> Iterator[None]:
        """The run's folder, trackers and bar, from here to the end; then the curves, whatever the end was.

        What metrics.jsonl holds of steps after `state.step` is forgotten: a resumed run does those steps again, and one
        that starts at step 0 evaluates there again.
        """
        if self.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            if state.step:
                self.tell_changes(settings, state.step)
            files.write_text(self.folder / "config.yaml", settings.resolved)
            kept = [line for line in self.read() if line["step"] <= state.step > 0]
            files.write_text(self.path, "".join(f"{files.to_json(line)}\n" for line in kept))
            self.bar = tqdm(total=100, bar_format="{desc} {percentage:3.0f}%|{bar}| {postfix}", disable=None)
        self.accelerator = accelerator
        accelerator.wait_for_everyone()
        if self.settings.trackers:
            import wandb  # a second, which a run without trackers does not need

            # Offline wandb makes a folder for each start; the id makes one run of them.
            options = {
                "name": settings.name,
                "id": state.run_id,
                "resume": "allow",
                "mode": wandb_mode(self.settings),
                "dir": str(self.folder),
                "settings": wandb.Settings(silent=True),
            }
            trackio = {"name": f"{settings.name}-{state.run_id}", "resume": "allow"}
            trackers = {"wandb": options, "trackio": trackio}
            accelerator.init_trackers(self.settings.project, flat(settings.resolved), trackers)
        try:
            yield
        finally:
            if self.main:
                if self.bar is not None:
                    self.bar.close()
                self.attempt("curves.png", self.draw_curves)
            if self.settings.trackers:
                # Not end_training(), which would end the process group too, and the model is yet to be exported.
                for tracker in accelerator.trackers:
                    self.attempt(f"the tracker {tracker.name}", tracker.finish)

    def draw_curves(self) -> None:
        from pretraining.pictures.charts import draw_curves  # at the end, if at all: a start need not wait for it

        draw_curves(self.read(), self.folder / "curves.png")

    def attempt(self, what: str, finish: Callable[[], None]) -> None:
        """Says what could not be finished: it is worth neither the run's model nor the error that the run ends with."""
        try:
            finish()
        except Exception as error:
            self.say(f"{what} could not be finished: {type(error).__name__}: {one_line(error)}")

    def tell_changes(self, settings: Settings, step: int) -> None:
        """Says what the folder's config.yaml has otherwise, which a resumed run writes anew."""
        config = self.folder / "config.yaml"
        if not config.exists():
            return
        try:
            before, now = flat(config.read_text()), flat(settings.resolved)
        except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
            self.say(f"{config} is damaged ({one_line(error)}): what has changed is not told, and it is written anew")
            return
        changed = [f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
        if changed:
            self.say(f"from step {step} on: {', '.join(changed)}")
        if new := [name for name in now if name not in before]:
            self.say(
                f"{config} does not have {', '.join(new[:3])}{' and more' if new[3:] else ''}: it was cut short, or an "
                "older version wrote it; it is written anew"
            )

    def read(self) -> list[dict]:
        """The lines of metrics.jsonl; a last one that a kill cut short is left out.

        Raises:
            UserError: another line is damaged.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        try:
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except ValueError as error:
            raise UserError(f"{self.path} is damaged ({one_line(error)}): mend it, or move it away.") from error

    def write(self, metrics: dict[str, float], step: int, progress: float) -> None:
        """One line everywhere: `metrics` after `step` steps, at `progress` (0 to 1) of the budget."""
        if self.settings.trackers:
            assert self.accelerator is not None  # running
            self.accelerator.log(metrics, step=step)
        if not self.main:
            return
        with self.path.open("a") as file:
            file.write(files.to_json({"step": step, **metrics}) + "\n")
        speed = next((name for name in metrics if name.endswith("_per_second")), None)
        if speed is None:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            self.say(f"step {step}: {shown}")
            return
        left = metrics["seconds"] / progress * (1 - progress)
        rate = f"{metrics[speed]:,.0f} {speed.removesuffix('_per_second')}/s"
        line = (
            f"loss {metrics['loss']:.3f}  lr {metrics['learning_rate']:.1e}  "
            f"{rate}  MFU {metrics['mfu']:.0%}  {clock(left)} left"
        )
        assert self.bar is not None
        if self.bar.disable:
            self.say(f"step {step} ({progress:.0%}): {line}")
        else:
            self.bar.set_description_str(f"step {step}", refresh=False)
            self.bar.set_postfix_str(line, refresh=False)
            self.bar.update(100 * progress - self.bar.n)
            self.bar.refresh()


def clock(seconds: float) -> str:
    """h:mm:ss"""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def report(step: int, examples: int, metrics: dict[str, float], signatures: dict[str, str]) -> str:
    """How good the exported weights are; of many groups (classes, locales) the worst."""
    lines = [f"held out, {examples:,} examples, the weights of step {step:,}:"]
    groups = sorted((name for name in metrics if " " in name), key=metrics.__getitem__)
    for name, value in metrics.items():
        if name in groups[GROUPS:]:
            continue
        name = name.removeprefix("eval_")
        lines.append(f"  {name:18} {value:.4f}  {signatures.get(name, '')}".rstrip())
    if len(groups) > GROUPS:
        lines.append(f"  and {len(groups) - GROUPS:,} that are better, in results.json")
    return "\n".join(lines)
