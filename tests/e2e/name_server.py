"""A name server for one namespace: answers UDP and TCP on 127.0.0.1 port 53 from a zone, and misbehaves on request.

python -m tests.e2e.name_server ZONE.json      {"NAME TYPE": ["record", ...] or "refused" or "silent"}
"""

import json
import sys
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import trio

MAX_UDP_BYTES = 1_232
Zone = dict[str, list[str] | str]


def answer_to(data: bytes, zone: Zone, max_bytes: int) -> bytes | None:
    """None: no answer."""
    question = dns.message.from_wire(data)
    (asked,) = question.question
    name, kind = asked.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(asked.rdtype)
    found = zone.get(f"{name} {kind}")
    answer = dns.message.make_response(question, recursion_available=True)
    if found == "silent":
        return None
    if found == "refused":
        answer.set_rcode(dns.rcode.REFUSED)
    elif found is None and not any(key.startswith(f"{name} ") for key in zone):
        answer.set_rcode(dns.rcode.NXDOMAIN)
    elif isinstance(found, list):
        answer.answer.append(dns.rrset.from_text_list(asked.name, 1, "IN", kind, found))
    wire = answer.to_wire(max_size=65_535)
    if len(wire) > max_bytes:
        answer.answer.clear()
        answer.flags |= dns.flags.TC
        wire = answer.to_wire()
    return wire


async def serve(zone: Zone) -> None:
    datagrams = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
    await datagrams.bind(("127.0.0.1", 53))

    async def serve_stream(stream: trio.SocketStream) -> None:
        received = bytearray()
        async for data in stream:
            received += data
            if len(received) >= 2 and len(received) >= 2 + int.from_bytes(received[:2], "big"):
                answer = answer_to(bytes(received[2:]), zone, 65_535)
                if answer is not None:
                    await stream.send_all(len(answer).to_bytes(2, "big") + answer)
                return

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_tcp, serve_stream, 53)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            data, sender = await datagrams.recvfrom(65_535)
            answer = answer_to(data, zone, MAX_UDP_BYTES)
            if answer is not None:
                await datagrams.sendto(answer, sender)


if __name__ == "__main__":
    trio.run(serve, json.loads(Path(sys.argv[1]).read_text()))
