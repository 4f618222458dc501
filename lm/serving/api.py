"""The routes of the server."""

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from importlib.resources import files
from typing import Any, TypeVar

import fastapi
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lm import untrusted
from lm.errors import UserError
from lm.serving import completions, errors, schemas, talk, tasks
from lm.serving.completions import Usage
from lm.serving.errors import ApiError
from lm.serving.gate import Gate
from lm.serving.metrics import CONTENT_TYPE, Metrics
from lm.serving.served import Served
from lm.serving.worker import Ticket, Worker

log = logging.getLogger("lm.serve")
Answer = tuple[dict[str, Any], Usage]
P = TypeVar("P")
SHORT = 4096  # bytes of a request whose text is encoded in a millisecond or two


class Server:
    """The models that are served, the first of which is meant where a request names none."""

    def __init__(self, models: Mapping[str, Served], workers: Mapping[str, Worker], *, new_tokens: int, seconds: float) -> None:
        self.models, self.workers, self.new_tokens, self.seconds = dict(models), dict(workers), new_tokens, seconds
        self.metrics = Metrics(workers)
        self.started = int(time.time())

    def of(self, name: str | None) -> tuple[Served, Worker]:
        found = next(iter(self.models)) if name is None else name
        if found not in self.models:
            text = f"there is no model {found[:100]!r} here: take {' or '.join(map(repr, self.models))}"
            raise ApiError(404, text, param="model", code="model_not_found")
        return self.models[found], self.workers[found]

    def count(self, served: Served, usage: Usage) -> None:
        self.metrics.tokens.labels(served.name, "in").inc(usage.prompt)
        self.metrics.tokens.labels(served.name, "out").inc(usage.written)

    async def at_once(
        self, request: Request, work: Awaitable[Answer], served: Served, ticket: Ticket | None = None
    ) -> Response:
        """The answer of `work`, which ends with its time, or when the client is gone."""
        main, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
        try:
            await asyncio.wait({main, gone}, timeout=self.seconds, return_when=asyncio.FIRST_COMPLETED)
            if main.done():
                body, usage = main.result()
                self.count(served, usage)
                return JSONResponse(body)
            if gone.done():
                return Response(status_code=499)
            raise errors.late(self.seconds)
        finally:
            for task in (main, gone):
                task.cancel()
            await asyncio.gather(main, gone, return_exceptions=True)
            if ticket:
                ticket.close()

    def timed(self, served: Served, ticket: Ticket) -> None:
        """Measures the time to the first tokens of a ticket."""
        start, first = time.monotonic(), self.metrics.first.labels(served.name)
        ticket.began = lambda: first.observe(time.monotonic() - start)


