"""A server on the loopback that stands in for the hosts of published weights, with their troubles on request."""

import http.server
import threading
import time


class Host:
    """Serves `files` (name to bytes) and does to each request what `trouble` says.

    Attributes:
        files: what is there; changing an entry changes its ETag.
        trouble: called with the name and the number of the request for it, from 1; returns a code to answer with, or a
            number of bytes below 100 % as a float, after which the connection is cut, or None.
        asked: the names and the Range headers of the requests so far.
        pause: seconds between the parts of a file.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.trouble = lambda name, number: None
        self.asked: list[tuple[str, str]] = []
        self.marks, self.redirects, self.pause, self.headers = True, {}, 0.0, {}
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def log_message(self, *arguments):
                pass

            def do_GET(self):
                host.answer(self)

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request, client):
                """A client that hangs up is part of what is tried."""

        self.server = Server(('127.0.0.1', 0), Handler)
        self.address = f'http://127.0.0.1:{self.server.server_address[1]}'
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request) -> None:
        request.close_connection = True
        name = request.path.lstrip('/')
        self.asked.append((name, request.headers.get('Range', '')))
        number = sum(asked == name for asked, _ in self.asked)
        if name in self.redirects:
            request.send_response(302)
            request.send_header('Location', self.redirects[name])
            request.send_header('Content-Length', '0')
            request.end_headers()
            return
        trouble = self.trouble(name, number)
        code = trouble if isinstance(trouble, int) else 200 if name in self.files else 404
        if code != 200:
            request.send_error(code)
            return
        content, mark = self.files[name], f'"{hash(self.files[name])}"'
        start = 0
        if request.headers.get('Range') and request.headers.get('If-Range') == mark and self.marks:
            start = int(request.headers['Range'].removeprefix('bytes=').rstrip('-'))
        if start > len(content):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
        headers = {'Content-Length': str(len(content) - start), 'Content-Type': 'application/octet-stream'}
        for key, value in {**headers, **({'ETag': mark} if self.marks else {}), **self.headers}.items():
            if value is not None:
                request.send_header(key, value)
        request.end_headers()
        end = len(content) if trouble is None else int(trouble * len(content))
        for offset in range(start, end, 4096):
            request.wfile.write(content[offset : min(offset + 4096, end)])
            time.sleep(self.pause)
