"""A real STAC API and file server on this machine, with a provider's faults on demand.

It speaks HTTP/1.1 with connections kept alive, as the providers do: a search with pages, files with
ranges, tokens that expire, and errors, drops and delays that a test schedules. It is a process of its
own: GDAL holds the interpreter's lock in some of its calls, and would wait for a server in a thread of
the same interpreter for ever.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import operator
import re
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, quote, urlencode, urlsplit
from urllib.request import urlopen

import pystac
from shapely.geometry import box, shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ApiServer", "Fault", "Request", "SasSigner"]

_CONFORMANCE = "https://api.stacspec.org/v1.0.0/"
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
    "in": lambda value, wanted: value in wanted,
    "startsWith": lambda value, wanted: value.startswith(wanted),
    "endsWith": lambda value, wanted: value.endswith(wanted),
    "contains": lambda value, wanted: wanted in value,
}


@dataclass(frozen=True)
class Request:
    """One request, as it was answered.

    Attributes
    ----------
    method, path, query : str
        `path` is without the query string.
    start, end : int or None
        The range asked for, both inclusive.
    headers : dict of str to str
        With names in lower case.
    body : dict
        Of a search.
    status : int
        0 where the connection was dropped without an answer.
    sent : int
        Bytes of the body that went out.
    """

    method: str
    path: str
    query: str
    start: int | None
    end: int | None
    headers: dict[str, str]
    body: dict[str, Any]
    status: int = 0
    sent: int = 0


@dataclass
class Fault:
    """What happens to some requests instead of an answer, or on the way to it.

    Attributes
    ----------
    pattern : str
        Regular expression, searched in the path.
    times : int or None
        How many requests it hits; None is all, for ever.
    status : int or None
        Answer with this status.
    retry_after : str or None
        Retry-After header of such an answer.
    drop : {"early", "body", "half"} or None
        Close the connection before any answer, in the middle of the body (whose whole length was
        announced), or send half of the body as if it were everything.
    hang_s : float
        Wait so long first; the connection is dropped if the server is healed meanwhile.
    after : int
        So many matching requests pass before.
    method : str or None
        Only GET, HEAD or POST.
    from_byte : int
        Only requests for a range that starts there or later, where it is positive.
    hits : int
        How many requests it has hit; only the server's own copy counts, see `ApiServer.hits`.
    """

    pattern: str
    times: int | None = 1
    status: int | None = None
    retry_after: str | None = None
    drop: str | None = None
    hang_s: float = 0.0
    after: int = 0
    method: str | None = None
    from_byte: int = 0
    hits: int = 0

    def take(self, request: Request) -> bool:
        """Whether it hits a request; counts it. The caller holds the server's lock."""
        if self.times is not None and self.hits >= self.times:
            return False
        if not re.search(self.pattern, request.path):
            return False
        if self.method not in (None, request.method):
            return False
        if self.from_byte > (request.start or 0):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.hits += 1
        return True


@dataclass
class _Token:
    uses_left: float
    dies_at: float


@dataclass
class SasSigner:
    """Sign addresses as Planetary Computer does: with a token of the container, fetched each time.

    Attributes
    ----------
    url : str
        Of the server.
    delay_s : float
        How long a new token takes.
    """

    url: str
    delay_s: float = 0.0

    def __call__(self, href: str) -> str:
        """Return the address with a fresh token."""
        _, kind, account, container, *_ = urlsplit(href).path.split("/")
        assert kind == "blob", href
        time.sleep(self.delay_s)
        with urlopen(f"{self.url}/sas/token/{account}/{container}") as answer:
            token = json.load(answer)["token"]
        return f"{urlsplit(href)._replace(query='').geturl()}?{token}"


