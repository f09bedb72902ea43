"""Threads that nobody waits for: a program that is stopped ends, whatever one of them is waiting for.

Those of `ThreadPoolExecutor` are joined when Python exits; one that reads a file of a server that is gone, or decodes a
very large photo, would keep a run alive after Ctrl-C.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A few threads that do what is submitted, in its order; leaving the block drops what has not begun."""

    def __init__(self, number: int, name: str) -> None:
        self._tasks: SimpleQueue[_Task[Any] | None] = SimpleQueue()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._work, name=f"{name}_{i}", daemon=True) for i in range(number)]

    def __enter__(self) -> "Threads":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for _thread in self._threads:
            self._tasks.put(None)

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The result to come."""
        task = _Task(lambda: function(*args, **kwargs))
        self._tasks.put(task)
        return task.future

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if not self._stopped.is_set():
                task.run()
            del task  # or its result is held until the next one comes


class _Task(Generic[T]):
    def __init__(self, do: Callable[[], T]) -> None:
        self._do = do
        self.future: Future[T] = Future()

    def run(self) -> None:
        try:
            result = self._do()
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)
