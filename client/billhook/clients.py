"""`Client` and `AsyncClient`: the two ways to perform the same operations (`billhook/operations/`) on httpx."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import anyio
import anyio.to_thread
import httpx

from billhook.address import find_server
from billhook.operations import dry_runs, jobs, keys, prune, uploads, workers
from billhook.retries import Core
from billhook.steps import (
    Blocking,
    Call,
    Done,
    HangUp,
    Item,
    Operation,
    Outcome,
    Receive,
    Reply,
    Sleep,
    Step,
    Stream,
    advance,
)
from billhook.transport import (
    OpenAnswer,
    arguments_of,
    async_chunks,
    chunks,
    close_all,
    connection_errors,
    is_stream,
    lowered,
    settings_of,
)

P = ParamSpec("P")
T = TypeVar("T")


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
    retry_job = _call(jobs.retry_job)
    clone_job = _call(jobs.clone_job)
    get_report = _call(jobs.get_report)
    get_report_markdown = _call(jobs.get_report_markdown)
    list_artifacts = _call(jobs.list_artifacts)
    download_artifact = _call(jobs.download_artifact)
    prune = _call(prune.prune)
    create_key = _call(keys.create_key)
    get_key = _call(keys.get_key)
    revoke_key = _call(keys.revoke_key)
    dry_run = _call(dry_runs.dry_run)
    list_models = _stream(uploads.list_models)
    list_datasets = _stream(uploads.list_datasets)
    list_recipes = _stream(jobs.list_recipes)
    list_jobs = _stream(jobs.list_jobs)
    watch_job = _stream(jobs.watch_job)
    list_events = _stream(jobs.list_events)
    list_keys = _stream(keys.list_keys)
    list_workers = _stream(workers.list_workers)

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
        self._http = httpx.Client(**settings_of(self._address), transport=transport)

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
        outcome, opened = Outcome(), set[OpenAnswer]()
        try:
            while not isinstance(step := advance(operation, outcome), Done):
                outcome = self._perform(step, opened)
        finally:
            for each in opened:
                each.response.close()
        result: T = step.value
        return result

    def _iterate(self, stream: Stream[T]) -> Iterator[T]:
        outcome, opened = Outcome(), set[OpenAnswer]()
        try:
            while not isinstance(step := advance(stream, outcome), Done):
                if isinstance(step, Item):
                    yield step.value
                    outcome = Outcome()
                else:
                    outcome = self._perform(step, opened)
        finally:
            for each in opened:
                each.response.close()

    def _perform(self, step: Step, opened: set[OpenAnswer]) -> Outcome:
        try:
            match step:
                case Call():
                    reply = self._request(step)
                    if reply.connection is not None:
                        opened.add(reply.connection)
                    return Outcome(reply)
                case Receive(reply):
                    with connection_errors(self._address, reply.connection.call):
                        return Outcome(next(reply.connection.pieces, b""))
                case HangUp(reply):
                    opened.discard(reply.connection)
                    reply.connection.response.close()
                    return Outcome()
                case Blocking(function):
                    return Outcome(function())
                case Sleep(seconds):
                    time.sleep(seconds)
                    return Outcome()
        except BaseException as error:
            return Outcome(error=error)

    def _request(self, call: Call) -> Reply:
        body = chunks(call.file) if call.file is not None else None
        with connection_errors(self._address, call):
            response = self._http.send(self._http.build_request(**arguments_of(call), content=body), stream=True)
            if is_stream(call, response):
                connection = OpenAnswer(call, response, response.iter_bytes())
                return Reply(response.status_code, lowered(response), b"", connection=connection)
            try:
                if call.sink is not None and call.sink.begin(response.status_code, lowered(response)):
                    for chunk in response.iter_raw():
                        call.sink.write(chunk)
                    return Reply(response.status_code, lowered(response), b"")
                return Reply(response.status_code, lowered(response), response.read())
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
    retry_job = _awaited(jobs.retry_job)
    clone_job = _awaited(jobs.clone_job)
    get_report = _awaited(jobs.get_report)
    get_report_markdown = _awaited(jobs.get_report_markdown)
    list_artifacts = _awaited(jobs.list_artifacts)
    download_artifact = _awaited(jobs.download_artifact)
    prune = _awaited(prune.prune)
    create_key = _awaited(keys.create_key)
    get_key = _awaited(keys.get_key)
    revoke_key = _awaited(keys.revoke_key)
    dry_run = _awaited(dry_runs.dry_run)
    list_models = _async_stream(uploads.list_models)
    list_datasets = _async_stream(uploads.list_datasets)
    list_recipes = _async_stream(jobs.list_recipes)
    list_jobs = _async_stream(jobs.list_jobs)
    watch_job = _async_stream(jobs.watch_job)
    list_events = _async_stream(jobs.list_events)
    list_keys = _async_stream(keys.list_keys)
    list_workers = _async_stream(workers.list_workers)

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
        self._http = httpx.AsyncClient(**settings_of(self._address), transport=transport)

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
        outcome, opened = Outcome(), set[OpenAnswer]()
        try:
            while not isinstance(step := advance(operation, outcome), Done):
                outcome = await self._perform(step, opened)
        finally:
            await close_all(opened)
        result: T = step.value
        return result

    async def _iterate(self, stream: Stream[T]) -> AsyncIterator[T]:
        outcome, opened = Outcome(), set[OpenAnswer]()
        try:
            while not isinstance(step := advance(stream, outcome), Done):
                if isinstance(step, Item):
                    yield step.value
                    outcome = Outcome()
                else:
                    outcome = await self._perform(step, opened)
        finally:
            await close_all(opened)

    async def _perform(self, step: Step, opened: set[OpenAnswer]) -> Outcome:
        try:
            match step:
                case Call():
                    with anyio.CancelScope(shield=step.shielded):
                        reply = await self._request(step)
                    if reply.connection is not None:
                        opened.add(reply.connection)
                    return Outcome(reply)
                case Receive(reply):
                    with connection_errors(self._address, reply.connection.call):
                        return Outcome(await anext(reply.connection.pieces, b""))
                case HangUp(reply):
                    opened.discard(reply.connection)
                    await close_all({reply.connection})
                    return Outcome()
                case Blocking(function):
                    return Outcome(await anyio.to_thread.run_sync(function))
                case Sleep(seconds):
                    await anyio.sleep(seconds)
                    return Outcome()
        except BaseException as error:
            return Outcome(error=error)

    async def _request(self, call: Call) -> Reply:
        body = async_chunks(call.file) if call.file is not None else None
        with connection_errors(self._address, call):
            response = await self._http.send(self._http.build_request(**arguments_of(call), content=body), stream=True)
            if is_stream(call, response):
                connection = OpenAnswer(call, response, response.aiter_bytes())
                return Reply(response.status_code, lowered(response), b"", connection=connection)
            try:
                if call.sink is not None and call.sink.begin(response.status_code, lowered(response)):
                    async for chunk in response.aiter_raw():
                        await anyio.to_thread.run_sync(call.sink.write, chunk)
                    return Reply(response.status_code, lowered(response), b"")
                return Reply(response.status_code, lowered(response), await response.aread())
            finally:
                await response.aclose()
