"""HTTP/1.1 over loopback sockets: bodies in, responses out, every request logged."""

import socket
import ssl
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from .errors import HubError
from .messages import Request, Response, error_response
from .traffic import RequestRecord, Traffic


class Listener(ThreadingHTTPServer):
    """A listener on a free port of 127.0.0.1, one thread per connection.

    Args:
        respond: Answers one request; may raise `HubError`.
        traffic: Where requests are logged and faults are planned.
        certificate: File with a certificate and its key, for https.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, respond: Callable[[Request], Response], traffic: Traffic, certificate: Path | None) -> None:
        super().__init__(("127.0.0.1", 0), _ConnectionHandler)
        if certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
            # The first read shakes hands, in the connection's own thread.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self._respond = respond
        self._traffic = traffic
        self._connections: set[socket.socket] = set()
        self._connections_lock = Lock()

    def start(self) -> None:
        """Serve in the background until `stop`."""
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Close the port and the connections that clients keep alive."""
        self.shutdown()
        self.server_close()
        with self._connections_lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def answer(self, request: Request) -> Response:
        """Answer a request, or let a planned fault answer it, and log it."""
        response = self._answer(request)
        self._traffic.requests.append(
            RequestRecord(
                method=request.method,
                path=request.target,
                status=response.status,
                authenticated="Authorization" in request.headers,
                range=request.headers["Range"],
                bytes=0 if request.method == "HEAD" else len(response.body[: response.cut_after]),
            )
        )
        return response

    def _answer(self, request: Request) -> Response:
        real_answer = cache(partial(self._real_answer, request))
        fault = self._traffic.take_fault(request)
        response = fault.effect(request, real_answer) if fault else None
        if fault and response is None:
            self._traffic.give_back(fault)
        return response or real_answer()

    def _real_answer(self, request: Request) -> Response:
        try:
            return self._respond(request)
        except HubError as error:
            return error_response(error)
        except Exception as error:
            traceback.print_exc()
            return error_response(HubError(500, f"The loopback Hub failed: {error!r}"))

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the thread of a new connection."""
        with self._connections_lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that has ended."""
        with self._connections_lock:
            self._connections.discard(request)
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report what went wrong in a connection, unless the client just went away."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _ConnectionHandler(BaseHTTPRequestHandler):
    """Reads the requests of one connection and writes the listener's answers."""

    server: Listener
    protocol_version = "HTTP/1.1"
    # Head and body leave in two writes; Nagle's algorithm would hold the second back for 40 ms.
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        request = Request(self.command, self.path, self.headers, self._read_body())
        response = self.server.answer(request)
        # An answer that is not what it says must be the last one of its connection.
        self.close_connection |= response.cut_after is not None or "Content-Length" in response.headers
        if response.status == 0:
            self.close_connection = True
            return
        self._send_head(response)
        if request.method == "HEAD":
            return
        if response.stream:
            self._send_chunks(response.stream)
        else:
            self.wfile.write(response.body[: response.cut_after])

    def _send_head(self, response: Response) -> None:
        self.send_response(response.status)
        framing = {"Transfer-Encoding": "chunked"} if response.stream else {"Content-Length": len(response.body)}
        for name, value in {**framing, **response.headers}.items():
            self.send_header(name, str(value))
        if self.close_connection:
            self.send_header("Connection", "close")  # or the client may send its next request into the closing
        self.end_headers()

    def _send_chunks(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(self._read_chunks())
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _read_chunks(self) -> list[bytes]:
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return chunks

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing: the request log is in `Traffic`."""
