"""The command line: ``onpolicy train``, ``eval``, ``sweep`` ... (``onpolicy --help``).

COMMANDS holds, for each command, what it runs and the arguments that it passes on, in that order.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onpolicy
from onpolicy.config.shipped import find_config, shipped_configs
from onpolicy.rewards.base import RewardError
from onpolicy.utils.arguments import PassRateRange, Renamed, above_zero, new_file, share, whole
from onpolicy.utils.commands import Argument, Command, Group, build_parser, parse
from onpolicy.utils.completion import CONFIGS, FILES, SHELLS, completion_script
from onpolicy.utils.disk import is_full
from onpolicy.utils.errors import UserError
from onpolicy.utils.signals import Stopped
from onpolicy.utils.terminal import command_line, plain_notices, print_next, printable, quiet_libraries


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; errors meant for users are printed without a traceback."""
    quiet_libraries()
    plain_notices()
    parsed = parse(_parser(), arguments)
    try:
        return int(_run(parsed) or 0)
    except Stopped as stopped:
        again = stopped.args or (sys.argv[1:] if arguments is None else arguments)
        print(f"stopped; to go on: {command_line(again)}")
        return 130
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if not (isinstance(error, UserError | RewardError) or is_full(error)):
            raise
        print(printable(f"onpolicy {parsed.command}: {error}"), file=sys.stderr)
        return 2


def _run(parsed: argparse.Namespace) -> int | None:
    for name, argument in parsed.passed_on.items():
        if argument.is_config:
            setattr(parsed, name, find_config(getattr(parsed, name)))
    if not isinstance(parsed.run, str):
        status: int | None = parsed.run(parsed)
        return status
    module, _, function = parsed.run.partition(":")
    status = getattr(importlib.import_module(module), function)(*(getattr(parsed, name) for name in parsed.passed_on))
    return status


def _parser() -> argparse.ArgumentParser:
    about = "On-policy self-distillation for reasoning models."
    return build_parser("onpolicy", about, onpolicy.__version__, COMMANDS)


def _argument(
    *flags: str, complete: Mapping[str, str] | None = None, exclusive: bool = False, **options: Any
) -> Argument:
    if complete is None and options.get("type") in (Path, new_file):
        complete = FILES
    return Argument(flags, options, complete=complete, exclusive=exclusive)


def _config(
    name: str = "config", meaning: str = "YAML file, or a shipped config's name (`onpolicy list configs`)"
) -> Argument:
    return Argument((name,), {"type": Path, "help": meaning}, is_config=True, complete=CONFIGS)


def _overrides(meaning: str = "settings for this run, e.g. generator.max_tokens=512") -> Argument:
    return _argument("overrides", nargs="*", default=(), metavar="key=value", help=meaning)


def _sweep(arguments: argparse.Namespace) -> int:
    from onpolicy.experiments.sweep.clusters import cluster
    from onpolicy.experiments.sweep.sweep import look_closer, sweep

    a, output = arguments, arguments.output or Path("runs") / arguments.grid.stem
    place = cluster(output, a.slurm, a.ray, a.cpus_per_run, a.gpus_per_run)
    code = sweep(a.grid, output, a.overrides, a.jobs, place, a.arm, a.seed)
    if code == 0:
        print_next(look_closer(output))
    return code


def _sft(arguments: argparse.Namespace) -> int:
    from onpolicy.experiments.sft.sft import Training, sft
    from onpolicy.experiments.sft.traces import TraceRequest

    a, (low, high) = arguments, arguments.pass_rate
    output = a.output or Path("runs") / f"sft-{a.config.stem}"
    request, training = TraceRequest(a.examples, (low, high), a.context), Training(a.epochs, a.batch, a.seeds)
    return sft(a.config, a.overrides, request, training, output, a.jobs)


def _forecast(arguments: argparse.Namespace) -> int:
    from onpolicy.experiments.forecast.forecast import Assumptions
    from onpolicy.experiments.forecast.print_forecast import print_forecast

    a = arguments
    assumed = Assumptions(
        a.gpu, a.utilisation, a.bandwidth, a.prompt_tokens, a.completion_tokens, a.ranks, a.eval_problems
    )
    return print_forecast(a.config, a.overrides, a.model_config, assumed, a.output, a.json)


def _completion(arguments: argparse.Namespace) -> None:
    print(completion_script(_parser(), arguments.shell, list(shipped_configs())))


def _doctor(arguments: argparse.Namespace) -> int:
    from onpolicy.run.doctor import doctor, report

    if arguments.environment is None:
        return doctor(arguments.json)
    from onpolicy.integrations.verl.doctor import checks

    return report("onpolicy doctor verl", checks(), arguments.json)


