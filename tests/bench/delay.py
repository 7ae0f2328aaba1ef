"""A TCP proxy on loopback that hands each answer on some milliseconds later.

`python -m tests.bench.delay PORT SERVER_PORT MILLISECONDS`: a network between the
bridge and Vault. It is a process of its own, since its work is no part of either.
"""

import asyncio
import sys
from functools import partial


async def main(port: int, server_port: int, seconds: float) -> None:
    """Serve until the end of standard input."""
    serve = partial(_serve, server_port, seconds)
    async with await asyncio.start_server(serve, "127.0.0.1", port):
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def _serve(
    server_port: int,
    seconds: float,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    from_server, to_server = await asyncio.open_connection("127.0.0.1", server_port)
    late = asyncio.create_task(_hand_on(from_server, writer, seconds))
    await _hand_on(reader, to_server, 0)
    await late


async def _hand_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float
) -> None:
    loop = asyncio.get_running_loop()
    while data := await reader.read(65536):
        if seconds:
            loop.call_later(seconds, writer.write, data)
        else:
            writer.write(data)
    loop.call_later(seconds, writer.close)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1e3))
