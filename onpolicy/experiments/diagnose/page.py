"""A diagnosis as one HTML file: no script, no server, no network."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path

from onpolicy.experiments.diagnose.findings import Findings, LostProblem, shown_difference, shown_value
from onpolicy.experiments.diagnose.measures import Measured
from onpolicy.experiments.diagnose.verdict import RULES
from onpolicy.utils.disk import atomic_write

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
LONGEST = 3000
"""Characters of an answer that are shown."""


def write_page(found: Findings, output: Path) -> None:
    """Writes the page."""
    atomic_write(output, page_of(found).encode(errors="replace").decode())


def page_of(found: Findings) -> str:
    """The page, from top to bottom: verdict, what was asked, measures, probes, lost problems, rules."""
    css = (files("onpolicy.experiments.report") / "page.css").read_text()
    css += (files("onpolicy.experiments.diagnose") / "page.css").read_text()
    verdict = found.verdict
    lines = "".join(f"<p>{_text(line)}</p>" for line in (*verdict.details, *found.notes))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<link rel="icon" href="data:,">\n'
        f"<title>{_text(found.trained)} against {_text(found.base)}</title>\n<style>{css}</style>\n</head>\n<body>\n"
        "<header><h1>onpolicy <span>diagnosis</span></h1></header>\n<main>\n"
        f'<section id="verdict" class="{verdict.found}"><p class="head">{_text(verdict.headline)}</p>{lines}</section>\n'
        f"{_facts(found)}\n<section><h2>Measures</h2>{''.join(_measures(found))}</section>\n"
        f"<section><h2>Does expressed uncertainty have a function?</h2>{''.join(_probes(found))}</section>\n"
        f"<section><h2>Problems lost</h2>{''.join(_lost(found))}</section>\n"
        f"<section><h2>How the verdict is made</h2><ol>{''.join(f'<li>{_text(rule)}</li>' for rule in RULES)}</ol></section>\n"
        "</main>\n</body>\n</html>\n"
    )


def _facts(found: Findings) -> str:
    asked = ", ".join(f"{number} of {name}" for name, number in found.asked.items())
    facts: Mapping[str, object] = {
        "base": found.base,
        "trained": found.trained,
        "problems": f"{found.problems}: {asked}" if len(found.asked) > 1 else asked,
        "answers": f"{found.samples} to each problem, from each model",
        **found.settings,
    }
    return f"<dl>{''.join(f'<dt>{_text(name)}</dt><dd>{_text(value)}</dd>' for name, value in facts.items())}</dl>"


def _measures(found: Findings) -> Iterator[str]:
    yield (
        '<p class="note">Trained minus base, the 95 % bootstrap interval over problems below it. p: of the primary measures '
        "alone, by the rules below; those that differ are set bold. A bar reaches from -1 to 1 for shares, else from -100 % to "
        "+100 % of the base. Below a value: the problems, tokens or answers that it is taken over. Uncertainty is self_doubt, hedges and "
        "alternatives together; neutral words are the control. What neither model has is left out.</p>"
    )
    yield '<div class="wide"><table><tr><th>measure</th><th>base</th><th>trained</th><th>difference</th>'
    yield '<th class="bar"></th><th>p</th></tr>'
    by_set = found.by_set if len(found.by_set) > 1 else ()
    for group in dict.fromkeys(m.group for m in found.shown):
        yield f'<tr class="group"><th colspan="6">{_text(group)}</th></tr>'
        yield from (_row(m, m.name) for m in found.shown if m.group == group)
        yield from (_row(m, f"accuracy: {m.name}") for m in by_set if m.group == group)
    yield "</table></div>"


def _row(m: Measured, name: str) -> str:
    mean, interval = shown_difference(m)
    values = "".join(
        f"<td>{shown_value(m, value)}<small>of {count}</small></td>"
        for value, count in zip((m.base, m.trained), m.counted, strict=True)
    )
    return (
        f'<tr class="{"differs" if m.differs else ""}"><td>{_text(name)}</td>{values}<td>{mean}<small>{interval}</small></td>'
        f'<td class="bar">{_bar(m)}</td><td>{"" if m.p is None else f"{m.p:.3f}"}</td></tr>'
    )


def _bar(m: Measured) -> str:
    """The interval beside zero."""
    d = m.difference if m.share else m.relative
    if d is None:
        return ""
    low, mean, high = (65 + 62 * min(max(value, -1.0), 1.0) for value in (d.low, d.mean, d.high))
    return (
        f'<svg viewBox="0 0 130 14" aria-hidden="true"><line class="zero" x1="65" x2="65" y1="0" y2="14"/>'
        f'<line class="span" x1="{low:.1f}" x2="{high:.1f}" y1="7" y2="7"/><circle cx="{mean:.1f}" cy="7" r="3.2"/></svg>'
    )


def _probes(found: Findings) -> Iterator[str]:
    yield (
        '<p class="note">A model\'s own answers are cut at one of their markers and continued after it or, without it, before it; and '
        "markers, or neutral words, are banned throughout. Where uncertainty has a function, leaving it out costs accuracy, and banning it "
        "costs more than banning neutral words does.</p>"
    )
    if any(probed.probes for probed in found.probes.values()):
        yield '<div class="wide"><table><tr><th>probe</th><th>model</th><th>problems</th><th>accuracy</th><th>difference</th></tr>'
        for name, probed in found.probes.items():
            for p in probed.probes:
                d = p.difference
                yield (
                    f"<tr><td>{_text(p.arm)} – {_text(p.against)}</td><td>{name}</td><td>{p.problems}</td>"
                    f"<td>{p.accuracy.mean:.2f}</td><td>{d.mean:+.2f}<small>{d.low:+.2f} to {d.high:+.2f}</small></td></tr>"
                )
        yield "</table></div>"
    yield from (f"<p>{name}: no probes: {_text(p.why_not)}</p>" for name, p in found.probes.items() if p.why_not)


def _lost(found: Findings) -> Iterator[str]:
    most = f" The {len(found.lost)} that the base solved most often:" if found.lost else ""
    yield (
        f"<p>{found.lost_in_all} of {found.problems} problems were solved by the base at least once in {found.samples} answers and by the "
        f"trained model never; {found.gained} the other way round. With equal models both numbers are alike.{most}</p>"
    )
    yield from map(_lost_problem, found.lost)


def _lost_problem(lost: LostProblem) -> str:
    return (
        f"<details><summary>{_text(lost.id)} <small>{_text(lost.set)}, the base right {lost.solved} times</small></summary>"
        f"<pre>{_clipped(lost.question)}</pre>"
        f'<div class="both"><div><h3>base, a right answer</h3><pre>{_clipped(lost.base)}</pre></div>'
        f"<div><h3>trained, its first answer</h3><pre>{_clipped(lost.trained)}</pre></div></div></details>"
    )


def _clipped(text: str) -> str:
    return _text(text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST} more characters)")


def _text(value: object) -> str:
    return html.escape(str(value))