class ApiServer:
    """A STAC API and its files on 127.0.0.1, served by another process while the context lasts.

    ``/files/NAME`` is a file of the folder, ``/blob/ACCOUNT/CONTAINER/NAME`` the same file for
    those with a token, which ``/sas/token/ACCOUNT/CONTAINER`` issues. Parts of a path that begin with
    ``@`` are ignored: GDAL remembers an address while the process lives, but must ask for a new one.

    Parameters
    ----------
    folder : path
        What to serve.
    **settings
        See `configure`.

    Attributes
    ----------
    url : str
        Of the landing page, without a slash.
    """

    def __init__(self, folder: str | Path, **settings: Any) -> None:
        self.folder = Path(folder)
        self._settings = settings

    def __enter__(self) -> Self:
        self._manager = _Manager(ctx=multiprocessing.get_context("spawn"))
        self._manager.start()
        self._service = self._manager.Service(str(self.folder))  # type: ignore[attr-defined]
        self.url: str = self._service.start()
        self.configure(**self._settings)
        return self

    def __exit__(self, *_: object) -> None:
        self._service.stop()
        self._manager.shutdown()

    def configure(self, **settings: Any) -> None:
        """Change what the server does from now on.

        Parameters
        ----------
        items : iterable of pystac.Item
            What to find, with absolute hrefs.
        has_query : bool
            Whether it conforms to the query extension; a search with a query is refused otherwise.
        page_length, page_limit : int
            Items of a page by default and at most.
        token_uses, token_life_s : float
            How often and how long tokens issued from now on are good.
        bearer : str or None
            What the Authorization header of a request for a file must hold.
        """
        if "items" in settings:
            items = settings["items"]
            settings["items"] = [item.to_dict(include_self_link=False, transform_hrefs=False)
                                 for item in items]  # fmt: skip
        self._service.configure(settings)

    def fail(self, pattern: str, times: int | None = 1, **how: Any) -> int:
        """Schedule a `Fault` and return its number. Earlier ones go first."""
        number: int = self._service.fail(Fault(pattern, times, **how))
        return number

    def hits(self, number: int) -> int:
        """Return how many requests a fault has hit."""
        hits: int = self._service.hits(number)
        return hits

    def heal(self) -> None:
        """Forget all faults, and drop the connections of those that hang."""
        self._service.heal()

    def expire(self) -> None:
        """Let all tokens issued so far expire."""
        self._service.expire()

    def forget(self) -> None:
        """Empty the log."""
        self._service.forget()

    def requests(self, pattern: str = "", **fields: Any) -> list[Request]:
        """Return the requests whose path matches and whose fields are equal, as answered."""
        return [
            request
            for request in self._service.read_log()
            if re.search(pattern, request.path)
            and all(getattr(request, name) == value for name, value in fields.items())
        ]

    def counts(self, pattern: str = "") -> Counter[str]:
        """Return the number of requests for each path."""
        return Counter(request.path for request in self.requests(pattern))

    def sent(self, pattern: str = "") -> Counter[str]:
        """Return the bytes sent for each path."""
        total: Counter[str] = Counter()
        for request in self.requests(pattern):
            total[request.path] += request.sent
        return total


