"""The command line: ``onpolicy train``, ``eval``, ``sweep`` ... (``onpolicy --help``)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onpolicy.utils.arguments import Band, above_zero, new_file, share, whole
from onpolicy.utils.quiet import quiet_libraries
from onpolicy.utils.terminal import plain, printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; errors that a user can mend are printed without a traceback."""
    quiet_libraries()
    parsed = _parsed(_parser(), arguments)
    try:
        return int(parsed.run(parsed) or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if not _is_for_users(error):
            raise
        print(printable(f"onpolicy {parsed.command}: {error}"), file=sys.stderr)
        return 2


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """``key=value`` may stand behind options too."""
    parsed, rest = parser.parse_known_args(arguments)
    if any(word.startswith("-") or "=" not in word for word in rest) or (rest and not hasattr(parsed, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides += rest
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="onpolicy", description="On-policy self-distillation for reasoning models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, run, meaning in (
        ("train", _train, "train; `run_dir=FOLDER` of an earlier run resumes it"),
        ("eval", _eval, "measure a model on the config's eval.sets"),
        ("check", _check, "resolve and validate a config without loading a model, and print it"),
    ):
        command = commands.add_parser(name, help=meaning, description=meaning)
        command.add_argument("config", type=Path, help="YAML file, e.g. configs/opsd.yaml")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. generator.max_tokens=512")
        command.set_defaults(run=run)
    _add_analyze(commands)
    report = commands.add_parser("report", help="runs as one HTML page: curves, tables, rollouts token by token")
    report.add_argument("runs", nargs="+", type=Path, help="run folders; several are laid side by side")
    report.add_argument("--output", type=Path, help="the page; by default report.html in the first run's folder")
    report.set_defaults(run=_report)
    _add_sweep(commands)
    _add_sft(commands)
    _add_forecast(commands)
    lab = commands.add_parser("lab", help="the paper's effect in miniature, on a reasoner of a million parameters")
    lab.add_argument(
        "what",
        nargs="?",
        default="demo",
        choices=("demo", "reproduce", "decisive", "pretrain"),
        help="demo (default): three arms and their report; reproduce: the paper's findings; decisive: protections against their "
        "controls; pretrain: the reasoner itself",
    )
    lab.add_argument("--output", type=Path, help="folder for what comes out; by default under runs/")
    lab.add_argument("--jobs", type=whole, default=1, help="runs at a time (default 1)")
    lab.set_defaults(run=_lab)
    diff = commands.add_parser("diff", help="what two configs change, axis by axis")
    diff.add_argument("one", type=Path, help="YAML file")
    diff.add_argument("other", type=Path, help="YAML file")
    diff.set_defaults(run=_diff)
    show = commands.add_parser("show", help="every option: default, meaning, source")
    show.add_argument("prefix", nargs="?", default="", help="only keys that start with this, e.g. generator")
    show.add_argument("--markdown", action="store_true", help="as docs/configuration.md")
    show.set_defaults(run=_show)
    listing = commands.add_parser("list", help="what can be named in a config")
    listing.add_argument("kind", nargs="?", help="context, divergence, reward, ...")
    listing.set_defaults(run=_list)
    doctor = commands.add_parser("doctor", help="what is installed, what works here, what to do about the rest")
    doctor.add_argument(
        "what", nargs="?", choices=("verl",), help="verl: whether verl finds our plug-in, also in Ray's workers"
    )
    doctor.set_defaults(run=_doctor)
    _add_verl(commands)
    return parser


def _add_sft(commands: Any) -> None:
    sft = commands.add_parser(
        "sft", help="off-policy self-distillation: fine-tune on own right answers, unguided and guided by a context"
    )
    sft.add_argument("config", type=Path, help="YAML file with a context, rewards and eval.sets")
    sft.add_argument("overrides", nargs="*", metavar="key=value")
    sft.add_argument("--examples", type=whole, default=800, help="problems answered right both ways (default 800)")
    sft.add_argument("--epochs", type=whole, default=3, help="times each answer is learned from (default 3)")
    sft.add_argument("--batch", type=whole, default=32, help="answers a step (default 32)")
    sft.add_argument("--seeds", type=int, nargs="+", default=[0], help="default 0")
    sft.add_argument(
        "--band", action=Band, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"),
        help="only problems whose unguided share of right answers lies within; the paper's: 0.125 0.5",
    )  # fmt: skip
    sft.add_argument("--context", default="teacher", help="the context that guided answers see (default teacher)")
    sft.add_argument("--output", type=Path, help="folder; by default runs/sft- and the config's name")
    sft.add_argument("--jobs", type=whole, default=1, help="runs at a time (default 1)")
    sft.set_defaults(run=_sft)


def _add_forecast(commands: Any) -> None:
    forecast = commands.add_parser("forecast", help="memory and hours that a run will need on GPUs, by arithmetic")
    forecast.add_argument("config", type=Path, help="YAML file, e.g. configs/paper/math.yaml")
    forecast.add_argument("overrides", nargs="*", metavar="key=value")
    forecast.add_argument("--gpu", default="h100", help="kind: a100, h100, h200 or b200 (default h100)")
    forecast.add_argument("--shape", type=Path, help="the model's config.json, where the model is not at hand")
    forecast.add_argument(
        "--completion-tokens", type=above_zero, help="mean answer; by default half of generator.max_tokens"
    )
    forecast.add_argument("--prompt-tokens", type=above_zero, default=200.0, help="mean problem (default 200)")
    forecast.add_argument("--utilisation", type=share, default=0.35, help="share of the FLOP/s (default 0.35)")
    forecast.add_argument("--bandwidth", type=share, default=0.5, help="share of it when sampling (default 0.5)")
    forecast.add_argument("--eval-problems", type=whole, default=600, help="in all sets together (default 600)")
    forecast.add_argument("--output", type=new_file, help="JSON file to write")
    forecast.set_defaults(run=_forecast)


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep", help="every arm of a grid with several seeds, compared; finished runs are kept"
    )
    sweep.add_argument("grid", type=Path, help="YAML file, e.g. configs/lab/decisive.yaml")
    sweep.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    sweep.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="an arm or a cross to run; may be given several times",
    )
    sweep.add_argument("--output", type=Path, help="folder of the runs; by default runs/ and the grid's name")
    place = sweep.add_mutually_exclusive_group()
    place.add_argument("--jobs", type=whole, default=1, help="runs at a time (default 1)")
    place.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="as many as a Ray cluster has room for: auto, host:port, or local for this machine alone",
    )
    sweep.add_argument("--cpus-per-run", type=whole, default=1, help="with --ray: cores of a run (default 1)")
    sweep.add_argument(
        "--gpus-per-run", type=float, help="with --ray: GPUs of a run, e.g. 0.5; by default 1 where the cluster has any"
    )
    sweep.set_defaults(run=_sweep)


