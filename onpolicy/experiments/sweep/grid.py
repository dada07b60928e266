"""A grid file -> the runs of a sweep, each checked, and their arms compared before any of them runs.

The keys of a grid file are those of ``Grid``; onpolicy/experiments/sweep/sweep.py shows one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onpolicy.config.canonical import canonicalize
from onpolicy.config.compare import config_differences, fingerprint, shown
from onpolicy.config.keys import under
from onpolicy.config.merge import OBJECTS
from onpolicy.config.plain import Plain
from onpolicy.config.resolve import load_resolved, resolve
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schema import Config
from onpolicy.config.shipped import config_argument, shipped_configs
from onpolicy.config.values import as_written
from onpolicy.config.yaml_io import file_name, read_yaml
from onpolicy.experiments.sweep.budgets import RunKey
from onpolicy.experiments.sweep.compare import Confound
from onpolicy.run.checkpoint import Checkpoints
from onpolicy.run.run_dir import logged, refuse_other_settings
from onpolicy.run.trackers.jsonl import jsonl
from onpolicy.utils.errors import ConfigError, suggest

IGNORED_KEYS = ("seed", "run_dir", "logging", "checkpoint", "preflight", "distributed", "trainer.micro_batch_tokens")
"""Keys in which arms may always differ: what a run keeps, where and how fast it runs, not what a step computes."""
RENAMED = {"cross": "factors", "pools": "eval_groups"}
"""Keys of earlier versions -> their names now."""
FRONTIER = ("in_domain", "out_of_domain")
"""Keys of ``frontier``: the figure's axes, across and up."""
MOST_NAMED = 4
"""Keys that an error names."""
RESTORED = "restored"
"""A file with the steps of a run that was finished elsewhere, in its folder (onpolicy/experiments/sweep/kept_runs.py)."""


