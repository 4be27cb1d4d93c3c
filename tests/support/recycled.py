"""A pid that is used again, in a pid namespace of its own: whoever has it now is left alone. Run under `unshare`."""

import asyncio
import os
import subprocess
from pathlib import Path

from holdfast.engine.adopted import Adopted
from holdfast.engine.processes import end_leftover, process_started, spawn


def uptime_ticks() -> int:
    """The time since boot in clock ticks, as start times are told."""
    return int(float(Path("/proc/uptime").read_text().split()[0]) * os.sysconf("SC_CLK_TCK"))


async def main() -> None:
    first = await spawn(["sleep", "60"], env={"PATH": "/usr/bin:/bin"}, on_output=lambda *_: None, grouped=False)
    identity = first.identity
    await first.stop(0.0)
    while process_started(identity.pid):
        await asyncio.sleep(0.01)
    while uptime_ticks() <= int(identity.started) + 1:  # No pid comes round within one tick of the kernel's clock.
        await asyncio.sleep(0.005)
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(identity.pid - 1))
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)  # noqa: ASYNC220 - it must be the next fork
    assert bystander.pid == identity.pid, "the same number is another process"
    assert await end_leftover(identity, 0.1) is False
    adopted = Adopted(identity)
    assert (await asyncio.wait_for(adopted.wait(), 5)).how == "exited"
    await adopted.stop(0.1)
    assert bystander.poll() is None, "it is left alone"
    bystander.kill()
    bystander.wait()
    print("left alone")


if __name__ == "__main__":
    asyncio.run(main())