def _output(meaning: str, **options: Any) -> Argument:
    return _argument("--output", type=options.pop("type", Path), help=meaning, **options)


CONFIG, OVERRIDES = _config(), _overrides()
JSON_OUTPUT = _output("JSON file to write", type=new_file)
JSON = _argument("--json", action="store_true", help="print JSON, and nothing else on standard output")
JOBS = _argument("--jobs", type=whole, default=1, help="number of runs at the same time (default 1)")
PASS_RATE = _argument(
    "--pass-rate", action=PassRateRange, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"),
    help="keep problems whose pass rate without a context lies in [LOW, HIGH] (the paper: 0.125 0.5)",
)  # fmt: skip
WAS_BAND = _argument("--band", action=Renamed, to="--pass-rate")
LAB = {
    "demo": "(default) three arms and their report",
    "reproduce": "the paper's findings",
    "decisive": "protections of hedging words against their controls",
    "feedback": "programs whose errors are told, and what learning them does to searches",
    "headroom": "the paper's findings on a task of which the model knows part",
    "frontier": "what arms learn against what they keep, on the same task",
    "pretrain": "trains the model itself",
    "learn_interpreter": "trains it further, for feedback",
    "learn_partial": "trains it further, for headroom",
    "pretrain_large": "a reasoner of five times the size, for headroom too, in three rounds",
}
"""What ``onpolicy lab`` does."""
VERL_CONFIG = (
    _config("config", "YAML file, or a shipped config's name, e.g. verl/sdpo"),
    _overrides("in hydra's syntax, e.g. trainer.nnodes=2"),
)