@dataclass
class Grid:
    """The contents of a grid file."""

    config: str
    arms: dict[str, Any]
    factors: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    eval_groups: dict[str, list[str]] = field(default_factory=dict)
    axes: list[str] = field(default_factory=list)
    """Beginnings of the config keys in which arms are compared; none: all arms may differ in one top-level section."""
    confounds: list[str] = field(default_factory=list)
    """Beginnings of keys that may differ besides; the comparison reports them."""
    frontier: dict[str, str] = field(default_factory=dict)
    """``in_domain`` and ``out_of_domain`` -> the set, or group of sets, of each axis of the frontier's figure; none: no figure."""
    confirm: dict[str, list[str]] = field(default_factory=dict)
    """Arms of the frontier -> the controls that each has to beat, where they are confirmed with seeds on which they were not chosen."""
    dose_response: list[str] = field(default_factory=list)
    """Sets, groups or metrics that are drawn over the realised dose of a bonus; none: no figure."""
    dose: str = ""
    """The term whose ``advantage`` is the bonus, token by token; empty: the rewards besides correctness are."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    arm: str
    factor: str
    seed: int
    config: Path
    overrides: tuple[str, ...]
    folder: Path
    settings: Config
    """The config, with file and overrides merged."""
    canonical: dict[str, Any]
    """The same in canonical form, with every default."""

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.arm, self.factor, f"seed {self.seed}") if part)

    @property
    def run(self) -> RunKey:
        """In the form that ``onpolicy.experiments.sweep.compare`` takes."""
        return self.arm, self.factor, self.seed, self.folder

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def finished(self) -> bool:
        """Raises ConfigError if the folder holds a run with other settings, or one with more steps."""
        done = self._steps_done()
        if done < self.settings.steps:
            return False
        refuse_other_settings(self.folder, resolve(self.settings))
        farthest = max([done, *(int(row["step"]) for row in logged(self.folder))])  # one that was cut off logs beyond
        if farthest > self.settings.steps:
            raise ConfigError(
                f"steps: {str(self.folder)!r} holds a run of {farthest} steps, the grid wants {self.settings.steps}. "
                f"Give steps={farthest}, or another --output."
            )
        return True

    def _steps_done(self) -> int:
        """-1 without a checkpoint."""
        if (self.folder / RESTORED).is_file():
            return int((self.folder / RESTORED).read_text())
        latest = Checkpoints(self.folder / "checkpoints", keep_last=1, best=None).latest()
        return -1 if latest is None else latest.step


def read_grid(path: Path) -> Grid:
    """Raises ConfigError for a file that is not a valid grid."""
    if not path.is_file():
        raise ConfigError(f"sweep: file {str(path)!r} does not exist")
    raw = read_yaml(path, "sweep grid")
    if not {"config", "arms"} <= raw.keys():
        name = config_argument(path)
        single = f"; this is the config of one run: onpolicy train {name}" if {"data", "objective"} & raw.keys() else ""
        raise ConfigError(f"{name}: expected at least 'config' and 'arms'{single}")
    for key in map(str, raw):
        if key in RENAMED:
            raise ConfigError(f"{path}: {key}: this key is now called {RENAMED[key]!r}")
        if key not in Grid.__dataclass_fields__:
            raise ConfigError(f"{path}: {key}: unknown key.{suggest(key, Grid.__dataclass_fields__)}")
    try:
        schema = OmegaConf.structured(Grid(config="", arms={}), flags=OBJECTS)
        merged = OmegaConf.merge(schema, as_written(raw, Grid, ""))
        # unresolved: "${seed}" in an arm means the run's own
        grid = Grid(**OmegaConf.to_container(merged, resolve=False))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {error.full_key}: {str(error).splitlines()[0]}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: expected keys and values under arms, factors and eval_groups, a list of seeds: {error}"
        ) from error
    if not grid.arms or not grid.seeds:
        raise ConfigError(f"{path}: expected at least one arm and one seed")
    for section in ("arms", "factors", "eval_groups"):
        for name, changes in getattr(grid, section).items():
            file_name(name, f"{path}: {section}.{name}")
            if section != "eval_groups" and not isinstance(changes, dict | None):
                raise ConfigError(f"{path}: {section}.{name}: got {changes!r}, expected keys and values to change")
    _check_keys(path, grid)
    _check_confirmed(path, grid)
    return grid


def _check_keys(path: Path, grid: Grid) -> None:
    known = Config.__dataclass_fields__
    for name in ("axes", "confounds"):
        for key in getattr(grid, name):
            section = _section(key)
            if section not in known:
                raise ConfigError(
                    f"{path}: {name}: got {key!r}, expected the beginning of a config's key, e.g. objective or trainer.lr."
                    f"{suggest(section, known)}"
                )


def _check_confirmed(path: Path, grid: Grid) -> None:
    if grid.confirm and not grid.frontier:
        raise ConfigError(f"{path}: confirm: expected a frontier, whose axes are what is confirmed")
    first, *others = grid.arms
    for arm, controls in grid.confirm.items():
        for place, name in ((f"confirm.{arm}", arm), *((f"confirm.{arm}", control) for control in controls)):
            if name not in others or (name == arm and arm in controls):
                raise ConfigError(
                    f"{path}: {place}: got {name!r}, expected arms other than {first!r}, and no arm as its own control."
                    f"{suggest(name, others)}"
                )


def check_frontier(path: Path, grid: Grid, sets: Collection[str]) -> None:
    """Raises ConfigError where the frontier has other axes than its two, or one is neither a set that is evaluated nor a group."""
    known = [*sets, *grid.eval_groups]
    if grid.frontier and set(grid.frontier) != set(FRONTIER):
        raise ConfigError(f"{path}: frontier: got {', '.join(grid.frontier)}, expected {' and '.join(FRONTIER)}")
    for axis, name in grid.frontier.items():
        if name not in known:
            raise ConfigError(
                f"{path}: frontier.{axis}: got {name!r}, expected a set of eval.sets or a group of eval_groups: {', '.join(known)}."
                f"{suggest(name, known)}"
            )


def check_readings(path: Path, grid: Grid, sets: Collection[str]) -> None:
    """Raises ConfigError where the dose-response names neither a set, a group, nor a metric, whose name has a slash."""
    known = [*sets, *grid.eval_groups]
    for name in grid.dose_response:
        if "/" not in name and name not in known:
            raise ConfigError(
                f"{path}: dose_response: got {name!r}, expected a set of eval.sets, a group of eval_groups ({', '.join(known)}), "
                f"or a metric, e.g. policy/entropy.{suggest(name, known)}"
            )


def check_dose(path: Path, grid: Grid, terms: Collection[str]) -> None:
    """Raises ConfigError where ``dose`` names no term of any arm's objective."""
    if grid.dose and grid.dose not in terms:
        raise ConfigError(
            f"{path}: dose: got {grid.dose!r}, expected a term of an arm's objective: {', '.join(terms)}.{suggest(grid.dose, terms)}"
        )