class Events(Response):
    """Server-sent events (a chunk of an answer each), until they end, the client is gone, or time is up."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[dict[str, Any]], ticket: Ticket, seconds: float, done: Callable[[], None]) -> None:
        self.chunks, self.ticket, self.seconds, self.done = chunks, ticket, seconds, done
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def event(data: str, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": more})

        async def write() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async with asyncio.timeout(self.seconds):
                    async for chunk in self.chunks:
                        await event(json.dumps(chunk, ensure_ascii=False))
            except Exception as error:
                told = errors.late(self.seconds) if isinstance(error, TimeoutError) else errors.of(error)
                if told.status == 500:
                    log.exception("a stream failed")
                await event(json.dumps(told.body()))
            await event("[DONE]", more=False)

        main, gone = asyncio.ensure_future(write()), asyncio.ensure_future(_gone(receive))
        try:  # a client that does not read may hold up the last event too
            await asyncio.wait({main, gone}, timeout=self.seconds + 1, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (main, gone):
                task.cancel()
            await asyncio.gather(main, gone, return_exceptions=True)
            self.ticket.close()
            self.done()


async def _gone(receive: Any) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def body_of(request: Request, kind: type[schemas.B]) -> schemas.B:
    """The request in the body. ApiError if it is no strict JSON, or not of this kind."""
    data = await request.body()
    try:
        given = untrusted.strict_json(data.decode())
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise ApiError(400, f"the body is not valid JSON: {why}") from None
    return schemas.read(kind, given)


async def planned(request: Request, plan: Callable[..., P], *given: Any, **more: Any) -> P:
    """The plan of a request. One that may take long is made in a thread; for others that would cost more than it saves."""
    short = len(await request.body()) <= SHORT and not (isinstance(given[1], schemas.Chat) and given[1].has_grammar)
    return plan(*given, **more) if short else await asyncio.to_thread(plan, *given, **more)


def tasks_of(server: Server) -> fastapi.APIRouter:
    """What models are asked for."""
    r = fastapi.APIRouter()

    @r.post("/v1/completions")
    async def complete(request: Request) -> Response:
        body = await body_of(request, schemas.Completion)
        served, worker = server.of(body.model)
        plan = await planned(request, completions.plan, served, body, most=server.new_tokens)
        ticket = worker.submit(plan.asks) if plan.asks else None
        if ticket:
            server.timed(served, ticket)
        if not body.stream or not ticket:
            return await server.at_once(request, completions.whole(plan, worker, ticket), served, ticket)
        usage = plan.usage
        chunks = completions.parts(plan, worker, ticket, usage)
        return Events(chunks, ticket, server.seconds, lambda: server.count(served, usage))

    @r.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await body_of(request, schemas.Chat)
        served, worker = server.of(body.model)
        plan = await planned(request, talk.plan, served, body, most=server.new_tokens)
        ticket = worker.submit([plan.ask])
        server.timed(served, ticket)
        if not body.stream:
            return await server.at_once(request, talk.whole(plan, ticket), served, ticket)
        return Events(talk.parts(plan, ticket), ticket, server.seconds, lambda: server.count(served, plan.usage))

    async def simple(request: Request, kind: type[schemas.B], task: Callable[..., Awaitable[Answer]], **more: Any) -> Response:
        body = await body_of(request, kind)
        served, worker = server.of(body.model)
        return await server.at_once(request, task(served, worker, body, **more), served)

    @r.post("/v1/embeddings")
    async def embed(request: Request) -> Response:
        return await simple(request, schemas.Embeddings, tasks.embeddings)

    @r.post("/v1/score")
    async def score(request: Request) -> Response:
        return await simple(request, schemas.Score, tasks.score)

    @r.post("/v1/rerank")
    async def rerank(request: Request) -> Response:
        return await simple(request, schemas.Rerank, tasks.rerank)

    @r.post("/v1/fill")
    async def fill(request: Request) -> Response:
        return await simple(request, schemas.Fill, tasks.fill, most=server.new_tokens)

    @r.post("/v1/inspect")
    async def inspect(request: Request) -> Response:
        return await simple(request, schemas.Inspect, tasks.inspect)

    return r


def about(server: Server) -> fastapi.APIRouter:
    """The page, and what there is to know of the server."""
    r = fastapi.APIRouter()
    text, headers = page()

    @r.get("/")
    async def root() -> Response:
        return Response(text, media_type="text/html", headers=headers)

    @r.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(server, served) for served in server.models.values()]})

    @r.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return JSONResponse(_model(server, server.of(name)[0]))

    @r.get("/health")
    async def health() -> Response:
        well = all(worker.alive for worker in server.workers.values())
        return JSONResponse({"status": "ok" if well else "broken"}, status_code=200 if well else 503)

    @r.get("/metrics")
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type=CONTENT_TYPE)

    return r


def _model(server: Server, served: Served) -> dict[str, Any]:
    """What OpenAI says of a model, and what it can be asked for."""
    can = {"chat": served.chat is not None and served.continues, "completions": served.continues}
    can |= {"fill": served.infills or (served.architecture == "encoder" and served.head), "inspect": served.head}
    can |= {"score": not isinstance(served.scorer, str), "embeddings": True}
    about = {"architecture": served.architecture, "length": served.length, "top": served.top, "can": can}
    return {"id": served.name, "object": "model", "created": server.started, "owned_by": "lm", **about}


def page() -> tuple[str, dict[str, str]]:
    """The page at /, and headers by which a browser runs its own script and style and no other."""
    text = files("lm.serving").joinpath("page.html").read_text(encoding="utf-8")
    digest = lambda tag: base64.b64encode(hashlib.sha256(re.findall(f"<{tag}>(.*?)</{tag}>", text, re.S)[0].encode()).digest())
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest('script').decode()}'; style-src 'sha256-{digest('style').decode()}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def application(server: Server, *, token: str | None, hosts: set[str] | None, body: int) -> Gate:
    """The ASGI application: the routes behind the gate. The workers run while it does."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        for worker in server.workers.values():
            worker.start(asyncio.get_running_loop())
        yield
        for worker in server.workers.values():
            await asyncio.to_thread(worker.stop)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    routers = tasks_of(server), about(server)
    for router in routers:
        app.include_router(router)

    async def refuse(request: Request, error: Exception) -> Response:
        told = errors.of(error)
        return JSONResponse(told.body(), status_code=told.status, headers=told.headers)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        told = f"{request.method} {request.url.path[:100]} is not known here"
        return await refuse(request, ApiError(error.status_code, told, code="not_found"))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    app.add_exception_handler(ClientDisconnect, gone)
    for kind in (ApiError, UserError, Exception):
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(HTTPException, unknown)
    routes = (route for router in routers for route in router.routes)
    paths = [route.path for route in routes if isinstance(route, fastapi.routing.APIRoute)]
    return Gate(app, server.metrics, paths=paths, token=token, hosts=hosts, body=body)
