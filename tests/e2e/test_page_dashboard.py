"""The dashboard in a real browser: its figures are those of ``/metrics``, and its button drains."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.e2e.browser import Visit, chromium, visiting
from tests.e2e.serving import SMALL, ServerProcess, serving
from voiceserver.server import admin

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    chromium()
    with serving(*SMALL) as server:
        yield server


def tile(visit: Visit, title: str) -> str:
    found = visit.page.locator(".tile", has=visit.page.locator("h3", has_text=re.compile(f"^{title}$")))
    return str(found.locator("b").inner_text())


def metric(server: ServerProcess, line: str) -> float:
    text = server.get("/metrics")[1]
    found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
    assert found is not None, line
    return float(found[1])


def test_figures_are_those_of_metrics(server: ServerProcess, silence: Path) -> None:
    with (
        connect(server.url) as caller,
        connect(server.url) as idle,
        visiting(f"http://localhost:{server.port}/dashboard", silence) as visit,
    ):
        idle.recv()
        # Latencies are those since the page is open: it has to be, before somebody is answered.
        visit.wait("__dashboard.figures.last")
        caller.send(json.dumps({"type": "item.append", "item": {"role": "user", "text": "Hello"}}))
        caller.send(json.dumps({"type": "reply.create"}))
        while json.loads(caller.recv(timeout=30))["type"] != "reply.done":
            pass
        visit.wait("__dashboard.figures.value('voiceserver_replies_total') === 1")
        visit.wait("document.querySelector('#status').dataset.state === 'open'")
        assert tile(visit, "Sessions") == "2"
        assert tile(visit, "Service") == "Normal"
        assert metric(server, "voiceserver_sessions") == 2.0
        card = visit.page.locator(".stage", has_text="concierge")
        cells = card.locator("tbody tr").first.locator("th, td").all_inner_texts()
        assert cells[0].strip() == "0"
        assert float(cells[4]) == pytest.approx(
            metric(server, 'voiceserver_worker_items_total{stage="reply",worker="0"}')
            / metric(server, 'voiceserver_worker_steps_total{stage="reply",worker="0"}'),
            abs=0.05,
        )
        assert float(cells[1]) == metric(server, 'voiceserver_worker_streams{stage="reply",worker="0"}')
        took = visit.page.locator("#parts tbody tr", has_text="answer").locator("td").nth(1).inner_text()
        assert took.endswith("ms")
        assert (
            visit.page.locator("#door", has_text="admitted, native").locator("dd").first.inner_text() == "2"
        )
        visit.wait("document.querySelector('.tile .spark path:last-child').getAttribute('d').includes('L')")
        assert not visit.problems
        assert all(request.startswith(f"http://localhost:{server.port}/") for request in visit.requests)


def test_a_refused_caller_is_seen(silence: Path) -> None:
    chromium()
    with (
        serving(*SMALL, "backpressure.max_connections=1") as server,
        connect(server.url) as caller,
        visiting(f"http://localhost:{server.port}/dashboard", silence) as visit,
    ):
        caller.recv()
        visit.wait("__dashboard.figures.all.length >= 2")
        assert server.get("/v1/stream")[0] == 426
        with pytest.raises(Exception, match="503"):
            connect(server.url)
        visit.wait("__dashboard.figures.value('voiceserver_refused_total') === 1")
        visit.wait_text("#door", "refused")
        assert tile(visit, "Refused") == "1"


def test_a_failing_stage_is_named_with_its_endpoint_and_cause(silence: Path) -> None:
    chromium()
    with socket.create_server(("127.0.0.1", 0)) as held:
        endpoint = f"http://127.0.0.1:{held.getsockname()[1]}/v1"  # nobody listens there, once it is closed
    chat = ("engine=chat", f"params.base_url={endpoint}", "params.model=m", "params.uses_proxy=false")
    settings = [
        *SMALL[:2],
        SMALL[3],
        *(f"stages.reply.{one}" for one in chat),
        "stages.reply.params.api_key=sk-secret",
    ]
    with (
        serving(*settings) as server,
        visiting(f"http://localhost:{server.port}/dashboard", silence) as visit,
    ):
        line = visit.page.locator("#problems li")
        line.filter(has_text=endpoint).filter(has_text="does not answer").wait_for()
        assert line.inner_text().startswith("reply (chat)")
        assert visit.text("#about dd")
        visit.page.locator(".params summary").click()
        assert endpoint in visit.text(".params dl")
        assert "sk-secret" not in visit.page.content()


def test_the_page_has_a_past_when_it_opens(server: ServerProcess, silence: Path) -> None:
    with connect(server.url) as caller:
        caller.recv()
        deadline_s = time.monotonic() + 60
        while not any(
            one["name"] == "voiceserver_sessions" and 1 in one["values"]
            for one in server.get("/v1/history")[1]["series"]
        ):
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
        with visiting(f"http://localhost:{server.port}/dashboard", silence) as visit:
            visit.wait("__dashboard.figures.last?.capacity !== undefined")
            past = visit.page.evaluate(
                """__dashboard.figures.all.filter((one) => !one.capacity)
                    .map((one) => [one.atMs, one.metrics.voiceserver_sessions[0][1]])"""
            )
            assert past[-1][1] == 1
            assert past[-1][0] < visit.page.evaluate("__dashboard.figures.last.atMs")
            visit.wait(
                "document.querySelector('.tile .spark path:last-child').getAttribute('d').includes('L')"
            )
            assert not visit.problems


PAST = """async () => {
    const { Figures } = await import("/web/figures.js");
    const figures = new Figures();
    figures.addPast(0, { ages_ms: [20000, 10000], series: [
        { name: "gauge", labels: {}, values: [1, 2] },
        { name: "late", labels: {}, values: [null, 5] },
    ] });
    const read = (snapshot) => figures.value("gauge", {}, snapshot);
    for (let second = 0; second <= 5000; second++) {
        figures.add(second * 1000, { metrics: { gauge: [[{}, second]], other: [[{}, 1]] }, capacity: {} });
    }
    const steps = figures.all.map(({ atMs }, i) => atMs - (figures.all[i - 1]?.atMs ?? atMs)).slice(1);
    const points = figures.series(read);
    return {
        count: figures.all.length,
        spanMs: figures.spanMs,
        oldest: figures.all[0].metrics,
        steps: [Math.max(...steps), steps.at(-1)],
        right: points.every(([atMs, value]) => value === atMs / 1000),
    };
}"""


def test_an_hour_of_figures_stays_small_and_right(server: ServerProcess, silence: Path) -> None:
    with visiting(f"http://localhost:{server.port}/dashboard", silence) as visit:
        found = visit.page.evaluate(PAST)
        assert found["spanMs"] == 3_600_000
        assert 300 + 330 - 5 <= found["count"] <= 300 + 330 + 5  # five minutes by the second, the rest by ten
        assert list(found["oldest"]) == ["gauge"]
        assert found["steps"] == [10_000, 1_000]
        assert found["right"]


def test_without_the_admin_token_the_button_says_where_it_is(server: ServerProcess, silence: Path) -> None:
    with visiting(f"http://localhost:{server.port}/dashboard", silence) as visit:
        visit.wait("__dashboard.figures.last !== undefined")
        visit.page.get_by_role("button", name="Drain…").click()
        visit.page.get_by_role("button", name="Drain and stop").click()
        visit.wait_text("#drain-error", "voiceserver dashboard")
        assert server.get("/readyz")[0] == 200


def test_the_button_asks_first_and_then_drains(server: ServerProcess, silence: Path) -> None:
    token = admin.read(server.port)
    with visiting(f"http://localhost:{server.port}/dashboard#key={token}", silence) as visit:
        visit.wait("__dashboard.figures.last !== undefined")
        assert token not in visit.page.url
        visit.page.get_by_role("button", name="Drain…").click()
        visit.page.get_by_role("button", name="Keep running").click()
        assert server.get("/readyz")[0] == 200
        visit.page.get_by_role("button", name="Drain…").click()
        visit.page.get_by_role("button", name="Drain and stop").click()
        assert server.wait() == 0
        visit.wait_text("#status", "The server has stopped")


QUANTILE = """async (counts) => {
    const { quantile } = await import("/web/figures.js");
    return [0.5, 0.95, 1].map((share) => quantile(counts, share));
}"""


def test_percentiles_are_those_of_prometheus(server: ServerProcess, silence: Path) -> None:
    with visiting(f"http://localhost:{server.port}/dashboard", silence) as visit:
        spread = [[0.1, 50], [0.2, 90], [0.5, 100]]
        assert visit.page.evaluate(QUANTILE, spread) == pytest.approx([0.1, 0.35, 0.5])
        assert visit.page.evaluate(QUANTILE, [[0.1, 0], [0.2, 4]]) == pytest.approx([0.15, 0.195, 0.2])
        assert visit.page.evaluate(QUANTILE, [[0.1, 0]]) == [None, None, None]