def check_eval_groups(path: Path, grid: Grid, sets: Collection[str]) -> None:
    """Raises ConfigError where an eval group names a set that is not evaluated, or no set, or has a set's name."""
    for group, names in grid.eval_groups.items():
        if not names or group in sets:
            expected = "at least one set of eval.sets" if not names else "a name that is no set's own"
            raise ConfigError(f"{path}: eval_groups.{group}: got {names!r}, expected {expected}")
        for name in names:
            if name not in sets:
                raise ConfigError(
                    f"{path}: eval_groups.{group}: got {name!r}, expected sets of eval.sets: {', '.join(sets)}"
                )


def run_folder(output: Path, arm: str, factor: str, seed: int) -> Path:
    """Where a sweep keeps a run."""
    return output / arm / factor / f"seed-{seed}"


def cells(path: Path, output: Path, overrides: Sequence[str] = ()) -> Iterator[Cell]:
    """Every run, validated: a mistake in the last arm is found before the first arm runs.

    Raises:
        ConfigError: as for one config, with the arm's name; or arms differ in keys that are not swept.
    """
    grid = read_grid(path)
    _refuse_own(path, grid, overrides)
    config, check = _config_of(path, grid), ConfoundCheck(path, grid)
    factors = grid.factors or {"": {}}
    terms: dict[str, None] = {}
    for seed in grid.seeds:
        for factor, shared in factors.items():
            side_by_side = []
            for arm, changed in grid.arms.items():
                folder = run_folder(output, arm, factor, seed)
                changes = [f"{k}={_yaml(v)}" for k, v in _outer_first((shared or {}) | (changed or {}))]
                name = folder.relative_to(output).as_posix()
                shown = (f"logging.name={_yaml(name)}", f"logging.group={_yaml(arm)}")
                own = (*shown, *changes, *overrides, f"seed={seed}", f"run_dir={_yaml(str(folder))}")
                try:
                    resolved = load_resolved(config, own)
                    _refuse_without_metrics(resolved)
                except ConfigError as error:
                    raise ConfigError(*(f"{_where(path, arm, factor)}: {text}" for text in error.problems)) from error
                check_eval_groups(path, grid, resolved.config.eval.sets)
                check_frontier(path, grid, resolved.config.eval.sets)
                check_readings(path, grid, resolved.config.eval.sets)
                terms |= dict.fromkeys(resolved.term_names)
                side_by_side.append(
                    Cell(arm, factor, seed, config, own, folder, resolved.config, canonicalize(resolved))
                )
            check_dose(path, grid, terms)
            check.compare_arms(side_by_side)
            yield from side_by_side


