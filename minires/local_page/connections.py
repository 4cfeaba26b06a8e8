"""Connections, their time, and the work that requests ask for: what the page holds, and what it lets go.

One thread talks with everybody, so that a connection which sends nothing costs a descriptor and no more; a
few others do the work. What is held is limited, and who comes beyond a limit is told so:

    connections  400. A newcomer beyond takes the place of the oldest one that has been answered, else of the
                 oldest one whose request is not here as a whole: browsers open connections before they
                 need them.
    time         20 seconds until a request is here, and 20 until its answer is fetched
    requests     256 wait for work, or are worked on; beyond that 503, with the word when to come again
    memory       four uploads of more than half a megabyte at once, and two large answers; others wait

Each connection carries one request and is closed.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from minires.errors import MiniresError
from minires.local_page.messages import END, LONGEST_HEAD, Answer, Refusal, Request, parse, refused

CONNECTIONS = 400  # at once
BACKLOG = 128  # more that wait in the system to be taken in
PATIENCE = 20.0  # seconds in which a request must be here, and again an answer fetched
LINGER = 2.0  # seconds for which the rest of a request is thrown away, after the answer
WORKING = 256  # requests that are worked on or wait for it
WORKERS = 4  # threads that work
SMALL = 500_000  # bytes of an upload for which there is always room
LARGE, HEAVY = 4, 2  # larger uploads, and large answers, in memory at once
WAIT = 60.0  # seconds in which there must be room for a large upload
CHUNK = 65_536  # bytes that are read at once


@dataclass(frozen=True)
class Task:
    """What a request asks for, once it is clear that it may.

    most    bytes of content that may be sent; None if the content, if there is any, is not read
    quick   done at once, and not by a worker
    heavy   the answer is large: few at a time
    """

    do: Callable[[bytes], Answer]
    most: int | None = None
    quick: bool = False
    heavy: bool = False


class Connections:
    """Answers who connects to ``listener``; ``find`` gives the task of a request, or raises Refusal."""

    def __init__(self, listener: socket.socket, find: Callable[[Request], Task]) -> None:
        self._listener, self._find = listener, find
        self._open: set[asyncio.StreamWriter] = set()
        self._incomplete: dict[asyncio.StreamWriter, None] = {}  # no whole request is here; oldest first
        self._answered: dict[asyncio.StreamWriter, None] = {}  # nobody needs them any more; oldest first
        self._working = 0

    async def serve(self, ended: asyncio.Event) -> None:
        """Answer until ``ended`` is set."""
        self._large, self._heavy = asyncio.Semaphore(LARGE), asyncio.Semaphore(HEAVY)
        self._workers = Workers(WORKERS)
        asyncio.get_running_loop().set_exception_handler(self._trouble)
        server = await asyncio.start_server(
            self._connected, sock=self._listener, backlog=BACKLOG, limit=CHUNK
        )
        try:
            await ended.wait()
        finally:
            server.close()
            for writer in list(self._open):
                writer.transport.abort()
            self._workers.close()

    def _trouble(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """No descriptor is left, a client went away in the wrong moment, or the server ends; anything else is
        our mistake."""
        if not isinstance(context.get("exception"), OSError | asyncio.CancelledError):
            loop.default_exception_handler(context)
        while context.get("socket") is not None and self._make_room():
            pass

    def _make_room(self) -> bool:
        """Let one connection go whose place a newcomer may take; False if there is none."""
        if self._answered:
            oldest = next(iter(self._answered))
        elif self._incomplete:
            oldest = next(iter(self._incomplete))
            oldest.write(refused(_busy("many others have come")).message())
        else:
            return False
        self._answered.pop(oldest, None)
        self._incomplete.pop(oldest, None)
        self._open.discard(oldest)
        oldest.transport.abort()  # what was written is with the system already
        return True

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        writer.transport.set_write_buffer_limits(high=0)  # what has drained is gone
        try:
            for _ in range(3):  # a request that is here already is read before anybody is sent away
                await asyncio.sleep(0)
            while len(self._open) > CONNECTIONS and self._make_room():  # several may have come at once
                pass
            self._incomplete[writer] = None
            if len(self._open) > CONNECTIONS:
                await self._send(writer, refused(_busy(f"{CONNECTIONS} connections are open")))
            else:
                await self._talk(reader, writer)
            self._incomplete.pop(writer, None)
            self._answered[writer] = None
            await _throw_away(reader)
        except OSError:
            pass  # the client went away, or did not fetch its answer in time
        except asyncio.CancelledError:
            pass  # the server ends
        finally:
            self._open.discard(writer)
            self._incomplete.pop(writer, None)
            self._answered.pop(writer, None)
            writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request and its answer. What is held of the memory is given back once the answer is fetched."""
        head_only = False
        async with AsyncExitStack() as held:
            try:
                if (received := await _head(reader)) is None:
                    return
                head, content = received
                request = parse(head)
                head_only = request.method == "HEAD"
                task = self._find(request)
                if task.most is not None:
                    size = request.length(task.most)
                    if request.headers.get("expect", "").lower() == "100-continue":
                        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    content = await self._content(reader, content[:size], size, held)
                self._incomplete.pop(writer, None)
                answer = await self._work(task, content, held)
            except Refusal as refusal:
                answer = refused(refusal)
            await self._send(writer, answer, head_only=head_only)

    async def _content(
        self, reader: asyncio.StreamReader, start: bytes, size: int, held: AsyncExitStack
    ) -> bytes:
        """What was sent, ``size`` bytes that begin with ``start``. Raises: Refusal if it does not come."""
        content = bytearray(start)
        if size > SMALL:
            try:
                async with asyncio.timeout(WAIT):
                    await held.enter_async_context(self._large)
            except TimeoutError:
                raise _busy("other large pictures are being sent") from None
        try:
            async with asyncio.timeout(PATIENCE):
                while len(content) < size and (chunk := await reader.read(min(CHUNK, size - len(content)))):
                    content += chunk
        except TimeoutError:
            message = f"the picture did not arrive within {PATIENCE:g} seconds; send it again"
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "slow", message) from None
        if len(content) < size:
            message = f"only {len(content):,} of {size:,} bytes arrived; send the picture again"
            raise Refusal(HTTPStatus.BAD_REQUEST, "short", message)
        return bytes(content)

    async def _work(self, task: Task, content: bytes, held: AsyncExitStack) -> Answer:
        if task.quick:
            return _answered(task, content)
        if self._working >= WORKING:
            raise _busy(f"{WORKING} requests wait already")
        self._working += 1
        try:
            if task.heavy:
                await held.enter_async_context(self._heavy)
            return await self._workers.do(partial(_answered, task, content))
        finally:
            self._working -= 1

    async def _send(self, writer: asyncio.StreamWriter, answer: Answer, *, head_only: bool = False) -> None:
        if writer.transport.is_closing():
            return
        async with asyncio.timeout(PATIENCE):
            writer.write(answer.message(head_only=head_only))
            await writer.drain()
            writer.write_eof()


