"""`Client` and `AsyncClient`: the two ways to perform the same operations (`billhook/operations/`) on httpx."""

from __future__ import annotations

import functools
import inspect
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import anyio
import anyio.to_thread
import httpx

from billhook.address import Address, find_server
from billhook.errors import ConnectionFailed
from billhook.operations import jobs, prune, uploads
from billhook.retries import Core
from billhook.steps import (
    CHUNK_BYTES,
    Blocking,
    Call,
    Done,
    FileBody,
    Item,
    Operation,
    Outcome,
    Reply,
    Sleep,
    Step,
    Stream,
    advance,
)

P = ParamSpec("P")
T = TypeVar("T")
CONNECT_SECONDS = 10.0


# --- methods from operations -----------------------------------------------------------------------------------------


def _call(operation: Callable[Concatenate[Core, P], Operation[T]]) -> Callable[Concatenate[Client, P], T]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(operation(self._core, *args, **kwargs))

    _sign(method, operation, "{}")
    return method


def _awaited(
    operation: Callable[Concatenate[Core, P], Operation[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(operation(self._core, *args, **kwargs))

    _sign(method, operation, "{}")
    return method


def _stream(operation: Callable[Concatenate[Core, P], Stream[T]]) -> Callable[Concatenate[Client, P], Iterator[T]]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._iterate(operation(self._core, *args, **kwargs))

    _sign(method, operation, "Iterator[{}]")
    return method


def _async_stream(
    operation: Callable[Concatenate[Core, P], Stream[T]],
) -> Callable[Concatenate[AsyncClient, P], AsyncIterator[T]]:
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return self._iterate(operation(self._core, *args, **kwargs))

    _sign(method, operation, "AsyncIterator[{}]")
    return method


def _sign(method: Callable[..., Any], operation: Callable[..., Any], returns: str) -> None:
    """Give `method` the signature that `help` should show: `self` for the core, what is returned for the generator."""
    functools.update_wrapper(method, operation)
    signature = inspect.signature(operation)
    _, *rest = signature.parameters.values()
    result = str(signature.return_annotation).partition("[")[2].removesuffix("]")
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    shown = signature.replace(parameters=[first, *rest], return_annotation=returns.format(result))
    method.__signature__ = shown  # type: ignore[attr-defined]


# --- the two clients --------------------------------------------------------------------------------------------------


class Client:
    """A Billhook server, synchronously. Use it as a context manager, or `close` it.

    `server` and `key`: see `billhook.address.find_server`; without them, `BILLHOOK_SERVER` and `BILLHOOK_KEY`, else the
    server that `billhook up` started on this machine. `patience`: seconds for which a call is tried again after its
    first failure. `transport`: an httpx transport, for tests and special networks.

    Every method may raise `ConnectionFailed` and `ApiError`; the other errors are named with the method.
    """

    upload_model = _call(uploads.upload_model)
    model_from_job = _call(uploads.model_from_job)
    get_model = _call(uploads.get_model)
    get_model_graph = _call(uploads.get_model_graph)
    wait_for_model = _call(uploads.wait_for_model)
    delete_model = _call(uploads.delete_model)
    add_dataset = _call(uploads.add_dataset)
    get_dataset = _call(uploads.get_dataset)
    wait_for_dataset = _call(uploads.wait_for_dataset)
    dataset_contact_sheet = _call(uploads.dataset_contact_sheet)
    delete_dataset = _call(uploads.delete_dataset)
    get_recipe = _call(jobs.get_recipe)
    recipe_schema = _call(jobs.recipe_schema)
    check_recipe = _call(jobs.check_recipe)
    submit_job = _call(jobs.submit_job)
    get_job = _call(jobs.get_job)
    wait_for_job = _call(jobs.wait_for_job)
    cancel_job = _call(jobs.cancel_job)
    get_report = _call(jobs.get_report)
    get_report_markdown = _call(jobs.get_report_markdown)
    list_artifacts = _call(jobs.list_artifacts)
    download_artifact = _call(jobs.download_artifact)
    prune = _call(prune.prune)
    list_models = _stream(uploads.list_models)
    list_datasets = _stream(uploads.list_datasets)
    list_recipes = _stream(jobs.list_recipes)
    list_jobs = _stream(jobs.list_jobs)
    watch_job = _stream(jobs.watch_job)
    list_events = _stream(jobs.list_events)

    def __init__(
        self,
        server: str | None = None,
        key: str | None = None,
        *,
        insecure_http: bool = False,
        patience: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._address = find_server(server, key, insecure_http=insecure_http)
        self._core = Core(patience=patience)
        self._http = httpx.Client(**_settings(self._address), transport=transport)

    @property
    def server(self) -> str:
        return self._address.url

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, operation: Operation[T]) -> T:
        outcome = Outcome()
        while not isinstance(step := advance(operation, outcome), Done):
            outcome = self._perform(step)
        result: T = step.value
        return result

    def _iterate(self, stream: Stream[T]) -> Iterator[T]:
        outcome = Outcome()
        while not isinstance(step := advance(stream, outcome), Done):
            if isinstance(step, Item):
                yield step.value
                outcome = Outcome()
            else:
                outcome = self._perform(step)

    def _perform(self, step: Step) -> Outcome:
        try:
            match step:
                case Call():
                    return Outcome(self._request(step))
                case Blocking(function):
                    return Outcome(function())
                case Sleep(seconds):
                    time.sleep(seconds)
                    return Outcome()
        except BaseException as error:
            return Outcome(error=error)

    def _request(self, call: Call) -> Reply:
        body = _chunks(call.file) if call.file is not None else None
        with _connection_errors(self._address, call):
            response = self._http.send(self._http.build_request(**_arguments(call), content=body), stream=True)
            try:
                if call.sink is not None and call.sink.begin(response.status_code, _lowered(response)):
                    for chunk in response.iter_raw():
                        call.sink.write(chunk)
                    return Reply(response.status_code, _lowered(response), b"")
                return Reply(response.status_code, _lowered(response), response.read())
            finally:
                response.close()


class AsyncClient:
    """A Billhook server, asynchronously: the same methods as `Client`, awaited or `async for`.

    A cancelled `prune` cancels its job on the server.
    """

    upload_model = _awaited(uploads.upload_model)
    model_from_job = _awaited(uploads.model_from_job)
    get_model = _awaited(uploads.get_model)
    get_model_graph = _awaited(uploads.get_model_graph)
    wait_for_model = _awaited(uploads.wait_for_model)
    delete_model = _awaited(uploads.delete_model)
    add_dataset = _awaited(uploads.add_dataset)
    get_dataset = _awaited(uploads.get_dataset)
    wait_for_dataset = _awaited(uploads.wait_for_dataset)
    dataset_contact_sheet = _awaited(uploads.dataset_contact_sheet)
    delete_dataset = _awaited(uploads.delete_dataset)
    get_recipe = _awaited(jobs.get_recipe)
    recipe_schema = _awaited(jobs.recipe_schema)
    check_recipe = _awaited(jobs.check_recipe)
    submit_job = _awaited(jobs.submit_job)
    get_job = _awaited(jobs.get_job)
    wait_for_job = _awaited(jobs.wait_for_job)
    cancel_job = _awaited(jobs.cancel_job)
    get_report = _awaited(jobs.get_report)
    get_report_markdown = _awaited(jobs.get_report_markdown)
    list_artifacts = _awaited(jobs.list_artifacts)
    download_artifact = _awaited(jobs.download_artifact)
    prune = _awaited(prune.prune)
    list_models = _async_stream(uploads.list_models)
    list_datasets = _async_stream(uploads.list_datasets)
    list_recipes = _async_stream(jobs.list_recipes)
    list_jobs = _async_stream(jobs.list_jobs)
    watch_job = _async_stream(jobs.watch_job)
    list_events = _async_stream(jobs.list_events)

    def __init__(
        self,
        server: str | None = None,
        key: str | None = None,
        *,
        insecure_http: bool = False,
        patience: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._address = find_server(server, key, insecure_http=insecure_http)
        self._core = Core(patience=patience)
        self._http = httpx.AsyncClient(**_settings(self._address), transport=transport)

    @property
    def server(self) -> str:
        return self._address.url

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, operation: Operation[T]) -> T:
        outcome = Outcome()
        while not isinstance(step := advance(operation, outcome), Done):
            outcome = await self._perform(step)
        result: T = step.value
        return result

    async def _iterate(self, stream: Stream[T]) -> AsyncIterator[T]:
        outcome = Outcome()
        while not isinstance(step := advance(stream, outcome), Done):
            if isinstance(step, Item):
                yield step.value
                outcome = Outcome()
            else:
                outcome = await self._perform(step)

    async def _perform(self, step: Step) -> Outcome:
        try:
            match step:
                case Call():
                    with anyio.CancelScope(shield=step.shielded):
                        reply = await self._request(step)
                    return Outcome(reply)
                case Blocking(function):
                    return Outcome(await anyio.to_thread.run_sync(function))
                case Sleep(seconds):
                    await anyio.sleep(seconds)
                    return Outcome()
        except BaseException as error:
            return Outcome(error=error)

    async def _request(self, call: Call) -> Reply:
        body = _async_chunks(call.file) if call.file is not None else None
        with _connection_errors(self._address, call):
            response = await self._http.send(self._http.build_request(**_arguments(call), content=body), stream=True)
            try:
                if call.sink is not None and call.sink.begin(response.status_code, _lowered(response)):
                    async for chunk in response.aiter_raw():
                        await anyio.to_thread.run_sync(call.sink.write, chunk)
                    return Reply(response.status_code, _lowered(response), b"")
                return Reply(response.status_code, _lowered(response), await response.aread())
            finally:
                await response.aclose()


# --- from calls to httpx ---------------------------------------------------------------------------------------------


def _settings(address: Address) -> dict[str, Any]:
    # loading the certificates that https needs takes longer than most commands; a context without any trusts nobody
    tls = True if address.url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return {
        "verify": tls,
        "base_url": address.url,
        "headers": {"Authorization": f"Bearer {address.key}", "User-Agent": "billhook-client/1"},
        "trust_env": not address.loopback,  # a proxy has no business between two programs of this machine
    }


def _arguments(call: Call) -> dict[str, Any]:
    headers = {"Accept": "application/json", **call.headers}
    if call.sink is not None:
        headers = {**headers, "Accept": "*/*", **call.sink.headers()}
    if call.file is not None:
        headers["Content-Length"] = str(call.file.size)
    return {
        "method": call.method,
        "url": call.path,
        "params": dict(call.params),
        "headers": headers,
        "json": call.json,
        "timeout": httpx.Timeout(call.read_seconds, connect=CONNECT_SECONDS),
    }


def _chunks(file: FileBody) -> Iterator[bytes]:
    sent = 0
    with file.path.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            yield chunk
            sent += len(chunk)
            file.advance(sent)


async def _async_chunks(file: FileBody) -> AsyncIterator[bytes]:
    sent = 0
    async with await anyio.open_file(file.path, "rb") as source:
        while chunk := await source.read(CHUNK_BYTES):
            yield chunk
            sent += len(chunk)
            file.advance(sent)


def _lowered(response: httpx.Response) -> Mapping[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


@contextmanager
def _connection_errors(address: Address, call: Call) -> Iterator[None]:
    try:
        yield
    except httpx.ConnectTimeout:
        raise ConnectionFailed(f"cannot reach {address.url}: no answer within {CONNECT_SECONDS:g} s") from None
    except httpx.TimeoutException:
        message = f"{address.url} did not answer within {call.read_seconds:g} s"
        raise ConnectionFailed(message) from None
    except httpx.ConnectError as error:
        hint = "; is it running? `billhook up` starts it" if address.loopback else ""
        raise ConnectionFailed(f"cannot reach {address.url}: {error}{hint}") from None
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise ConnectionFailed(f"the connection to {address.url} broke: {error or type(error).__name__}") from None