def _outer_first(changes: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """A whole list or section before what changes a part of it: an arm may give rewards, and a factor the weight of one."""
    return sorted(changes.items(), key=lambda change: change[0].count(".") + change[0].count("["))


def _config_of(path: Path, grid: Grid) -> Path:
    """The config that the runs share: a file, seen from the grid's folder, or a shipped config by its name."""
    file = path.parent / grid.config
    return file if file.is_file() else shipped_configs().get(grid.config, file)


def _refuse_own(path: Path, grid: Grid, overrides: Sequence[str]) -> None:
    """Raises ConfigError where an override sets a seed or a run folder, which the sweep sets."""
    given = [("the command line", o.partition("=")[0]) for o in overrides]
    for kind in ("arms", "factors"):
        given += [(f"{path}: {kind}.{name}", key) for name, own in getattr(grid, kind).items() for key in own or {}]
    for where, key in given:
        if key in ("seed", "run_dir"):
            raise ConfigError(
                f"{where}: {key}: every run of a sweep has its own; expected seeds in the grid, and --output"
            )


def _refuse_without_metrics(resolved: ResolvedConfig) -> None:
    """Raises ConfigError where a run would not log the metrics by which arms are compared."""
    if not any(tracker.function is jsonl for tracker in resolved.trackers):
        raise ConfigError(f"logging.trackers: got {resolved.config.logging.trackers!r}, expected jsonl among them")


def _yaml(value: Any) -> str:
    """JSON with every character escaped that YAML would not read literally; what stood without quotes stands without."""
    if isinstance(value, Plain):
        return str(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_yaml(name)}: {_yaml(inner)}' for name, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def refuse_doubles(runs: Sequence[Cell], overrides: Sequence[str]) -> None:
    """Raises ConfigError where two runs with the same seed have the same settings."""
    known: dict[str, Cell] = {}
    for cell in runs:
        other = known.setdefault(f"{cell.seed} {fingerprint(cell.canonical, IGNORED_KEYS)}", cell)
        if other is not cell:
            why = f" Do the overrides ({', '.join(overrides)}) take away what they differ in?" if overrides else ""
            raise ConfigError(f"sweep: the runs {other.name!r} and {cell.name!r} have the same settings.{why}")


def chosen(everything: Sequence[Cell], named: Sequence[str], seeds: Sequence[int] = ()) -> list[Cell]:
    """The runs of the arms, factors and seeds that are named; of all arms where no arm is named, and so on.

    Raises:
        ConfigError: a name is neither an arm nor a factor, or a seed is not the grid's.
    """
    all_seeds = sorted({c.seed for c in everything})
    for seed in seeds:
        if seed not in all_seeds:
            raise ConfigError(f"--seed: got {seed}, expected seeds of the grid: {', '.join(map(str, all_seeds))}.")
    arms, factors = ({getattr(c, kind) for c in everything} for kind in ("arm", "factor"))
    for name in named:
        if name not in arms | factors:
            known = sorted((arms | factors) - {""})
            raise ConfigError(
                f"--arm: got {name!r}, expected arms or factors: {', '.join(known)}.{suggest(name, known)}"
            )
    selected = [names.intersection(named) or names for names in (arms, factors)]
    own = seeds or all_seeds
    return [c for c in everything if c.arm in selected[0] and c.factor in selected[1] and c.seed in own]


def confounds(path: Path, grid: Grid, runs: Sequence[Cell]) -> list[Confound]:
    """In what arms differ besides the axes, as the grid declares; the same difference with every seed is reported once."""
    check = ConfoundCheck(path, grid)
    for place in dict.fromkeys((c.factor, c.seed) for c in runs):
        check.compare_arms([c for c in runs if (c.factor, c.seed) == place])
    return list(check.confounds)


class ConfoundCheck:
    """Checks that arms differ only in the grid's axes, and collects the confounds that the grid declares."""

    def __init__(self, path: Path, grid: Grid) -> None:
        self.path, self.grid = path, grid
        self.confounds: dict[Confound, None] = {}
        self._section: tuple[str, str, str] | None = None
        """Without axes: the one section that differs, and the arm and the key that showed it."""

    def compare_arms(self, runs: Sequence[Cell]) -> None:
        """Compares runs under one factor and with one seed with the first of them.

        Raises:
            ConfigError: a setting differs that is under no axis and no confound.
        """
        first, *others = runs
        reference = first.canonical
        for cell in others:
            unswept = []
            for key, one, other in config_differences(cell.canonical, reference, IGNORED_KEYS):
                value, there = shown(one), shown(other)
                if under(key, self.grid.confounds) and not under(key, self.grid.axes):
                    self.confounds[Confound(cell.arm, cell.factor, key, value, there)] = None
                elif not self._swept(cell.arm, key):
                    unswept.append((key, value, there))
            if unswept:
                raise ConfigError(self._refusal(cell, first.arm, unswept))

    def _swept(self, arm: str, key: str) -> bool:
        if self.grid.axes:
            return under(key, self.grid.axes)
        self._section = self._section or (_section(key), arm, key)
        return _section(key) == self._section[0]

    def _refusal(self, cell: Cell, first: str, unswept: Sequence[tuple[str, str, str]]) -> str:
        key, value, there = unswept[0]
        others = [name for name, *_ in unswept[1:MOST_NAMED]]
        more = f" and {len(unswept) - MOST_NAMED} more" if len(unswept) > MOST_NAMED else ""
        also = f" So do {', '.join(others)}{more}." if others else ""
        if self._section is None:
            why = f"which lies under no axis (axes: {', '.join(self.grid.axes)})"
        else:
            section, arm, seen = self._section
            why = f"and arm {arm!r} differs in {seen}: without axes arms may differ in one section only, here {section}"
        return (
            f"{_where(self.path, cell.arm, cell.factor)}: {key}: {value} differs from {there} in arm {first!r}, {why}.{also} "
            f"Give both arms the same value; or add {key} to the grid's axes if this is what is compared, or to its confounds "
            "if it differs besides: the comparison then says so."
        )


def _section(key: str) -> str:
    return re.split(r"[.\[]", key, maxsplit=1)[0]


def _where(path: Path, arm: str, factor: str) -> str:
    return f"{path}, arm {arm!r}{f' x {factor!r}' if factor else ''}"
