"""Seeds of what the cluster's processes send each other."""
import struct

from seed_bytes import blob, double, message, number, packed, real, seed, varint


def page_header(version=1, levels=1, sink=0, identity=0):
    fields = struct.pack("<IBBBB", version, levels, 0, sink, 0)
    hashes = struct.pack("<6Q", 0, identity, 1, 2, 3, 4)
    rest = struct.pack("<HHI4Q", 0, 1, 0, *[7] * 4)
    header = fields + hashes + rest + bytes(8 + 24)
    assert len(header) == 128
    return header


def make_page_header():
    seed("page_header", "plain", page_header())
    seed("page_header", "sink", page_header(levels=7, sink=1))
    seed("page_header", "version", page_header(version=9))


def make_store_messages():
    zero = bytes(16)
    packed = blob(2, varint(256) + varint(0))
    reserve = message(64, number(1, 1) + blob(2, blob(1, zero) + packed) + blob(2, blob(1, b"y" * 16) + packed))
    commit = message(66, number(1, 1) + blob(2, number(1, 1) + blob(2, page_header())))
    lookup = message(67, number(1, 2) + blob(2, zero))
    granted = blob(2, number(1, 1) + number(3, 1) + blob(4, bytes(4)))
    seed("store_messages", "to_store", reserve + commit + lookup + message(69, blob(1, varint(3))) +
         message(70, blob(1, varint(2))))
    seed("store_messages", "to_writer", message(65, number(1, 1) + granted * 2) +
         message(71, number(1, 1) + blob(2, b"\x01\x01")))
    found = blob(2, number(1, 5) + blob(2, page_header()) + blob(3, bytes(4)) + blob(4, varint(256) + bytes(3)))
    seed("store_messages", "to_reader", message(68, number(1, 2) + found * 2))


def make_handshake():
    def hears(side, what, body=b"", kind=0):
        return struct.pack("<BH", side | what << 1 | kind << 3, len(body)) + body

    honest = [hears(1, 0), hears(0, 0), hears(1, 0), hears(0, 0)]
    seed("handshake", "honest", b"".join(honest))
    seed("handshake", "changed_hello", hears(1, 2, b"\0" * 40 + b"\1") + b"".join(honest[1:]))
    seed("handshake", "changed_reply", honest[0] + hears(0, 2, b"\0" * 50 + b"\1") + b"".join(honest[2:]))
    seed("handshake", "changed_proof", b"".join(honest[:2]) + hears(1, 2, b"\0\0\1") + honest[3])
    peer = number(1, 1) + number(2, 3) + number(5, 1) + blob(6, b"host")
    seed("handshake", "hello", hears(1, 3, number(1, 1) + blob(2, bytes(32)) + blob(3, peer), 1))
    seed("handshake", "reply", hears(0, 3, number(1, 1) + blob(2, bytes(32)) + blob(3, peer) + blob(4, bytes(32)), 2))
    seed("handshake", "proof", honest[0] + hears(1, 3, blob(1, bytes(32)), 3))
    seed("handshake", "goodbye", hears(0, 3, blob(1, b"no\n") + number(2, 4), 6))


def make_cluster_messages():
    up, down, join, introduce, leave, metrics, state, prefixes = range(8)

    def says(sender, kind, body=b""):
        return message(sender << 5 | kind, body)

    cache = blob(1, b"m" * 16) + blob(2, b"l" * 16) + number(3, 16) + number(4, 2) + number(5, 2)
    rates = b"".join(double(i, 10.0 ** i) for i in range(1, 7))
    ready = number(2, 1) + number(4, 1) + number(6, 1000) + blob(9, cache) + blob(10, rates) + number(11, 50)
    seed("cluster_messages", "states", says(0, state, ready) + says(2, state, ready) + says(0, state, blob(3, b"no")))
    pages = number(1, 1) + number(2, 1) + blob(3, bytes(64))
    seed("cluster_messages", "pages", says(0, state, ready) + says(0, prefixes, pages) + says(3, prefixes, pages) +
         says(0, prefixes, number(1, 2) + blob(4, bytes(16))))
    seed("cluster_messages", "joins", says(4, join, number(1, 2)) + says(5, join, number(1, 1)) + says(4, join, b"\x08\0"))
    seed("cluster_messages", "come_and_go", says(3, introduce, blob(1, b"a:1")) + says(0, state, ready) +
         says(1, down) + says(1, up) + says(0, leave, number(1, 5)) + says(0, down) + says(3, leave) + says(0, up))
    family = struct.pack("<BHHI", 0, 1, 0, 1) + struct.pack("<H", 4) + b"stop" + struct.pack("<d", 1.0)
    seed("cluster_messages", "metrics", says(2, metrics, number(1, 1) + blob(2, family)))


