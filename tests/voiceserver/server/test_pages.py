"""The pages without a browser: who may see and press what, what the files load, and that every figure is a metric."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from voiceserver.capacity.admission import Admission
from voiceserver.capacity.controller import CapacityController
from voiceserver.config.schema import AuthConfig, Config, ServerConfig, StageConfig, StagesConfig
from voiceserver.events.events import Accounting, ReplyDone, ServerBusy, Timings
from voiceserver.observability.history import History
from voiceserver.observability.metrics import Metrics
from voiceserver.pool import PoolStats, WorkerStats
from voiceserver.server import pages
from voiceserver.server.auth import MADE_PREFIX, Auth, hash_of
from voiceserver.server.overview import OverviewSource
from voiceserver.server.stage_problems import StageProblems
from voiceserver.session.settings import ServerSnapshot
from voiceserver.testing import ManualClock
from voiceserver.transport.http import Response, Router, Routes, json_response
from voiceserver.transport.server_state import ServerState
from voiceserver.transport.ticks import Ticks
from voiceserver.wire.registry import WIRES

ROOT = Path(__file__).resolve().parents[3]
WEB = ROOT / "voiceserver" / "web"
LOCAL = "127.0.0.1"
ACTION = "X-Voiceserver-Action: drain\r\n"
TOKEN = MADE_PREFIX + "secret"
BUTTON = f"{ACTION}Authorization: Bearer {TOKEN}\r\n"
NO_KEYS = AuthConfig(admin_token=TOKEN)
TRACES = (
    *("X-Forwarded-For: 192.0.2.7", "X-Forwarded-Proto: https", "Forwarded: for=192.0.2.7", "Via: 1.1 proxy"),
    *(
        "X-Real-IP: 192.0.2.7",
        "CF-Connecting-IP: 192.0.2.7",
        "True-Client-IP: 192.0.2.7",
        "Tailscale-User: x",
    ),
    *("X-Envoy-Peer: x", "X-Amzn-Trace-Id: x", "Fly-Client-IP: 192.0.2.7", "X-A-Header-Of-Tomorrow: 1"),
)


class Site:
    """A router with the pages, and how often somebody drained it."""

    def __init__(self, auth: AuthConfig = NO_KEYS, bound: str = LOCAL, port: int = 8765) -> None:
        self.metrics, self.state = Metrics(), ServerState()
        self.state.listen_on(port)
        routes = Routes(pages={"/v1/capacity": lambda caller: json_response(200, {"is_draining": False})})
        gatekeeper, admission = Auth(auth, lambda: 0.0, "test"), Admission(0, 0, "connection", 1_000.0)
        self.router = Router(routes, admission, gatekeeper, self.state, lambda *_: None, random.Random(1))
        self.drained = 0
        limited = CapacityController(
            {},
            admission,
            ServerSnapshot(),
            is_learned=False,
            windows_ms={},
            on_change=lambda *_: None,
            now_ms=0.0,
        )
        stage = StageConfig(engine="chat", params={"base_url": "http://me:pw@llm/v1", "api_key": "sk-secret"})
        none = StageConfig()
        config = Config(stages=StagesConfig(none, none, stage, none))
        ticks = Ticks(ManualClock(), lambda: 0.0)
        source = OverviewSource(config, History(self.metrics.history_counts), StageProblems(), limited, ticks)
        pages.add(routes, gatekeeper, self.metrics, self.state, self._drain, source, ServerConfig(host=bound))

    def _drain(self) -> None:
        self.drained += 1

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        more: str = "",
        peer: str = LOCAL,
        host: str = "localhost:8765",
    ) -> Response:
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n"
        answer = self.router.answer(head.encode(), 0.0, peer)
        assert isinstance(answer, Response)
        return answer


@pytest.fixture
def site() -> Site:
    return Site()


def observed() -> Metrics:
    """Metrics of a server to which something of every kind has happened."""
    metrics = Metrics()
    worker = WorkerStats(0, 17, "ready", 1, 3, 2, 40.0, 10, 25, 12.5)
    metrics.observe_pools(lambda: [PoolStats("stt", "echo", (worker,), 3, 1, 40.0, 1, 2.5)])
    admission = Admission(0, 0, "connection", 1_000.0)
    controller = CapacityController(
        {},
        admission,
        ServerSnapshot(),
        is_learned=False,
        windows_ms={},
        on_change=lambda name, fields: None,
        now_ms=0.0,
    )
    metrics.observe_admission(admission, controller, list)
    metrics.observe_state(lambda: False, [wire.name for wire in WIRES])
    metrics.count_opened("native")
    metrics.count_closed("native", 1000, Accounting(100.0, 80.0, 20.0, 0.0))
    metrics.count_refused("at_capacity")
    metrics.count_http(200)
    metrics.count_error("invalid_json")
    metrics.observe(ServerBusy("stt", "slow", 300.0, 1_000.0, 300.0))
    metrics.observe(ReplyDone(1, "completed", Timings(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)))
    return metrics


@pytest.mark.parametrize("path", ["/", "/dashboard", "/web/app.js", "/web/style.css", "/web/favicon.svg"])
def test_pages_come_with_a_strict_policy_and_their_type(site: Site, path: str) -> None:
    answer = site.ask(path)
    headers = dict(answer.headers)
    assert answer.status == 200
    assert answer.content_type in pages._TYPES.values()
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("accepted", "is_zipped"),
    [
        ("gzip, deflate, br, zstd", True),
        ("br;q=1.0, GZIP;q=0.2", True),
        ("*", True),
        ("*;q=0.5, gzip;q=0", False),
        ("gzip;q=0.0", False),
        ("identity", False),
        ("", False),
        (None, False),
    ],
)
def test_pages_are_compressed_for_who_takes_that(site: Site, accepted: str | None, is_zipped: bool) -> None:
    plain = site.ask("/web/app.js")
    more = "" if accepted is None else f"Accept-Encoding: {accepted}\r\n"
    answer = site.ask("/web/app.js", more=more)
    headers = dict(answer.headers)
    assert headers["Vary"] == "Accept-Encoding"
    assert (headers.get("Content-Encoding") == "gzip") is is_zipped
    assert (gzip.decompress(answer.body) if is_zipped else answer.body) == plain.body
    assert plain.body == (WEB / "app.js").read_bytes()


def test_the_page_and_the_dashboard_are_small(site: Site) -> None:
    """All that a browser loads at once, as it is sent: before the drawer came it was 61 KB, and 32 KB for the dashboard."""
    for start, at_most in (("/", 40_000), ("/dashboard", 25_000)):
        waiting, seen, size = [start], set(), 0
        while waiting:
            path = waiting.pop()
            if path in seen:
                continue
            seen.add(path)
            size += len(site.ask(path, more="Accept-Encoding: gzip\r\n").body)
            text = site.ask(path).body.decode()
            waiting += re.findall(r'(?:src|href)="(/web/[^"#]+)"', text) if path == start else []
            waiting += [
                f"/web/{name}" for name in re.findall(r'^import .* from "\./([^"]+)"', text, re.MULTILINE)
            ]
            waiting += [f"/web/{name}" for name in re.findall(r'"([\w.]+\.worklet\.js)"', text)]
        assert size < at_most, (start, size, sorted(seen))


@pytest.mark.parametrize(
    ("host", "cert", "address"),
    [
        ("0.0.0.0", "", "http://localhost:8765/"),
        ("127.0.0.1", "", "http://127.0.0.1:8765/"),
        ("::1", "", "http://[::1]:8765/"),
        ("::", "c.pem", "https://localhost:8765/"),
    ],
)
def test_the_log_says_where_the_page_is(host: str, cert: str, address: str) -> None:
    assert pages.address(ServerConfig(host=host, tls_cert=cert), 8765) == address


def test_pages_load_only_what_is_served_here(site: Site) -> None:
    loaded: set[str] = set()
    for file in filter(Path.is_file, WEB.iterdir()):
        text = file.read_text()
        assert not set(re.findall(r"https?://[^\"'\s)]+", text)) - {"http://www.w3.org/2000/svg"}, file.name
        loaded.update(re.findall(r'(?:src|href)="([^"#]+)"', text))
        loaded.update(f"/web/{name}" for name in re.findall(r'from "\./([^"]+)"', text))
        loaded.update(f"/web/{name}" for name in re.findall(r'"([\w.]+\.worklet\.js)"', text))
        assert not re.search(r"<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=", text), f"{file.name}: inline"
    assert loaded >= {"/", "/dashboard", "/web/app.js", "/web/resample.js", "/web/player.worklet.js"}
    assert not [path for path in sorted(loaded) if site.ask(path).status != 200]


def test_stats_are_the_samples_of_metrics_and_the_answer_of_capacity(site: Site) -> None:
    site.metrics.count_opened("native")
    site.metrics.count_refused("at_capacity")
    stats = json.loads(site.ask("/v1/stats").body)
    assert stats["capacity"] == {"is_draining": False}
    families = text_string_to_metric_families(site.metrics.to_text().decode())
    told = {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}
    found = {
        (name, tuple(sorted(labels.items()))): value
        for name, samples in stats["metrics"].items()
        for labels, value in samples
    }
    assert set(found) == set(told)
    changing = ("process_", "python_")  # time passes between the two
    assert {k: v for k, v in found.items() if not k[0].startswith(changing)} == {
        k: v for k, v in told.items() if not k[0].startswith(changing)
    }


def test_parameters_of_engines_are_for_this_machine_and_secrets_for_nobody(site: Site) -> None:
    here = json.loads(site.ask("/v1/stats").body)["about"]["stages"]["reply"]
    away = json.loads(site.ask("/v1/stats", peer="192.0.2.7").body)["about"]["stages"]["reply"]
    assert set(here["params"]) == {"base_url", "api_key"}
    assert away["params"] is None
    assert here["endpoint"].endswith("llm/v1")
    for told in (json.dumps(here), json.dumps(away)):
        assert "sk-secret" not in told
        assert "pw" not in told


@pytest.mark.parametrize(
    ("more", "peer", "host", "status"),
    [
        (BUTTON, "127.0.0.1", "localhost:8765", 202),
        (BUTTON, "::1", "[::1]:8765", 202),
        (BUTTON, "::ffff:127.0.0.1", "127.0.0.1:8765", 202),
        (BUTTON + "User-Agent: x\r\nSec-Fetch-Mode: cors\r\nSec-CH-UA: y\r\n", LOCAL, "localhost:8765", 202),
        (ACTION, "127.0.0.1", "localhost:8765", 401),
        (ACTION + "Authorization: Bearer vs_here_guess\r\n", "127.0.0.1", "localhost:8765", 401),
        (ACTION + "Authorization: Bearer \r\n", "127.0.0.1", "localhost:8765", 401),
        (BUTTON, "127.0.0.1", "127.0.0.1", 403),  # not the address that is listened on
        (BUTTON, "127.0.0.1", "127.0.0.1:80", 403),
        (BUTTON, "127.0.0.1", "127.0.0.2:8765", 403),
        ("", "127.0.0.1", "localhost:8765", 403),  # a form of another site
        (BUTTON, "192.0.2.7", "localhost:8765", 403),
        (BUTTON, "", "localhost:8765", 403),
        (BUTTON, "127.0.0.1", "evil.example:8765", 403),  # another site's name that leads here
        # A proxy on this machine.
        *((f"{BUTTON}{trace}\r\n", "127.0.0.1", "localhost:8765", 403) for trace in TRACES),
        (BUTTON + "Host: localhost:8765\r\n", "127.0.0.1", "localhost:8765", 400),
    ],
)
def test_without_keys_the_button_is_for_who_has_the_token_on_this_machine(
    site: Site, more: str, peer: str, host: str, status: int
) -> None:
    answer = site.ask("/v1/drain", method="POST", more=more, peer=peer, host=host)
    assert (answer.status, site.drained) == (status, int(status == 202))


def test_with_keys_the_button_and_the_figures_ask_for_an_admins(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(
        f'[keys.boss]\nhash = "{hash_of("vs_right")}"\nis_admin = true\n'
        f'[keys.caller]\nhash = "{hash_of("vs_other")}"\n'
    )
    site = Site(AuthConfig(keys_file=str(keys)))
    right, other = "Authorization: Bearer vs_right\r\n", "Authorization: Bearer vs_other\r\n"
    assert [site.ask("/v1/stats", more=more).status for more in ("", other, right)] == [401, 403, 200]
    pressed = [
        site.ask("/v1/drain", method="POST", more=ACTION + more, peer="192.0.2.7").status
        for more in ("", other, right)
    ]
    assert pressed == [401, 403, 202]
    assert site.ask("/v1/drain", method="POST", more=right).status == 403
    assert site.drained == 1


def test_a_list_of_origins_alone_opens_nothing_to_others() -> None:
    site = Site(AuthConfig(origins="https://page.example", admin_token=TOKEN))
    assert site.ask("/v1/stats").status == 200
    assert site.ask("/v1/drain", method="POST", more=BUTTON, peer="192.0.2.7").status == 403
    assert site.ask("/v1/drain", method="POST", more=BUTTON).status == 202


@pytest.mark.parametrize(
    ("bound", "peer", "host", "status"),
    [
        ("0.0.0.0", "127.0.0.1", "localhost:9000", 202),
        ("::", "::1", "[::1]:9000", 202),
        ("192.0.2.9", "192.0.2.9", "192.0.2.9:9000", 202),
        ("192.0.2.9", "192.0.2.8", "192.0.2.9:9000", 403),
        ("192.0.2.9", "192.0.2.9", "localhost:9000", 403),
        ("0.0.0.0", "127.0.0.1", "0.0.0.0.evil.example:9000", 403),
    ],
)
def test_this_machine_is_known_by_the_address_that_is_listened_on(
    bound: str, peer: str, host: str, status: int
) -> None:
    site = Site(NO_KEYS, bound, 9000)
    assert site.ask("/v1/drain", method="POST", more=BUTTON, peer=peer, host=host).status == status


def test_a_token_of_the_operator_is_good_from_everywhere_and_no_token_from_nowhere() -> None:
    given = f"{ACTION}Authorization: Bearer chosen\r\nX-Forwarded-For: 192.0.2.7\r\n"
    site = Site(AuthConfig(admin_token="chosen"))
    assert (
        site.ask("/v1/drain", method="POST", more=given, peer="192.0.2.7", host="voice.example").status == 202
    )
    assert site.ask("/v1/drain", method="POST", more=ACTION, peer="192.0.2.7").status == 401
    for more in (ACTION, f"{ACTION}Authorization: Bearer \r\n", BUTTON):
        assert Site(AuthConfig()).ask("/v1/drain", method="POST", more=more).status == 401


def test_beside_keys_the_admin_token_is_an_admins_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[keys.caller]\nhash = "{hash_of("vs_other")}"\n')
    site = Site(AuthConfig(keys_file=str(keys), admin_token="chosen"))
    for token, status in (("chosen", 200), ("vs_other", 403), ("x", 401)):
        assert site.ask("/v1/stats", more=f"Authorization: Bearer {token}\r\n").status == status


def test_pressing_twice_drains_once(site: Site) -> None:
    site.ask("/v1/drain", method="POST", more=BUTTON)
    site.state.begin_drain()
    assert site.ask("/v1/drain", method="POST", more=BUTTON).status == 202
    assert site.drained == 1


def test_only_the_button_takes_post(site: Site) -> None:
    assert dict(site.ask("/v1/drain").headers)["Allow"] == "POST"
    assert site.ask("/dashboard", method="POST").status == 405


@pytest.mark.parametrize("name", ["dashboard.js", "grafana-dashboard.json"])
def test_dashboards_name_metrics_that_exist(name: str) -> None:
    path = WEB / name if name.endswith("js") else ROOT / "deploy" / name
    text = path.read_text()
    if name.endswith("json"):
        panels = json.loads(text)["panels"]
        text = "\n".join(target["expr"] for panel in panels for target in panel["targets"])
        assert len(panels) > 15
    exported = set(observed().to_samples())
    exported |= {found.removesuffix("_bucket") for found in exported}
    named = set(re.findall(r"\bvoiceserver_\w*[a-z]\b", text))
    assert len(named) > 8
    assert not named - exported


def test_grafana_names_labels_that_exist() -> None:
    samples = observed().to_samples()
    text = (ROOT / "deploy" / "grafana-dashboard.json").read_text()
    known = {
        "instance",
        *(label for found in samples.values() for sample in found for label in sample.labels),
    }
    grouped = {name.strip() for names in re.findall(r"by \(([^)]+)\)", text) for name in names.split(",")}
    shown = set(re.findall(r"\{\{(\w+)\}\}", text))
    assert grouped | shown <= known
    assert shown >= {"stage", "worker", "part", "reason", "fate"}
