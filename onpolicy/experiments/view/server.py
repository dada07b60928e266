"""The page of runs and what its script asks for, on loopback: read-only, and no path in a request is ever opened."""

from __future__ import annotations

import gzip
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from onpolicy.experiments.report.curves import curves_of
from onpolicy.experiments.report.page import FETCHED, report_page
from onpolicy.experiments.report.run_data import arms_of, names_of
from onpolicy.experiments.report.samples import ORDERS, Query, in_order, query_of, read_sample
from onpolicy.experiments.view.followed_run import FollowedRun, number_of
from onpolicy.utils.json_lines import finite

LOOPBACK = "127.0.0.1"
PER_PAGE = 20
"""Samples of an answer."""
MOST_OF_A_PROBLEM = 400
"""Samples of one problem, over all steps."""
OWN = ("same-origin", "none")
"""What a browser says of requests of the page itself, or typed by the user."""
MOST_FIELDS = 32
"""Of a request."""
Parameters = Mapping[str, str]


class Followed:
    """The runs of a view, and the answers about them; one request at a time."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.runs = [FollowedRun(folder, name) for folder, name in zip(folders, names_of(folders), strict=True)]
        self._lock = threading.Lock()
        self._curves: tuple[list[str], Any] = ([], None)
        self.answers: dict[str, Callable[[Parameters], Any]] = {
            "/runs": self._whole,
            "/poll": self._changes,
            "/samples": self._samples,
            "/problem": self._problem,
            "/rollouts": self._rollouts,
            "/rollout": self._rollout,
        }

    def answer(self, path: str, parameters: Parameters) -> Any:
        """What the page asks for; None where there is nothing of that name."""
        found = self.answers.get(path)
        if found is None:
            return None
        with self._lock:
            for run in self.runs:
                run.update()
            return found(parameters)

    def _whole(self, _: Parameters) -> dict[str, Any]:
        """All runs with their curves, thinned."""
        cursors = [run.cursor for run in self.runs]
        if self._curves[0] != cursors:
            self._curves = cursors, curves_of([run.columns for run in self.runs])
        runs = [{**run.whole(), "curves": curves} for run, curves in zip(self.runs, self._curves[1], strict=True)]
        return {"now": time.time(), "runs": runs, "arms": arms_of(runs)}

    def _changes(self, parameters: Parameters) -> dict[str, Any]:
        """What was logged after the page's cursors; of a run that resumed, or of which it has missed much, that it should ask for all."""
        cursors = parameters.get("at", "").split(",")
        if len(cursors) != len(self.runs):
            return {"now": time.time(), "anew": True, "runs": []}
        rows = [run.rows_since(cursor) for run, cursor in zip(self.runs, cursors, strict=True)]
        told = [{**run.state(), "rows": new} for run, new in zip(self.runs, rows, strict=True)]
        return {"now": time.time(), "anew": any(new is None for new in rows), "runs": told}

    def _samples(self, parameters: Parameters) -> dict[str, Any]:
        query, order = query_of(parameters), parameters.get("order", "")
        order = order if order in ORDERS else ORDERS[0]
        chosen = self._chosen(parameters.get("run", ""))
        for i in chosen:
            self.runs[i].samples.update()
        known = [entry for i in chosen for entry in self.runs[i].samples.entries()]
        found = in_order([(i, entry) for i in chosen for entry in self.runs[i].samples.find(query)], order)
        start = (number_of(parameters.get("page", "")) or 0) * PER_PAGE
        return {
            "kept": len(known),
            "matched": len(found),
            "start": start,
            "per_page": PER_PAGE,
            "sets": sorted({entry.set for entry in known}),
            "finishes": sorted({entry.finish for entry in known}),
            "rows": [{"run": i, **read_sample(entry)} for i, entry in found[start : start + PER_PAGE]],
        }

    def _problem(self, parameters: Parameters) -> dict[str, Any]:
        """Every sample of one problem, oldest first."""
        query = Query(set=parameters.get("set", ""), problem=parameters.get("problem", ""))
        for run in self.runs:
            run.samples.update()
        found = in_order([(i, e) for i, run in enumerate(self.runs) for e in run.samples.find(query)], "oldest")
        return {
            "matched": len(found),
            "rows": [{"run": i, **read_sample(entry)} for i, entry in found[:MOST_OF_A_PROBLEM]],
        }

    def _rollouts(self, _: Parameters) -> list[dict[str, Any]]:
        return [
            {"run": i, "place": place, **{k: v for k, v in row.items() if k != "start"}}
            for i, run in enumerate(self.runs)
            for place, row in enumerate(run.rollouts())
        ]

    def _rollout(self, parameters: Parameters) -> dict[str, Any] | None:
        run, place = number_of(parameters.get("run", "")), number_of(parameters.get("place", ""))
        if run is None or place is None or run >= len(self.runs):
            return None
        return self.runs[run].rollout(place)

    def _chosen(self, run: str) -> list[int]:
        """The run of a number; all where it is none of them."""
        known = range(len(self.runs))
        number = number_of(run)
        return [number] if number is not None and number in known else list(known)


class ViewServer(ThreadingHTTPServer):
    """On loopback alone."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folders: Sequence[Path], port: int) -> None:
        super().__init__((LOOPBACK, port), ViewRequest)
        self.followed = Followed(folders)
        self.hosts = {f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost", "[::1]")}
        """What a browser says that it talks to: another name that leads here is somebody else's page (DNS rebinding)."""
        title = " · ".join(run.name for run in self.followed.runs)
        self.page, policy = report_page({"live": True}, title, FETCHED)
        self.policy = f"{policy}; frame-ancestors 'none'"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that was closed while it was answered is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}/"


class ViewRequest(BaseHTTPRequestHandler):
    """GET alone."""

    server: ViewServer
    protocol_version = "HTTP/1.1"
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain"
    timeout = 60

    def do_GET(self) -> None:
        if self.headers.get("Host") not in self.server.hosts:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "this is onpolicy view, under its own address alone")
            return
        asked = urlsplit(self.path)
        if asked.path == "/":
            self._send(self.server.page.encode(errors="replace"), "text/html; charset=utf-8")
            return
        if self.headers.get("Sec-Fetch-Site", "same-origin") not in OWN:
            self.send_error(HTTPStatus.FORBIDDEN, "asked by another page")
            return
        try:
            parameters = dict(parse_qsl(asked.query, max_num_fields=MOST_FIELDS))
        except ValueError as error:
            self.send_error(HTTPStatus.BAD_REQUEST, str(error))
            return
        answer = self.server.followed.answer(asked.path, parameters)
        if answer is None:
            self.send_error(HTTPStatus.NOT_FOUND, "nothing here")
            return
        text = json.dumps(finite(answer), separators=(",", ":"), allow_nan=False)
        self._send(text.encode(), "application/json")

    def _send(self, body: bytes, kind: str) -> None:
        packed = len(body) > 4096 and "gzip" in self.headers.get("Accept-Encoding", "")
        if packed:
            body = gzip.compress(body, 1, mtime=0)
        self.send_response(HTTPStatus.OK)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", self.server.policy),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
            *((("Content-Encoding", "gzip"),) if packed else ()),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "onpolicy"

    def log_message(self, *_: Any) -> None:
        """Nothing: a page asks every two seconds."""
