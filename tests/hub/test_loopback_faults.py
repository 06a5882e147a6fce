"""What can be made to go wrong on the wire, and what the client makes of it."""

import hashlib
import http.client
import json
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from loopback_client import CONFIG, REPO, WEIGHTS, put, send, status_of
from loopback_hub import LoopbackHub, faults

pytest_plugins = ("loopback_client",)


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """How long the client would have waited between its attempts."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


@pytest.fixture
def info(own_hub, alice) -> str:
    """The URL of an answer in JSON."""
    return f"{own_hub.endpoint}/api/models/{REPO}"


@pytest.fixture
def weights(own_hub, alice) -> str:
    """The URL of a file at the CDN."""
    put(alice, {"model.safetensors": WEIGHTS, "config.json": CONFIG})
    return send("HEAD", f"{own_hub.endpoint}/{REPO}/resolve/main/model.safetensors").headers["Location"]


class TestPlanning:
    def test_a_fault_meets_the_given_number_of_requests(self, own_hub, alice):
        fault = own_hub.fail(r"GET /api/models/alice/resnet$", status=503, times=2)
        for _ in range(2):
            with pytest.raises(HfHubHTTPError) as error:
                alice.model_info(REPO)
            assert status_of(error) == 503
        assert alice.model_info(REPO).id == REPO
        assert fault.remaining == 0
        assert [record.status for record in own_hub.requests[-3:]] == [503, 503, 200]

    def test_a_fault_may_let_requests_pass_first(self, own_hub, info):
        own_hub.fail("GET", status=500, after=2)
        assert [send("GET", info).status for _ in range(4)] == [200, 200, 500, 200]

    def test_a_fault_ends_with_its_block(self, own_hub, info):
        with own_hub.fail("GET", faults.sleep(0), times=9) as fault:
            send("GET", info)
            assert fault.remaining == 8
        assert fault.remaining == 0

    def test_the_first_fault_that_matches_comes_first(self, own_hub, info):
        for pattern, status in (("POST", 500), ("GET /api", 501), ("GET", 502)):
            own_hub.fail(pattern, status=status)
        assert [send("GET", info).status for _ in range(3)] == [501, 502, 200]

    @pytest.mark.parametrize("options", [{}, {"status": 500, "effect": faults.drop()}])
    def test_either_an_effect_or_a_status(self, own_hub, options):
        with pytest.raises(TypeError, match="effect or a status"):
            own_hub.fail("GET", **options)

    def test_a_status_may_carry_headers(self, own_hub, alice):
        own_hub.fail("GET .*/revision/main", status=403, headers={"X-Error-Code": "GatedRepo"})
        with pytest.raises(GatedRepoError):
            alice.model_info(REPO, revision="main")


class TestEffects:
    def test_drop_and_lose_answer_differ_in_what_is_done(self, own_hub, alice):
        before = alice.model_info(REPO).sha
        for effect, is_done in ((faults.drop(), False), (faults.lose_answer(), True)):
            own_hub.fail("POST .*/commit/", effect)
            with pytest.raises(Exception, match="disconnected"):  # a class of the client's HTTP library
                put(alice, {"config.json": CONFIG})
            assert own_hub.requests[-1].status == 0
            assert (alice.model_info(REPO).sha != before) == is_done

    def test_a_hub_that_sleeps_answers_others(self, own_hub, info):
        fault = own_hub.fail("GET /slow", faults.sleep(60))
        with socket.create_connection(urlsplit(info).netloc.split(":")) as connection:
            connection.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
            while fault.remaining:
                time.sleep(0.01)
            assert send("GET", info).status == 200
        assert "/slow" not in [record.path for record in own_hub.requests]

    def test_cut(self, own_hub, weights):
        own_hub.fail("GET /lfs", faults.cut(5))
        with pytest.raises(http.client.IncompleteRead) as error:
            send("GET", weights)
        assert (error.value.partial, error.value.expected) == (WEIGHTS[:5], len(WEIGHTS) - 5)
        assert own_hub.requests[-1].bytes == 5

    @pytest.mark.parametrize("at", [-1, 3])
    def test_corrupt(self, own_hub, weights, at):
        own_hub.fail("GET /lfs", faults.corrupt(at))
        content = send("GET", weights).content
        differing = [index for index, pair in enumerate(zip(content, WEIGHTS, strict=True)) if pair[0] != pair[1]]
        assert differing == [at % len(WEIGHTS)]
        assert send("GET", weights).content == WEIGHTS

    def test_html(self, own_hub, alice, info):
        own_hub.fail("GET", faults.html())
        answer = send("GET", info)
        assert (answer.status, answer.headers["Content-Type"][:9]) == (200, "text/html")
        own_hub.fail("GET", faults.html())
        with pytest.raises(json.JSONDecodeError):
            alice.model_info(REPO)

    def test_flood(self, own_hub, weights):
        own_hub.fail("GET /lfs", faults.flood(1 << 20))
        answer = send("GET", weights)
        assert answer.content == bytes(1 << 20)
        assert "Content-Length" not in answer.headers

    @pytest.mark.parametrize(
        ("effect", "name", "value"),
        [(faults.wrong_etag("0" * 64), "etag", "0" * 64), (faults.wrong_size(10), "size", 10)],
    )
    @pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
    def test_wrong_announcements(self, own_hub, alice, weights, effect, name, value, file):
        from huggingface_hub import get_hf_file_metadata

        url = f"{own_hub.endpoint}/{REPO}/resolve/main/{file}"
        right = getattr(get_hf_file_metadata(url), name)
        with own_hub.fail("HEAD", effect) as fault:
            assert getattr(get_hf_file_metadata(url), name) == value != right
            assert fault.remaining == 0
        assert getattr(get_hf_file_metadata(url), name) == right

    def test_content_may_be_shorter_than_announced(self, own_hub, weights):
        own_hub.fail("GET /lfs", faults.wrong_size(99))
        with pytest.raises(http.client.IncompleteRead):
            send("GET", weights)

    def test_damage_to_content_waits_for_content(self, own_hub, alice, weights, tmp_path):
        """The first request for a regular file is answered by a redirect."""
        fault = own_hub.fail("config.json", faults.corrupt())
        path = alice.hf_hub_download(REPO, "config.json", cache_dir=tmp_path)
        assert fault.remaining == 0
        assert Path(path).read_bytes()[:-1] == CONFIG[:-1]
        assert Path(path).read_bytes()[-1:] != CONFIG[-1:]


class TestWhatTheClientMakesOfIt:
    @pytest.mark.parametrize("effect", [faults.cut(4), faults.drop()])
    def test_interrupted_downloads_are_taken_up_again(self, own_hub, alice, weights, waits, tmp_path, effect):
        own_hub.fail("GET /lfs", effect, times=2)
        path = alice.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)
        assert Path(path).read_bytes() == WEIGHTS
        assert len(waits) == 2

    def test_a_long_download_is_resumed_where_it_was_cut(self, own_hub, alice, waits, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
        content = bytes(range(250)) * 20
        put(alice, {"model.safetensors": content})
        own_hub.fail("GET /lfs", faults.cut(3500))
        path = alice.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)
        assert Path(path).read_bytes() == content
        assert (own_hub.requests[-1].range, own_hub.requests[-1].status) == ("bytes=3000-", 206)

    @pytest.mark.parametrize("style", ["ratelimit", "retry-after"])
    def test_the_client_comes_back_when_it_is_told_to(self, own_hub, alice, weights, waits, tmp_path, style):
        own_hub.fail("GET /lfs", faults.rate_limit(7, style=style))
        alice.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)
        assert waits == [8.0]

    @pytest.mark.parametrize(
        ("pattern", "location", "complaint"),
        [
            ("HEAD .*/resolve/", None, "Exceeded 20 redirects"),
            ("HEAD .*/resolve/", "file:///etc/passwd", "X-Repo-Commit"),
            ("GET /lfs/", None, "Exceeded maximum allowed redirects"),
            ("GET /lfs/", "file:///etc/passwd", "unsupported protocol 'file://'"),
        ],
    )
    def test_redirects_to_nowhere_give_no_file(self, own_hub, alice, weights, tmp_path, pattern, location, complaint):
        fault = own_hub.fail(pattern, faults.redirect(location), times=99)
        with pytest.raises(Exception, match=complaint):
            alice.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)
        assert 0 < 99 - fault.remaining < 25
        assert not list(tmp_path.rglob("model.safetensors"))

    @pytest.mark.parametrize(
        ("pattern", "effect"),
        [
            ("HEAD .*/resolve/", faults.wrong_size(10)),
            ("GET /lfs/", faults.wrong_size(10)),
            ("GET /lfs/", faults.flood(1 << 17)),
            ("GET /lfs/", faults.html()),
        ],
    )
    def test_other_sizes_are_noticed(self, own_hub, alice, weights, tmp_path, pattern, effect):
        own_hub.fail(pattern, effect)
        with pytest.raises(OSError, match="Consistency check failed"):
            alice.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)

    @pytest.mark.parametrize(
        ("pattern", "effect"), [("HEAD .*/resolve/", faults.wrong_etag("0" * 64)), ("GET /lfs/", faults.corrupt())]
    )
    def test_other_contents_are_not(self, own_hub, alice, weights, tmp_path, pattern, effect):
        """Whoever needs the very bytes must compare their hash."""
        fault = own_hub.fail(pattern, effect)
        path = Path(alice.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path))
        assert fault.remaining == 0
        assert path.resolve().name != hashlib.sha256(path.read_bytes()).hexdigest()


class TestServer:
    def test_bodies_may_come_in_chunks(self, own_hub):
        chunks = iter([b'{"content": "---\\nlicense: ', b'mit\\n---\\n"}'])
        answer = send("POST", f"{own_hub.endpoint}/api/validate-yaml", body=chunks)
        assert (answer.status, answer.content) == (200, b'{"errors": [], "warnings": []}')

    def test_a_client_that_goes_away_harms_nobody(self, own_hub, info, capfd):
        with socket.create_connection(urlsplit(info).netloc.split(":")) as connection:
            connection.sendall(b"GET /api/models HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
        assert send("GET", info).status == 200
        assert "Traceback" not in capfd.readouterr().err

    def test_nothing_answers_after_the_end(self):
        def list_models() -> bytes:
            connection.request("GET", "/api/models")
            return connection.getresponse().read()

        with LoopbackHub() as hub:
            connection = http.client.HTTPConnection(urlsplit(hub.endpoint).netloc)
            assert list_models() == b"[]"
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            list_models()
        with pytest.raises(ConnectionError):
            send("GET", f"{hub.endpoint}/api/models")