def make_step_plan():
    none = (1 << 32) - 1

    def planned(sequence=1, tail=0, position=0, tokens=1, page=0, slabs=(), slot=None, more=b""):
        return blob(2, number(1, sequence) + number(2, tail) + number(3, position) + packed(4, [1] * tokens) +
                    number(5, page) + packed(6, slabs) + number(7, 1) +
                    number(9, position if slot is None else slot) + more)

    def plan(*parts):
        return message(0, number(1, 1) + b"".join(parts))

    def placed(slabs):
        return packed(1, slabs) + blob(2, bytes(16)) + number(3, 0)

    first = planned(tokens=64, slabs=[0, 0, 0, 1, 1])
    change = blob(12, number(1, 1) + packed(2, [1, none]))
    seed("step_plan", "levels", b"\0" + plan(first) + plan(planned(position=64, page=2, more=change)) +
         plan(packed(3, [1]), blob(4, placed([0, 0, 0])), blob(5, number(1, 5))))
    seed("step_plan", "window", b"\0" + plan(planned(tokens=33, slabs=[none, none, none])) + plan(planned(tokens=0)))
    seed("step_plan", "two", b"\0" + plan(planned(), planned(sequence=2, tail=1, more=number(13, 1))))
    seed("step_plan", "restore", b"\0" + message(1, number(1, 1) + blob(2, placed([0, 0, 0])) + blob(
        2, placed([none, 1])) + number(3, 1)))
    room = blob(10, number(1, 0) + number(2, 64))
    kept = blob(11, number(1, 16) + packed(2, [16, 16]) + packed(3, [1, 1]) + packed(4, [2, 3]))
    seed("step_plan", "chosen", b"\1" + plan(planned(tokens=32, slabs=[0], more=room)) + plan(planned(
        position=32, page=1, tokens=32, slabs=[1], more=room + kept)) + plan(planned(position=64, slot=0)))
    sampling = double(1, 0.5) + double(2, 0.9) + number(5, 9) + packed(9, [3]) + packed(15, [1]) + blob(
        16, struct.pack("<f", 2.5))
    seed("step_plan", "sampling", b"\0" + message(2, sampling))


def make_token_events():
    def scored(token, logprob=-0.5):
        return number(1, token) + real(2, logprob)

    def event(choice, tokens, more=b""):
        return message(choice, number(1, 1) + packed(2, tokens) + more)

    logprobs = blob(3, scored(0)) + blob(4, blob(1, scored(1)) + blob(1, scored(2, -1e30)))
    report = blob(12, number(1, 5) + number(8, 2) + number(9, 1) + number(10, 3))
    prompt = blob(13, scored(3)) + blob(14, blob(1, scored(3)))
    seed("token_events", "whole", b"\0" + event(0, [0], logprobs + number(8, 1)) + event(0, [1, 0], logprobs + report) +
         event(0, [], number(5, 2)))
    seed("token_events", "echo", b"\1" + message(0, prompt) + event(1, [0], prompt + number(5, 2)) + event(0, [0], number(5, 1)))
    seed("token_events", "choices", b"\2" + event(0, [3]) + event(1, [0, 1]) + event(0, [3, 3, 1], number(5, 1)) +
         event(129, [0, 4], number(5, 1)))
    seed("token_events", "chat", b"\3" + event(0, [0], logprobs) + event(128, [2, 1], report) + event(0, [], number(5, 2)))
    seed("token_events", "error", b"\3" + event(0, [0]) + event(0, [], number(5, 4) + blob(6, b"\xff no") + number(7, 99)))


def make():
    make_page_header()
    make_store_messages()
    make_handshake()
    make_cluster_messages()
    make_step_plan()
    make_token_events()