COMMANDS: dict[str, Command | Group] = {
    "train": Command(
        "onpolicy.experiments.report.after_training:train_and_report",
        "train a model; with `run_dir=FOLDER` of an earlier run, resume that run",
        (CONFIG, OVERRIDES),
    ),
    "eval": Command(
        "onpolicy.run.evaluate_command:launch_evaluation",
        "evaluate a model on the sets under eval.sets",
        (CONFIG, OVERRIDES, JSON),
    ),
    "check": Command(
        "onpolicy.experiments.methods.print_check:print_config_check",
        "validate a config without loading a model; report every problem, or print what the run will do",
        (
            CONFIG,
            OVERRIDES,
            _argument("--full", exclusive=True, action="store_true", help="print the config with all defaults, as YAML"),
            _argument("--json", exclusive=True, action="store_true", help="print summary and config as JSON"),
        ),
    ),
    "preview": Command(
        "onpolicy.run.print_preview:print_preview",
        "show what student and teachers will read, from your data and the tokenizer alone; loads no weights",
        (
            CONFIG,
            OVERRIDES,
            _argument("--rows", type=whole, default=2, help="number of problems to show (default 2)"),
            _argument("--json", action="store_true", help="print the problems as JSON, nothing shortened"),
        ),
    ),
    "analyze": Group(
        "measure a config or a model without training",
        {
            "pressure": Command(
                "onpolicy.experiments.analysis.pressure:analyze_pressure",
                "how strongly the config's loss lowers the probability of hedging words, before any training",
                (CONFIG, OVERRIDES, JSON_OUTPUT),
            ),
            "contexts": Command(
                "onpolicy.experiments.analysis.contexts:analyze_contexts",
                "how each context of the config changes the model's own answers",
                (
                    CONFIG,
                    OVERRIDES,
                    _output("JSON file to write, with every problem", type=new_file),
                    _argument("--plot", type=new_file, help="figure to write, e.g. contexts.svg"),
                    _argument("--problems", type=whole, default=100, help="number of problems (default 100)"),
                    PASS_RATE,
                    WAS_BAND,
                ),
            ),
            "probes": Command(
                "onpolicy.experiments.analysis.probes:analyze_probes",
                "what removing, inserting and banning hedging words does to the model's own answers",
                (
                    CONFIG,
                    OVERRIDES,
                    JSON_OUTPUT,
                    _argument("--problems", type=whole, default=100, help="number of problems (default 100)"),
                    _argument("--continuations", type=whole, default=4, help="completions after each cut (default 4)"),
                ),
            ),
        },
    ),
    "diagnose": Command(
        "onpolicy.experiments.diagnose.diagnose_command:run_diagnosis",
        "is training harming my model? compare two checkpoints of any trainer on the same problems, on one page",
        (
            _argument("--base", required=True, metavar="MODEL", complete=FILES, help="the model before training: a folder or hub id"),
            _argument("--trained", required=True, metavar="MODEL", complete=FILES, help="the model after training"),
            _argument(
                "data", nargs="?", metavar="DATA", complete=FILES,
                help="file, folder or hub id with problems and answers, or a config whose eval.sets are asked (default: word problems)",
            ),
            _overrides("settings, e.g. eval.max_tokens=2048 seed=1 generator.name=vllm"),
            _argument("--problems", type=whole, default=40, help="number of problems, of all sets together (default 40)"),
            _argument("--samples", type=whole, default=8, help="answers to each problem (default 8)"),
            _argument("--no-probes", dest="probes", action="store_false", help="leave out the probes of what uncertainty is for"),
            _output("folder of the answers and the page; one that was cut off goes on there (default: under runs/)"),
            JSON,
        ),
    ),
    "report": Command(
        "onpolicy.experiments.report.report_command:report_runs",
        "write one HTML page about runs: curves, tables, rollouts token by token",
        (
            _argument("runs", nargs="+", type=Path, help="run folders; several are compared"),
            _output("HTML file to write (default: report.html in the first run folder)"),
        ),
    ),
    "push": Command(
        "onpolicy.integrations.hub.push:push",
        "write the model card of a run, and upload its last model with it to the Hugging Face Hub",
        (
            _argument("folder", type=Path, metavar="RUN", help="folder of a finished run"),
            _argument("--to", metavar="REPO", help="owner/name on the hub, or a name of your own (default: the run's name)"),
            _argument("--public", action="store_true", help="create the repository for everybody to see (default: for you alone)"),
            _argument("--dry-run", action="store_true", help="write the card and list the files, upload nothing"),
        ),
    ),
    "export-inspect": Command(
        "onpolicy.integrations.inspect_logs:export_inspect",
        "write a run's evaluations as logs of Inspect, for `inspect view`",
        (
            _argument("folder", type=Path, metavar="RUN", help="folder of a run that was evaluated"),
            _output("folder of the logs (default: inspect in the run's folder)"),
        ),
    ),
    "view": Command(
        "onpolicy.experiments.view.view_command:view_runs",
        "the report of runs while they train, in a browser on this machine: curves, every kept sample, tokens",
        (
            _argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders in which runs are"),
            _argument("--port", type=whole, help="port to listen on (default: 8571, or where that is taken any that is free)"),
            _argument("--wait", action="store_true", help="wait for folders that are not there yet"),
        ),
    ),
    "sweep": Command(
        _sweep,
        "run every arm of a grid with several seeds and compare the arms; finished runs are kept",
        (
            _config("grid", "YAML file, or a shipped grid's name, e.g. lab/decisive"),
            _overrides("settings for every run"),
            _argument("--arm", action="append", default=[], metavar="NAME", help="an arm, or level of a factor, to run; can be repeated"),
            _argument("--seed", action="append", type=int, default=[], help="a seed of the grid to run; can be repeated (default: all)"),
            _argument("--only", action=Renamed, to="--arm"),
            _output("folder of the runs (default: runs/ and the grid's name)"),
            _argument("--jobs", exclusive=True, type=whole, default=1, help="number of runs at the same time (default 1)"),
            _argument(
                "--ray", exclusive=True, metavar="ADDRESS",
                help="run on a Ray cluster, as many at a time as it has resources for: auto, host:port, or local (this machine)",
            ),
            _argument(
                "--slurm", exclusive=True, action="append", metavar="SETTINGS", complete=FILES,
                help="run as jobs of Slurm: key=value,... or a YAML file, e.g. time=4:00:00,gpus=1,partition=h100; can be repeated",
            ),
            _argument("--cpus-per-run", type=whole, default=1, help="with --ray: cores per run (default 1)"),
            _argument("--gpus-per-run", type=float, help="with --ray: GPUs per run, e.g. 0.5 (default: 1 if the cluster has any)"),
        ),
    ),
    "sft": Command(
        _sft,
        "off-policy self-distillation: fine-tune on the model's own correct answers, with and without a context",
        (
            _config("config", "YAML file with a context, rewards and eval.sets, or a shipped config's name"),
            OVERRIDES,
            _argument("--examples", type=whole, default=800, help="problems answered correctly in both ways (default 800)"),
            _argument("--epochs", type=whole, default=3, help="passes over the answers (default 3)"),
            _argument("--batch", type=whole, default=32, help="answers per step (default 32)"),
            _argument("--seeds", type=int, nargs="+", default=[0], help="one run per arm and seed (default 0)"),
            PASS_RATE,
            WAS_BAND,
            _argument("--view", action=Renamed, to="--context"),
            _argument("--context", default="teacher", help="context that guided answers are sampled with (default teacher)"),
            _output("folder (default: runs/sft- and the config's name)"),
            JOBS,
        ),
    ),
    "parity": Command(
        "onpolicy.experiments.parity.table:print_parity",
        "compare each method's loss and gradient with the published code whose name it carries",
        (
            _argument("methods", nargs="*", metavar="METHOD", help="a method, e.g. rloo; can be repeated (default: all)"),
            _output("JSON file to write"),
        ),
    ),
    "forecast": Command(
        _forecast,
        "estimate the GPU memory and hours of a run by arithmetic",
        (
            CONFIG,
            OVERRIDES,
            _argument("--gpu", default="h100", help="h100 (default), h200, rtx4090, ... or e.g. 24GiB,165TFLOP/s,1.01TB/s"),
            _argument("--shape", action=Renamed, to="--model-config"),
            _argument("--model-config", type=Path, help="config.json of the model, if the model itself is not available"),
            _argument("--completion-tokens", type=above_zero, help="mean completion length (default: half of generator.max_tokens)"),
            _argument("--prompt-tokens", type=above_zero, default=200.0, help="mean prompt length (default 200)"),
            _argument("--utilisation", type=share, default=0.35, help="fraction of the peak FLOP/s that is reached (default 0.35)"),
            _argument("--bandwidth", type=share, default=0.5, help="fraction of the memory bandwidth that sampling reaches (default 0.5)"),
            _argument("--ranks", type=whole, default=1, help="ranks, one on each GPU, where trainer.devices is no number (default 1)"),
            _argument("--eval-problems", type=whole, default=150, help="problems of a set without a number in the config (default 150)"),
            JSON_OUTPUT,
            JSON,
        ),
    ),
    "lab": Command(
        "onpolicy.experiments.lab.lab_command:run_lab",
        "reproduce the paper's effect in miniature, with a model of one million parameters",
        (
            _argument(
                "what", nargs="?", default="demo", choices=tuple(LAB),
                help="; ".join(f"{name}: {meaning}" for name, meaning in LAB.items()),
            ),
            _output("folder for the results (default: under runs/)"),
            JOBS,
        ),
    ),
    "diff": Command(
        "onpolicy.experiments.methods.diff:print_difference",
        "show how two configs differ, axis by axis",
        (_config("one"), _config("other"), JSON),
    ),
    "show": Command(
        "onpolicy.config.show:show",
        "show every option in two lines: type, default, meaning, source; or search for some",
        (
            _argument("text", nargs="?", default="", help="a section, a key, or words to search for, e.g. lr, generator, 'warm up'"),
            _argument("--markdown", action="store_true", help="as docs/configuration.md"),
            JSON,
        ),
    ),
    "list": Command(
        "onpolicy.config.show:print_names",
        "list the plug-ins that a config can name, or the shipped configs",
        (_argument("kind", nargs="?", help="configs, context, divergence, reward, ..."), JSON),
    ),
    "doctor": Command(
        _doctor,
        "check what is installed, what works on this machine, and how to fix the rest",
        (
            _argument(
                "environment", nargs="?", choices=("verl",),
                help="verl: check that verl finds our plug-in, also in Ray's workers",
            ),
            JSON,
        ),
    ),
    "completion": Command(
        _completion,
        "print what completes these commands in a shell: eval \"$(onpolicy completion bash)\"",
        (_argument("shell", choices=SHELLS, help="the shell: bash, zsh or tcsh"),),
    ),
    "verl": Group(
        "run the same methods on released verl, in its own environment (docs/verl.md)",
        {
            "train": Command(
                "onpolicy.integrations.verl.command:train_on_verl",
                "check the config, then run `python -m verl.trainer.main_ppo` with it",
                VERL_CONFIG,
            ),
            "check": Command(
                "onpolicy.integrations.verl.command:print_check",
                "compose and validate a config without loading a model, and print what the run will do",
                (*VERL_CONFIG, _argument("--json", action="store_true", help="print summary and method as JSON")),
            ),
            "data": Command(
                "onpolicy.integrations.verl.problems:write_problems",
                "write the problems of a config of onpolicy's own trainer as a parquet file for verl, e.g. an environment's",
                (
                    CONFIG,
                    OVERRIDES,
                    _output("parquet file to write", type=new_file, required=True),
                    _argument("--set", metavar="NAME", help="a set under eval.sets, in place of data"),
                ),
            ),
        },
    ),
}  # fmt: skip