def _add_verl(commands: Any) -> None:
    verl = commands.add_parser("verl", help="the same methods on released verl, in its environment (docs/verl.md)")
    kinds = verl.add_subparsers(dest="verl", required=True, metavar="WHAT")
    for name, meaning in (
        ("train", "check, then `python -m verl.trainer.main_ppo` with the config"),
        ("check", "compose and validate a config without loading a model, and print the method"),
    ):
        command = kinds.add_parser(name, help=meaning, description=meaning)
        command.add_argument("config", type=Path, help="YAML file, e.g. configs/verl/sdpo.yaml")
        command.add_argument(
            "overrides", nargs="*", metavar="key=value", help="in hydra's syntax, e.g. trainer.nnodes=2"
        )
        command.set_defaults(run=_verl)


def _add_analyze(commands: Any) -> None:
    analyze = commands.add_parser("analyze", help="questions to a config or a model, without training")
    kinds = analyze.add_subparsers(dest="analysis", required=True, metavar="WHAT")
    pressure = kinds.add_parser(
        "pressure", help="how hard the config's loss pushes markers of doubt down, before any training"
    )
    pressure.add_argument("config", type=Path, help="YAML file")
    pressure.add_argument("overrides", nargs="*", metavar="key=value")
    pressure.add_argument("--output", type=new_file, help="JSON file to write")
    pressure.set_defaults(run=_pressure)
    contexts = kinds.add_parser(
        "contexts", help="what the model's own answers are like under each context of the config"
    )
    contexts.add_argument("config", type=Path, help="YAML file")
    contexts.add_argument("overrides", nargs="*", metavar="key=value")
    contexts.add_argument(
        "--problems", type=whole, default=100, help="the first so many problems within the band (default 100)"
    )
    contexts.add_argument(
        "--band", action=Band, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"),
        help="only problems whose unguided share of right answers lies within; the paper's: 0.125 0.5",
    )  # fmt: skip
    contexts.add_argument("--output", type=new_file, help="JSON file to write, with every problem")
    contexts.add_argument("--plot", type=new_file, help="drawing to write, e.g. contexts.svg")
    contexts.set_defaults(run=_contexts)
    probes = kinds.add_parser(
        "probes", help="what leaving out, injecting and banning doubt does to the model's own answers"
    )
    probes.add_argument("config", type=Path, help="YAML file")
    probes.add_argument("overrides", nargs="*", metavar="key=value")
    probes.add_argument("--problems", type=whole, default=100, help="the first so many problems (default 100)")
    probes.add_argument("--continuations", type=whole, default=4, help="answers behind each cut (default 4)")
    probes.add_argument("--output", type=new_file, help="JSON file to write")
    probes.set_defaults(run=_probes)


def _train(arguments: argparse.Namespace) -> int:
    from onpolicy.run.launch import launch_training

    return launch_training(arguments.config, arguments.overrides)


def _eval(arguments: argparse.Namespace) -> int:
    from onpolicy.run.evaluate_command import launch_evaluation

    return launch_evaluation(arguments.config, arguments.overrides)


