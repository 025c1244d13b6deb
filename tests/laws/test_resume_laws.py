"""A caller that has the newest token it was given gets back, however often answers are lost, and gets each message once."""

from __future__ import annotations

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from websockets.frames import Opcode

from tests.voiceserver.shell import Line, Shell, masked, text, upgrade
from voiceserver_workers.ipc.messages import ResultKind


class Resumes(RuleBasedStateMachine):
    """One call, a network that breaks it and swallows what the server sends, and a client that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.shell = Shell("reply")
        self.line: Line | None = self.shell.call()
        self.is_heard = True  # what the server sends on this connection arrives
        self.read = 0  # events of this connection
        self.counted = -1  # messages that the client has, without session.ready
        self.words: list[str] = []
        self.sent = 0
        self.token = ""
        self.offered: list[str] = []  # every token, the newest last
        self.came_with = ""
        self.receive()
        self.line.receive(text({"type": "reply.create"}))
        self.receive()

    def receive(self) -> None:
        """Read what came, if it came."""
        assert self.line is not None
        events = self.line.events()
        for event in events[self.read :]:
            if event["type"] == "session.ready":
                self.offered.append(event["resume_token"])
                if self.is_heard:
                    self.token = event["resume_token"]
                    self.counted = max(self.counted, 0)
            elif self.is_heard:
                self.counted += 1
                if event["type"] == "reply.text":
                    self.words += event["text"].split()
        self.read = len(events)

    @rule(count=st.integers(1, 5))
    def the_server_speaks(self, count: int) -> None:
        stream = self.shell.pools["reply"].streams[0]
        for _ in range(count):
            stream.answer(ResultKind.TEXT, stream.sent[0][1], stream.sent[0][2], b"w%d " % self.sent)
            self.sent += 1
        self.shell.loop.settle()
        if self.line is not None:
            self.receive()

    @precondition(lambda self: self.line is not None)
    @rule()
    def the_connection_breaks(self) -> None:
        assert self.line is not None
        self.line.lose()
        self.line = None

    @rule(is_heard=st.booleans())
    def the_client_comes_back(self, is_heard: bool) -> None:
        """Perhaps before the server knows that it was away; perhaps the answer is lost."""
        line = self.shell.call(upgrade(f"/v1/stream?resume={self.token}&after={self.counted}"))
        assert line.status == 101
        self.line, self.is_heard, self.read = line, is_heard, 0
        self.came_with = self.token
        self.receive()

    @precondition(lambda self: self.line is not None and self.is_heard)
    @rule()
    def the_client_answers_the_pings(self) -> None:
        assert self.line is not None
        pings = [bytes(frame.data) for frame in self.line.frames() if frame.opcode is Opcode.PING]
        for ping in pings:
            self.line.receive(masked(Opcode.PONG, ping))
            self.came_with = ""
        self.receive()

    @rule(data=st.data())
    def somebody_has_an_old_token(self, data: st.DataObject) -> None:
        good = (self.offered[-1], self.came_with)
        old = [token for token in self.offered if token not in good]
        if old:
            token = data.draw(st.sampled_from(old))
            assert self.shell.call(upgrade(f"/v1/stream?resume={token}")).status == 410

    @invariant()
    def each_message_came_once_and_in_order(self) -> None:
        assert self.words == [f"w{index}" for index in range(len(self.words))]
        if self.line is not None and self.is_heard:
            assert len(self.words) == self.sent

    @invariant()
    def the_call_is_counted_once(self) -> None:
        is_connected = self.line is not None
        state, store = self.shell.services.state, self.shell.services.sessions.store
        assert (state.sessions, store.detached) == (int(is_connected), int(not is_connected))
        assert self.shell.admission.taken == 1
        assert [one for one in state.connections if one.call is not None] == (
            [self.line.connection] if self.line is not None else []
        )


TestResumes = Resumes.TestCase
# To shrink a failure takes longer than a test may; the steps that led to it are printed all the same.
TestResumes.settings = settings(
    max_examples=30,
    stateful_step_count=20,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