class _Service:
    """The server itself, in its own process."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.items: list[dict[str, Any]] = []
        self.has_query = True
        self.page_length, self.page_limit = 10, 100
        self.token_uses = self.token_life_s = float("inf")
        self.bearer: str | None = None
        self._log: list[Request] = []
        self._token_count = 0
        self._faults: list[Fault] = []
        self._tokens: dict[str, _Token] = {}
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._patience = threading.Event()

    # What the test asks for.

    def start(self) -> str:
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self.url

    def stop(self) -> None:
        self.heal()
        self._server.shutdown()
        self._thread.join()
        with self._lock:
            idle = list(self._connections)
        for connection in idle:
            # Its thread waits for another request of a client that keeps the connection.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def configure(self, settings: dict[str, Any]) -> None:
        for name, value in settings.items():
            assert hasattr(self, name), name
            setattr(self, name, value)

    def fail(self, fault: Fault) -> int:
        with self._lock:
            self._faults.append(fault)
            return len(self._faults) - 1

    def hits(self, number: int) -> int:
        return self._faults[number].hits

    def heal(self) -> None:
        with self._lock:
            for fault in self._faults:
                fault.times = 0
            # Those who wait now need not any longer.
            self._patience.set()
            self._patience = threading.Event()

    def expire(self) -> None:
        with self._lock:
            self._tokens.clear()

    def forget(self) -> None:
        with self._lock:
            self._log.clear()

    def read_log(self) -> list[Request]:
        with self._lock:
            return list(self._log)

    # What the threads of the server ask for.

    def _take_fault(self, request: Request) -> Fault | None:
        with self._lock:
            return next((fault for fault in self._faults if fault.take(request)), None)

    def _record(self, request: Request) -> None:
        with self._lock:
            self._log.append(request)

    def _issue_token(self) -> dict[str, str]:
        with self._lock:
            self._token_count += 1
            # What signatures are made of, and what gets mangled on the way: + / = and %.
            signature = f"a+b/{self._token_count}%c=="
            self._tokens[signature] = _Token(self.token_uses, time.monotonic() + self.token_life_s)
        now = datetime.now(UTC)
        span = {"st": now - timedelta(minutes=5), "se": now + timedelta(minutes=45)}
        stamps = {name: moment.strftime("%Y-%m-%dT%H:%M:%SZ") for name, moment in span.items()}
        query = urlencode({**stamps, "sp": "rl", "sv": "2024-05-04", "sr": "c"})
        return {"token": f"{query}&sig={quote(signature, safe='')}", "msft:expiry": stamps["se"]}

    def _admits(self, query: str) -> bool:
        signature = (parse_qs(query, strict_parsing=bool(query)).get("sig") or [""])[0]
        with self._lock:
            token = self._tokens.get(signature)
            if token is None or token.uses_left <= 0 or time.monotonic() > token.dies_at:
                return False
            token.uses_left -= 1
            return True

    def _landing(self) -> dict[str, Any]:
        catalog = pystac.Catalog("loopback", "A STAC API for tests", "Loopback")
        document = catalog.to_dict(include_self_link=False)
        classes = ["core", "item-search", "collections", "ogcapi-features"]
        if self.has_query:
            classes.append("item-search#query")
        document["conformsTo"] = [_CONFORMANCE + name for name in classes]
        document["links"] = [
            {"rel": "self", "href": self.url, "type": "application/json"},
            {"rel": "root", "href": self.url, "type": "application/json"},
            {"rel": "data", "href": f"{self.url}/collections", "type": "application/json"},
            *(
                {
                    "rel": "search",
                    "href": f"{self.url}/search",
                    "type": "application/geo+json",
                    "method": method,
                }
                for method in ("GET", "POST")
            ),
        ]
        return document

    def _collections(self) -> dict[str, dict[str, Any]]:
        names = dict.fromkeys(item["collection"] for item in self.items)
        return {name: self._collection(name) for name in names}

    def _collection(self, name: str) -> dict[str, Any]:
        held = [item for item in self.items if item["collection"] == name]
        boxes = [item["bbox"] for item in held]
        whole = [f(values) for f, values in zip((min, min, max, max), zip(*boxes, strict=True),
                                                strict=True)]  # fmt: skip
        spans = [_interval(item) for item in held]
        extent = pystac.Extent(
            pystac.SpatialExtent([whole]),
            pystac.TemporalExtent([[min(s for s, _ in spans), max(e for _, e in spans)]]),
        )
        document = pystac.Collection(name, f"Items of {name}", extent, license="proprietary")
        root = {"rel": "root", "href": self.url, "type": "application/json"}
        own = f"{self.url}/collections/{name}"
        return document.to_dict(include_self_link=False) | {
            "links": [root, {"rel": "self", "href": own, "type": "application/json"}]
        }

    def _search(self, asked: dict[str, Any], method: str) -> dict[str, Any]:
        """Return one page, with a link to the next."""
        if asked.get("query") and not self.has_query:
            raise ValueError("this API does not know the query extension")
        documents = [self._document(item) for item in self.items]
        found = [document for document in documents if _matches(document, asked)]
        length = min(int(asked.get("limit") or self.page_length), self.page_limit)
        first = int(str(asked.get("token", "next:0")).removeprefix("next:"))
        page = found[first : first + length]
        links: list[dict[str, Any]] = [{"rel": "root", "href": self.url}]
        if first + length < len(found):
            token = {"token": f"next:{first + length}"}
            href = f"{self.url}/search"
            more: dict[str, Any] = {"rel": "next", "type": "application/geo+json", "method": method}
            if method == "POST":
                more |= {"href": href, "merge": True, "body": token}
            else:
                kept = {name: _flat(value) for name, value in (asked | token).items()}
                more["href"] = f"{href}?{urlencode(kept)}"
            links.append(more)
        return {
            "type": "FeatureCollection",
            "features": page,
            "links": links,
            "numberReturned": len(page),
            "numberMatched": len(found),
        }

    def _document(self, item: dict[str, Any]) -> dict[str, Any]:
        collection = f"{self.url}/collections/{item['collection']}"
        links = [
            {"rel": "self", "href": f"{collection}/items/{item['id']}"},
            {"rel": "collection", "href": collection},
            {"rel": "root", "href": self.url},
        ]
        return item | {"links": links}


class _Manager(BaseManager):
    """Runs the service in a process of its own."""


_Manager.register("Service", _Service)


@dataclass
class _Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    # A dropped connection: announce the whole, send the half.
    is_cut: bool = False


class _Handler(BaseHTTPRequestHandler):
    api: _Service
    protocol_version = "HTTP/1.1"
    # Headers and body leave in one packet: else each answer waits for a delayed acknowledgement.
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self) -> None:
        super().setup()
        with self.api._lock:
            self.api._connections.add(self.connection)

    def finish(self) -> None:
        with self.api._lock:
            self.api._connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client has given up
            self.close_connection = True

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def _serve(self) -> None:
        request = self._parse()
        fault = self.api._take_fault(request)
        if fault is not None and fault.hang_s and self.api._patience.wait(fault.hang_s):
            # Healed meanwhile, for another test: the one that asked has given up.
            self.close_connection = True
            return
        if fault is not None and fault.drop == "early":
            self.api._record(request)
            self.close_connection = True
            return
        if fault is not None and fault.status is not None:
            headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
            answer = _Answer(fault.status, headers, f"fault {fault.status}".encode())
        else:
            answer = self._answer(request)
        if fault is not None and fault.drop == "half":
            answer.body = answer.body[: len(answer.body) // 2]
        answer.is_cut = fault is not None and fault.drop == "body"
        self._send(request, answer)

    def _parse(self) -> Request:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else None
        end = int(wanted[2]) if wanted and wanted[2] else None
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(self.command, parts.path, parts.query, start, end, headers, body)

    def _answer(self, request: Request) -> _Answer:
        api = self.api
        parts = request.path.strip("/").split("/")
        match [part for part in parts if not part.startswith("@")]:
            case [""]:
                return _json(api._landing())
            case ["conformance"]:
                return _json({"conformsTo": api._landing()["conformsTo"]})
            case ["collections"]:
                listed = list(api._collections().values())
                return _json({"collections": listed, "links": []})
            case ["collections", name] if name in api._collections():
                return _json(api._collection(name))
            case ["search"]:
                return self._search(request)
            case ["sas", "token", _, _]:
                return _json(api._issue_token())
            case ["blob", _, _, *names] if api._admits(request.query):
                return self._file(request, names)
            case ["blob", *_]:
                return _Answer(403, {}, b"<Error>AuthenticationFailed</Error>")
            case ["files", *names]:
                return self._file(request, names)
        return _Answer(404, {}, b"not found")

    def _search(self, request: Request) -> _Answer:
        asked: dict[str, Any] = dict(request.body)
        for name, (value, *_) in parse_qs(request.query).items():
            if name in {"collections", "ids"}:
                asked[name] = value.split(",")
            elif name == "bbox":
                asked[name] = [float(number) for number in value.split(",")]
            elif name in {"intersects", "query"}:
                asked[name] = json.loads(value)
            else:
                asked[name] = value
        try:
            return _json(self.api._search(asked, request.method))
        except ValueError as error:
            return _json({"code": "BadRequest", "description": str(error)}, 400)

    def _file(self, request: Request, names: Sequence[str]) -> _Answer:
        bearer = self.api.bearer
        if bearer is not None and request.headers.get("authorization") != f"Bearer {bearer}":
            return _Answer(401, {"WWW-Authenticate": "Bearer"}, b"who are you?")
        root = self.api.folder.resolve()
        path = root.joinpath(*names).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            return _Answer(404, {}, b"no such file")
        content = path.read_bytes()
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Type": "image/tiff",
            "ETag": f'"{path.stat().st_mtime_ns:x}"',
        }
        if request.start is None:
            return _Answer(200, headers, content)
        if request.start >= len(content):
            return _Answer(416, {"Content-Range": f"bytes */{len(content)}"})
        end = min(len(content) - 1 if request.end is None else request.end, len(content) - 1)
        headers["Content-Range"] = f"bytes {request.start}-{end}/{len(content)}"
        return _Answer(206, headers, content[request.start : end + 1])

    def _send(self, request: Request, answer: _Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        body = answer.body if request.method != "HEAD" else b""
        if answer.is_cut:
            body = body[: len(body) // 2]
            self.close_connection = True
        self.api._record(_answered(request, answer.status, len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def _answered(request: Request, status: int, sent: int) -> Request:
    return Request(**{**vars(request), "status": status, "sent": sent})


def _json(document: Any, status: int = 200) -> _Answer:
    kind = "application/geo+json" if "features" in document else "application/json"
    return _Answer(status, {"Content-Type": kind}, json.dumps(document).encode())


def _flat(value: Any) -> str:
    """Return a parameter as it stands in a query string."""
    if isinstance(value, dict):
        return json.dumps(value)
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _matches(document: dict[str, Any], asked: dict[str, Any]) -> bool:
    if asked.get("collections") and document["collection"] not in asked["collections"]:
        return False
    if asked.get("ids") and document["id"] not in asked["ids"]:
        return False
    area = box(*asked["bbox"]) if asked.get("bbox") else None
    if asked.get("intersects"):
        area = shape(asked["intersects"])
    if area is not None and not area.intersects(shape(document["geometry"])):
        return False
    if asked.get("datetime"):
        first, _, last = asked["datetime"].partition("/")
        start, end = _moment(first), _moment(last if "/" in asked["datetime"] else first)
        held_start, held_end = _interval(document)
        if (end and held_start > end) or (start and held_end < start):
            return False
    return all(
        document["properties"].get(name) is not None
        and _OPERATORS[sign](document["properties"][name], wanted)
        for name, conditions in (asked.get("query") or {}).items()
        for sign, wanted in conditions.items()
    )


def _moment(text: str | None) -> datetime | None:
    return None if text in (None, "", "..") else datetime.fromisoformat(text)


def _interval(document: dict[str, Any]) -> tuple[datetime, datetime]:
    properties = document["properties"]
    names = itertools.product(("start_datetime", "end_datetime"), ("datetime",))
    start, end = (_moment(properties.get(own) or properties[other]) for own, other in names)
    assert start is not None
    assert end is not None
    return start, end