def _check(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.syntax import Syntax

    from onpolicy.config.resolve import resolve
    from onpolicy.config.schema import load, to_yaml
    from onpolicy.contracts import keep_to_contracts

    config = load(arguments.config, arguments.overrides)
    keep_to_contracts(resolve(config))
    console = Console()
    text = to_yaml(config)
    console.print(Syntax(text, "yaml", background_color="default") if console.is_terminal else text, markup=False)
    console.print(
        f"[green]✓[/green] {plain(arguments.config)} is valid: every key, name and option was found", highlight=False
    )
    return 0


def _pressure(arguments: argparse.Namespace) -> int:
    from onpolicy.experiments.analysis.commands import analyze_pressure

    return analyze_pressure(arguments.config, arguments.overrides, arguments.output)


def _contexts(arguments: argparse.Namespace) -> int:
    from onpolicy.experiments.analysis.answers import analyze_contexts

    a, (low, high) = arguments, arguments.band
    return analyze_contexts(a.config, a.overrides, a.output, a.plot, a.problems, (low, high))


def _probes(arguments: argparse.Namespace) -> int:
    from onpolicy.experiments.analysis.commands import analyze_probes

    return analyze_probes(
        arguments.config, arguments.overrides, arguments.output, arguments.problems, arguments.continuations
    )


def _report(arguments: argparse.Namespace) -> int:
    from onpolicy.experiments.report.page import write_report

    output = arguments.output or arguments.runs[0] / "report.html"
    shown = write_report(arguments.runs, output)
    size = output.stat().st_size / 2**20
    print(f"{output}  ({size:.1f} MB; {', '.join(f'{name}: {steps} steps' for name, steps in shown.items())})")
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    from onpolicy.experiments.sweep.sweep import sweep

    output = arguments.output or Path("runs") / arguments.grid.stem
    if arguments.ray is None:
        return sweep(arguments.grid, output, arguments.overrides, arguments.jobs, only=arguments.only)

    def cluster() -> Any:
        from onpolicy.experiments.sweep.ray_runs import RayRuns

        return RayRuns(arguments.ray, cpus=arguments.cpus_per_run, gpus=arguments.gpus_per_run)

    return sweep(arguments.grid, output, arguments.overrides, 1, cluster, arguments.only)


def _sft(arguments: argparse.Namespace) -> int:
    from onpolicy.experiments.sft.collect import Wanted
    from onpolicy.experiments.sft.sft import Training, sft

    a, (low, high) = arguments, arguments.band
    output = a.output or Path("runs") / f"sft-{a.config.stem}"
    wanted, training = Wanted(a.examples, (low, high), a.context), Training(a.epochs, a.batch, a.seeds)
    return sft(a.config, a.overrides, wanted, training, output, a.jobs)


def _forecast(arguments: argparse.Namespace) -> int:
    from onpolicy.experiments.forecast.command import print_forecast
    from onpolicy.experiments.forecast.forecast import Assumed

    a = arguments
    assumed = Assumed(
        a.gpu, a.utilisation, a.bandwidth, a.prompt_tokens, a.completion_tokens, eval_problems=a.eval_problems
    )
    return print_forecast(a.config, a.overrides, a.shape, assumed, a.output)


def _lab(arguments: argparse.Namespace) -> int:
    from onpolicy.experiments.lab.commands import lab

    return lab(arguments.what, arguments.output, arguments.jobs)


def _diff(arguments: argparse.Namespace) -> int:
    from onpolicy.experiments.methods.diff import print_difference

    return print_difference(arguments.one, arguments.other)


def _show(arguments: argparse.Namespace) -> int:
    from onpolicy.config.show import print_markdown, print_options

    return print_markdown() if arguments.markdown else print_options(arguments.prefix)


def _list(arguments: argparse.Namespace) -> int:
    from onpolicy.config.show import print_names

    return print_names(arguments.kind)


def _doctor(arguments: argparse.Namespace) -> int:
    from onpolicy.run.doctor import doctor, report

    if arguments.what is None:
        return doctor()
    from onpolicy.integrations.verl.doctor import checks

    return report("onpolicy doctor verl", checks())


def _verl(arguments: argparse.Namespace) -> int:
    from onpolicy.integrations.verl.command import print_check, train

    return (train if arguments.verl == "train" else print_check)(arguments.config, arguments.overrides)


def _is_for_users(error: Exception) -> bool:
    """Errors whose message says what to change; everything else is a bug and keeps its traceback."""
    from onpolicy.utils.disk import is_full

    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & FOR_USERS) or is_full(error)


FOR_USERS = {
    "ConfigError",
    "ContextError",
    "ContractError",
    "DataError",
    "GaveUp",
    "ModelError",
    "RenderingError",
    "PromptTooLong",
    "RewardError",
    "PreflightError",
    "CheckpointError",
    "DiskFull",
    "StaleRollouts",
    "ScheduleError",
    "LexiconError",
    "QueryError",
}
