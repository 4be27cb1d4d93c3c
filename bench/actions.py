"""What actions cost: to stop a process, to start a tool, to pass on much output."""

import asyncio
import statistics
import time

import httpx2
import psutil

from bench.common import Row, holdfast, quantiles, serving
from bench.wire import Wire, connect
from tests.support.server import ServerProcess

GRACE_S = 1.0
OUTPUT_BYTES = 100_000_000
LINES = f"yes 0123456789abcdef0123456789abcdef0123456789abcdef | head -c {OUTPUT_BYTES}"


class Watch:
    """A session's socket; `at` has the first moment at which each of some words was seen."""

    def __init__(self, *words: bytes) -> None:
        self.at: dict[bytes, float] = {}
        self._words = words
        self._news = asyncio.Event()
        self.wire: Wire
        self.session = ""

    def __call__(self, payload: bytes) -> None:
        for word in self._words:
            if word not in self.at and word in payload:
                self.at[word] = time.perf_counter()
                self._news.set()

    async def seen(self, word: bytes) -> float:
        """Wait for a word; when it was seen."""
        while word not in self.at:
            self._news.clear()
            await self._news.wait()
        return self.at[word]

    async def open(self, server: ServerProcess, api: httpx2.AsyncClient) -> None:
        """Subscribe to a new session."""
        self.session = (await api.post("/api/sessions")).json()["id"]
        self.wire = await connect(server.port, self)
        self.wire.send(type="hello", id="1", protocol="1.0")
        self.wire.send(type="subscribe", id="2", session=self.session)

    def say(self, content: str) -> None:
        """Send a message."""
        self.wire.send(type="send", id="3", session=self.session, content=content)


START, SAID, RESULT, END = b"TOOL_CALL_START", b"action.output", b"TOOL_CALL_RESULT", b"RUN_FINISHED"


async def cancels() -> list[Row]:
    """(h) From the cancel frame to the end of the run, when its process is gone."""
    rows: list[Row] = []
    with serving("--kill-grace-s", str(GRACE_S)) as server:
        for name, command, count, grace, wanted in (
            ("obeys SIGTERM", "echo begun; exec sleep 300", 40, 0.0, "< 100"),
            ("ignores it, above the grace", "trap '' TERM; echo begun; while :; do sleep 1; done", 8, GRACE_S, "< 200"),
        ):
            times: list[float] = []
            async with httpx2.AsyncClient(base_url=server.base_url, trust_env=False) as api:
                for _ in range(count):
                    watch = Watch(SAID, END)
                    await watch.open(server, api)
                    watch.say(f"run {command}")
                    await watch.seen(SAID)
                    begin = time.perf_counter()
                    watch.wire.send(type="cancel", id="4", session=watch.session)
                    times.append((await watch.seen(END) - begin - grace) * 1000)
                    watch.wire.transport.abort()
            left = [p.pid for p in psutil.Process(server.pid).children(recursive=True)]
            p50, p99 = quantiles(times)
            row = (f"(h) cancel of a process that {name}, ms p50", f"{p50:.1f}", f"p99 {p99:.1f}", f"{len(left)} left")
            rows.append((*row, wanted))
    return rows


async def starts() -> list[Row]:
    """(i) From the beginning of an action to the first output of its command, beside a bare subprocess."""
    ours: list[float] = []
    with serving() as server:
        async with httpx2.AsyncClient(base_url=server.base_url, trust_env=False) as api:
            for _ in range(60):
                watch = Watch(START, SAID, END)
                await watch.open(server, api)
                watch.say("run echo x")
                begin = await watch.seen(START)
                ours.append((await watch.seen(SAID) - begin) * 1000)
                await watch.seen(END)
                watch.wire.transport.abort()
    control: list[float] = []
    for _ in range(60):
        begin = time.perf_counter()
        bare = await asyncio.create_subprocess_exec("/bin/bash", "-c", "echo x", stdout=asyncio.subprocess.PIPE)
        assert bare.stdout is not None
        await bare.stdout.read(1)
        control.append((time.perf_counter() - begin) * 1000)
        await bare.wait()
    o50, c50 = quantiles(ours)[0], quantiles(control)[0]
    return [
        (
            "(i) start of a command in the sandbox to its first output, ms p50",
            f"{o50:.1f}",
            f"{c50:.1f} bare subprocess",
            f"+{o50 - c50:.1f} ms",
            "<= +15 ms",
        )
    ]


async def output() -> list[Row]:
    """(j) 100 MB through a tool: how fast, what it costs others, what memory."""
    begin = time.perf_counter()
    pipe = await asyncio.create_subprocess_exec("/bin/bash", "-c", LINES, stdout=asyncio.subprocess.PIPE)
    assert pipe.stdout is not None
    while await pipe.stdout.read(1 << 16):
        pass
    control = time.perf_counter() - begin
    with serving("--agent", "bench.agents:steady") as server:
        process = psutil.Process(server.pid)
        _, alone = await holdfast(server, 20, "100 20", stamps=True)
        before = most = process.memory_info().rss
        others = asyncio.create_task(holdfast(server, 20, "160 20", stamps=True))
        await asyncio.sleep(1.0)
        async with httpx2.AsyncClient(base_url=server.base_url, trust_env=False) as api:
            took: list[float] = []
            while not others.done():
                watch = Watch(START, RESULT)
                await watch.open(server, api)
                watch.say(f"run {LINES}")
                start = await watch.seen(START)
                while RESULT not in watch.at:
                    await asyncio.sleep(0.02)
                    most = max(most, process.memory_info().rss)
                took.append(watch.at[RESULT] - start)
                watch.wire.transport.abort()
        _, beside = await others
    grown = (most - before) / 2**20
    rate, usual = OUTPUT_BYTES / statistics.median(took) / 1e6, OUTPUT_BYTES / control / 1e6
    p99, usual_p99 = quantiles(beside)[1], quantiles(alone)[1]
    return [
        ("(j) output of a command, MB/s", f"{rate:.0f}", f"{usual:.0f} bare pipe", f"{rate / usual:.2f}", ""),
        (
            "(j) latency p99 ms of 20 others, one such command after another",
            f"{p99:.1f}",
            f"{usual_p99:.1f} alone",
            f"{p99 / usual_p99:.1f}",
            "<= 2",
        ),
        ("(j) MiB that 100 MB of output add at most", f"{grown:.0f}", "-", "-", "<= 64"),
    ]
