"""The worker of a `WebhookQueue`: runs handlers side by side, retries, gives up, stops in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from webhook_queue import Delivery, Job, QueueUnavailable, WebhookQueue

logger = logging.getLogger(__name__)
Handler = Callable[[Delivery], Awaitable[object]]


class Retry(Exception):
    """Raised by a handler: try again, `after` seconds from now at the earliest."""

    def __init__(self, after: float = 0) -> None:
        if not (_is_number(after) and after >= 0):
            raise ValueError(f"after must be a number of seconds, 0 or more, got {after!r}")
        super().__init__(f"after {after} s")
        self.after = after


class Drop(Exception):
    """Raised by a handler: this can never succeed. The job is dead at once, for `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def name_of(error: BaseException) -> str:
    """Describe an error by its class: its text may hold what the event holds."""
    return type(error).__name__


class Worker:
    """Runs the jobs of a queue. Start as many processes of it as you like.

    Args:
        queue: Where the jobs are.
        handlers: By event type; "*" takes what has none. A type without a handler is dead at once.
        concurrency: How many jobs run at a time.
        timeout: How many seconds a handler may take; shorter than the queue's `visibility`.
        grace: How many seconds running jobs get to finish when the worker stops.
        poll: How often delayed and lost jobs are looked for while nothing is new, in seconds.
        describe: Makes the text that is kept with a dead job.

    Raises:
        ValueError: A number is not above 0, or `timeout` is not below `visibility`: a job that is
            still running would be taken for lost.
    """

    def __init__(
        self,
        queue: WebhookQueue,
        handlers: Mapping[str, Handler],
        *,
        concurrency: int = 10,
        timeout: float = 30,
        grace: float = 20,
        poll: float = 1.0,
        describe: Callable[[BaseException], str] = name_of,
    ) -> None:
        for name, seconds in (("timeout", timeout), ("grace", grace), ("poll", poll)):
            if not (_is_number(seconds) and seconds > 0):
                raise ValueError(f"{name} must be a number of seconds over 0, got {seconds!r}")
        if timeout >= queue.visibility:
            raise ValueError(f"timeout must be below the queue's visibility, got {timeout!r}")
        if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
            raise ValueError(f"concurrency must be a whole number over 0, got {concurrency!r}")
        self._queue = queue
        self._handlers = dict(handlers)
        self._describe = describe
        self._concurrency = concurrency
        self._timeout = timeout
        self._grace = grace
        self._poll = poll
        self._running: set[asyncio.Task[None]] = set()
        self._lost: asyncio.Task[None] | None = None  # the one among them that another worker lost
        self._recovering = False

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; then take nothing new, and finish what runs within `grace`.

        What is still running afterwards is cancelled; another worker gets it after `visibility`. An
        outage of Redis is waited out.
        """
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                if free := self._concurrency - len(self._running):
                    await self._start_jobs(free, stopping)
                else:
                    await asyncio.wait(
                        {stopping, *self._running}, return_when=asyncio.FIRST_COMPLETED
                    )
            if self._running:
                await asyncio.wait(self._running, timeout=self._grace)
        finally:
            left = [stopping, *self._running]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _start_jobs(self, free: int, stopping: asyncio.Future[Any]) -> None:
        # If it kills us as well, it does so without other lost ones: each such loss is an attempt,
        # and a job that kills would take its neighbors with it to the dead.
        more = self._lost is None or self._lost.done()
        block = min(self._poll, 0.02) if self._recovering else self._poll
        jobs: Sequence[Job] = ()
        try:
            jobs = await self._queue.take(free, block=block, lost=more)
        except QueueUnavailable as error:
            logger.warning("no jobs: %s", error)
            await asyncio.wait({stopping}, timeout=self._poll)
        # redis-py 8 now and then takes a cancellation for a timeout of its own, and goes on.
        if (current := asyncio.current_task()) and current.cancelling():
            raise asyncio.CancelledError
        if more:
            self._recovering = any(job.lost for job in jobs)
        for job in jobs:
            task = asyncio.create_task(self._run_job(job))
            if job.lost:
                self._lost = task
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run_job(self, job: Job) -> None:
        try:
            await self._attempt_job(job)
        except QueueUnavailable as error:  # it is not acknowledged: somebody gets it again
            logger.warning("job %s not settled: %s", job.delivery.id, error)

    async def _attempt_job(self, job: Job) -> None:
        queue, kind = self._queue, job.delivery.type
        handler = self._handlers.get(kind) or self._handlers.get("*")
        if handler is None:
            await self._bury_job(job, "no handler for this type")
        elif job.attempt > queue.max_attempts:  # those that it began were lost with their workers
            await self._bury_job(job, "lost with its worker")
        elif (error := await self._run_handler(handler, job.delivery)) is None:
            await queue.done(job)
        elif isinstance(error, Drop):
            await self._bury_job(job, error.reason)
        elif job.attempt == queue.max_attempts:
            await self._bury_job(job, self._describe(error))
        else:
            logger.info(
                "job %s: attempt %d failed (%s)", job.delivery.id, job.attempt, name_of(error)
            )
            await queue.retry(job, error.after if isinstance(error, Retry) else 0)

    async def _bury_job(self, job: Job, error: str) -> None:
        logger.error("job %s is dead after attempt %d", job.delivery.id, job.attempt)
        await self._queue.bury(job, error)

    async def _run_handler(self, handler: Handler, delivery: Delivery) -> BaseException | None:
        task = asyncio.create_task(_error_of(handler, delivery))
        try:
            await asyncio.wait({task}, timeout=self._timeout)
            if task.done():
                return asyncio.CancelledError() if task.cancelled() else task.result()
            task.cancel()
            # A handler that swallows its cancellation is left behind, and must not hold the slot.
            patience = min(1.0, (self._queue.visibility - self._timeout) / 2)
            await asyncio.wait({task}, timeout=patience)
            return TimeoutError()
        finally:
            task.cancel()


async def _error_of(handler: Handler, delivery: Delivery) -> BaseException | None:
    try:
        await handler(delivery)
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # a SystemExit would end the loop of all others
        return error
    return None


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
