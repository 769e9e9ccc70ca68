"""Server-sent events, in whatever pieces they arrive: as the standard has them, and as its examples say."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billhook.event_stream import EventStream, Message

EXAMPLES = [  # of WHATWG HTML, 9.2.6, and what its rules say
    (b"data: YHOO\ndata: +2\ndata: 10\n\n", [("message", "YHOO\n+2\n10", "")]),
    (b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
     [("message", "first event", "1"), ("message", "second event", ""), ("message", " third event", "")]),
    (b"data\n\ndata\ndata\n\ndata:", [("message", "", ""), ("message", "\n", "")]),
    (b"data:test\n\ndata: test\n\n", [("message", "test", ""), ("message", "test", "")]),
    (b"event: add\ndata: 1\n\ndata: 2\n\n", [("add", "1", ""), ("message", "2", "")]),
    (b"event: nothing\n\ndata: x\n\n", [("message", "x", "")]),
    (b"id: 7\n\ndata: x\n\n", [("message", "x", "7")]),
    (b"id: 1\0\ndata: x\n\n", [("message", "x", "")]),
    (b"\xef\xbb\xbfdata: x\n\n\xef\xbb\xbfdata: y\n\n", [("message", "x", "")]),
    (b"data: a\r\ndata: b\r\rdata: c\n\r\n", [("message", "a\nb", ""), ("message", "c", "")]),
    (b"data: \xf0\x9f\xaa\x93\xff\xe2\x80\xa8\x85\n\n", [("message", "\U0001fa93\ufffd\u2028\ufffd", "")]),
    (b"data: cut off\n", []),
    (b"data: a:b\nnone: x\nDATA: y\n data: z\n\n", [("message", "a:b", "")]),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "messages"), EXAMPLES)
def test_what_the_standard_says(sent: bytes, messages: list[tuple[str, str, str]]) -> None:
    assert EventStream().feed(sent) == [Message(*each) for each in messages]
    stream = EventStream()
    bytewise = [message for byte in sent for message in stream.feed(bytes([byte]))]
    assert bytewise == [Message(*each) for each in messages]


def test_how_long_to_wait() -> None:
    stream = EventStream()
    for said, seconds in (("2000", 2.0), ("-1", 2.0), ("1.5", 2.0), ("٣", 2.0), ("0", 0.0)):
        stream.feed(f"retry: {said}\n".encode())
        assert stream.retry_seconds == seconds


def test_where_it_was_broken_off() -> None:
    stream = EventStream("41")
    stream.feed(b"data: x\n\nid: 42\ndata: y\n")
    assert stream.last_id == "41", "a message counts when it is complete"
    stream.feed(b"\n")
    assert stream.last_id == "42"


texts = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=20)
messages = st.lists(
    st.tuples(texts.filter(bool), st.lists(texts, min_size=1, max_size=3), texts, st.sampled_from(["\n", "\r", "\r\n"]))
)


@given(messages, st.lists(st.integers(0, 2_000)), st.booleans())
def test_pieces_do_not_matter(wanted: list[tuple[str, list[str], str, str]], cuts: list[int], mark: bool) -> None:
    sent = b"\xef\xbb\xbf" if mark else b""
    for event, lines, number, end in wanted:
        fields = [f"event: {event}", *(f"data: {line}" for line in lines), f"id: {number}", ": comment", "", ""]
        sent += end.join(fields).encode()
    stream = EventStream()
    edges = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    found = [message for start, end in pairwise(edges) for message in stream.feed(sent[start:end])]
    assert found == [Message(event, "\n".join(lines), number) for event, lines, number, _ in wanted]
