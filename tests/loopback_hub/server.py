"""HTTP/1.1 over loopback sockets: bodies in, responses out, every request logged."""

import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, respond: Callable[[Request], Response], traffic: Traffic) -> None:
        super().__init__(("127.0.0.1", 0), _ConnectionHandler)
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
                bytes=0 if request.method == "HEAD" else len(response.body),
            )
        )
        return response

    def _answer(self, request: Request) -> Response:
        fault = self._traffic.take_fault(request.method, request.target)
        if fault:
            return error_response(HubError(fault.status, "Planned fault", headers=fault.headers))
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
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if request.method != "HEAD":
            self.wfile.write(response.body)

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