async def _head(reader: asyncio.StreamReader) -> tuple[bytes, bytes] | None:
    """The head of a request, and what came with it of the content; None if nothing came at all.

    Raises: Refusal if it does not come as a whole, or is too long.
    """
    head, end = bytearray(), None
    refusal = Refusal(HTTPStatus.BAD_REQUEST, "short", "the head of this request is not complete")
    try:
        async with asyncio.timeout(PATIENCE):
            while len(head) <= LONGEST_HEAD and end is None and (chunk := await reader.read(CHUNK)):
                head += chunk
                end = END.search(head, max(0, len(head) - len(chunk) - 3))
    except TimeoutError:
        message = f"the request did not arrive within {PATIENCE:g} seconds"
        refusal = Refusal(HTTPStatus.REQUEST_TIMEOUT, "slow", message)
    if not head:
        return None
    if (end.end() if end else len(head)) > LONGEST_HEAD:
        message = f"the head of this request has more than {LONGEST_HEAD:,} bytes"
        raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "request", message)
    if end is None:
        raise refusal
    return bytes(head[: end.end()]), bytes(head[end.end() :])


async def _throw_away(reader: asyncio.StreamReader) -> None:
    """Closing a connection on which there is something unread would reset it, answer and all."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            while await reader.read(CHUNK):
                pass


def _busy(why: str) -> Refusal:
    message = f"the page is busy: {why}; try again in a moment"
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "busy", message, Retry_After="2")


def _answered(task: Task, content: bytes) -> Answer:
    """The answer of a task, whatever happens in it."""
    try:
        return task.do(content)
    except Refusal as refusal:
        return refused(refusal)
    except MiniresError as error:
        return refused(Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "picture", str(error)))
    except MemoryError:
        message = "this machine has too little memory for this picture; make the picture smaller"
        return refused(Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "memory", message))
    except Exception as error:
        traceback.print_exc()
        message = f"minires made a mistake: {type(error).__name__}: {error}"
        return refused(Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "mistake", message))


def more_descriptors() -> None:
    """Let this process have as many connections open as it may need, where the system has such a limit."""
    if sys.platform == "win32":
        return
    import resource

    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * CONNECTIONS if most == resource.RLIM_INFINITY else min(4 * CONNECTIONS, most)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


class Workers:
    """Threads that do what they are given, in its order; they do not hold up the end of the program."""

    def __init__(self, count: int) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._count = count
        for number in range(count):
            threading.Thread(target=self._run, name=f"minires-page-{number}", daemon=True).start()

    async def do(self, job: Callable[[], Answer]) -> Answer:
        """What ``job`` returns; it may raise nothing."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()

        def give(answer: Answer) -> None:
            if not future.done():
                future.set_result(answer)

        def work() -> None:
            if not future.cancelled():
                answer = job()
                with suppress(RuntimeError):  # the server has ended meanwhile
                    loop.call_soon_threadsafe(give, answer)

        self._jobs.put(work)
        return await future

    def _run(self) -> None:
        while (work := self._jobs.get()) is not None:
            work()
            del work  # the upload in it, too, before the next one comes

    def close(self) -> None:
        """No more jobs: the threads end after what they do."""
        for _ in range(self._count):
            self._jobs.put(None)
