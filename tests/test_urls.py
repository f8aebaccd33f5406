"""Images from URLs: limits, redirects, addresses that are refused, and messages. All servers are local."""

import contextlib
import gzip
import io
import ipaddress
import pickle
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import minigdino
from minigdino import Detections, ImageError, cli, files, inputs, outputs, urls
from minigdino.image import open_image

PHOTO = tiny.photo()
TEXT = ["a cat"]


def png():
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "PNG")
    return file.getvalue()


class Server:
    """A server on a loopback address. Each page is a function of the handler, or the content of an image."""

    def __init__(self, address="127.0.0.1", context=None):
        self.pages, self.requests, self.names, self.closing = {}, [], [], threading.Event()
        handler = type("Handler", (Handler,), {"site": self})
        self.server = ThreadingHTTPServer((address, 0), handler)
        if context:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_port
        self.url = f"http://{address}:{self.port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.site.requests.append((self.path, dict(self.headers)))
        page = self.site.pages.get(self.path)
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client has closed the connection
            if callable(page):
                page(self)
            elif page is None:
                self.answer(404, b"no such page")
            else:
                self.answer(200, page)

    def answer(self, status, content, **headers):
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)


def redirect(target, status=302):
    return lambda handler: handler.answer(status, b"", Location=target)


@pytest.fixture(scope="module")
def running():
    with Server() as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    """A server whose private address may be used."""
    monkeypatch.setenv("MINIGDINO_PRIVATE_URLS", "1")
    running.pages = {"/photo.png": png()}
    running.requests = []
    return running


def reason(url):
    with pytest.raises(ImageError) as raised:
        urls.download(url)
    return str(raised.value)


# ---- content


def test_a_url_has_the_result_of_its_file(server, tmp_path):
    (tmp_path / "photo.png").write_bytes(png())
    model = tiny.model()
    want, found = (model.detect(image, TEXT, threshold=0)
                   for image in (tmp_path / "photo.png", f"{server.url}/photo.png"))
    np.testing.assert_array_equal(want.boxes, found.boxes)
    assert found.plot().tobytes() == want.plot().tobytes()
    assert found.image == pickle.loads(pickle.dumps(found)).image == png()
    assert len(server.requests) == 1  # the result holds the content, so `plot` needs no second download


def test_the_content_type_has_no_effect(server):
    server.pages["/x"] = lambda handler: handler.answer(200, png(), Content_Type="text/html")
    np.testing.assert_array_equal(open_image(f"{server.url}/x"), PHOTO)


def test_an_answer_that_is_no_image_is_named_with_its_url(server):
    server.pages["/page"] = lambda handler: handler.answer(200, b"no image", Content_Type="image/png")
    with pytest.raises(ImageError, match=rf"^{server.url}/page: not a readable image; expected"):
        open_image(f"{server.url}/page")


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><p>Log in", b"\xef\xbb\xbf\r\n <HTML lang=en>", b"<!doctype HTML>"])
def test_a_web_page_is_named(server, page):
    server.pages["/page"] = lambda handler: handler.answer(200, page, Content_Type="image/png")
    assert reason(f"{server.url}/page") == (f"{server.url}/page: expected an image; got a web page. Give the URL of "
                                            "the image itself")


def test_an_empty_answer_is_named(server):
    server.pages["/x"] = b""
    assert f"{server.url}/x: expected an image; the answer is empty" in reason(f"{server.url}/x")


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_chunked_answer(server):
    def chunks(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for part in (png()[:5], png()[5:]):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        handler.wfile.write(b"0\r\n\r\n")

    server.pages["/chunked"] = chunks
    assert urls.download(f"{server.url}/chunked") == png()


def test_an_answer_without_a_length(server):
    def page(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(png())

    server.pages["/x"] = page
    assert urls.download(f"{server.url}/x") == png()


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP"])
def test_a_compressed_answer(server, encoding):
    server.pages["/x"] = lambda handler: handler.answer(200, gzip.compress(png()), Content_Encoding=encoding)
    assert urls.download(f"{server.url}/x") == png()


@pytest.mark.parametrize(("content", "encoding", "expected"), [
    (gzip.compress(bytes(10**6)), "gzip", "expected at most 100000 bytes; got more"),
    (gzip.compress(b"x" * 99)[:-9], "gzip", "expected complete gzip data; its end is missing"),
    (b"no gzip", "gzip", "cannot be downloaded .*incorrect header check"),
    (b"x", "br", "expected an answer without compression, or with gzip; got 'br'"),
])
def test_a_compressed_answer_that_is_refused(server, monkeypatch, content, encoding, expected):
    monkeypatch.setattr(urls, "MAX_BYTES", 10**5)
    server.pages["/x"] = lambda handler: handler.answer(200, content, Content_Encoding=encoding)
    with pytest.raises(ImageError, match=f"^{server.url}/x: {expected}"):
        urls.download(f"{server.url}/x")


def test_the_request_names_the_program_and_asks_for_no_compression(server):
    urls.download(f"{server.url}/photo.png")
    (_, headers), = server.requests
    assert headers["User-Agent"] == f"minigdino/{minigdino.__version__}"
    assert headers["Host"] == f"127.0.0.1:{server.port}"
    assert headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(("written", "sent"), [
    ("/a b.png?q=ü&r=%20#part", "/a%20b.png?q=%C3%BC&r=%20"), ("/猫.png", "/%E7%8C%AB.png"), ("", "/"),
    ("?x=1", "/?x=1"), ("/a'(b)*@x;y=1", "/a'(b)*@x;y=1")])
def test_characters_of_a_path_are_escaped(server, written, sent):
    server.pages[sent] = png()
    assert urls.download(server.url + written) == png()


def test_proxies_of_the_environment_are_not_used(server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert urls.download(f"{server.url}/photo.png") == png()


# ---- limits


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while not handler.site.closing.is_set():
        handler.wfile.write(bytes(10**4))


def test_the_size_is_limited(server, monkeypatch):
    monkeypatch.setattr(urls, "MAX_BYTES", 10**5)
    server.pages |= {"/endless": endless, "/most": bytes(10**5), "/more": bytes(10**5 + 1)}
    assert len(urls.download(f"{server.url}/most")) == 10**5
    for page in ("endless", "more"):
        assert f"/{page}: expected at most 100000 bytes; got more" in reason(f"{server.url}/{page}")


def test_a_caller_can_lower_the_limits(server):
    server.pages |= {"/content": bytes(100), "/silent": silent,
                     "/zipped": lambda handler: handler.answer(200, gzip.compress(bytes(101)), Content_Encoding="gzip")}
    assert len(urls.download(f"{server.url}/content", max_bytes=100)) == 100
    for page, most in (("content", 99), ("zipped", 100)):
        with pytest.raises(urls.TooLarge, match=f"^{server.url}/{page}: expected at most {most} bytes; got more"):
            urls.download(f"{server.url}/{page}", max_bytes=most)
    began = time.monotonic()
    with pytest.raises(ImageError, match=r"expected a complete answer within 0\.2 s"):
        urls.download(f"{server.url}/silent", seconds=0.2)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("length", [b"-1", b"-5", b"-0001"])
def test_the_length_of_a_chunk_is_not_negative(server, monkeypatch, length):
    """`http.client` takes -1 for the rest of the answer, which may have no end."""
    sent = []

    def chunks(handler):
        handler.wfile.write(CHUNKED + length + b"\r\n")
        for _ in range(100):
            sent.append(handler.wfile.write(bytes(10**6)))

    monkeypatch.setattr(urls, "MAX_BYTES", 10**5)
    server.pages["/x"] = chunks
    assert "cannot be downloaded (a chunk has a negative length)" in reason(f"{server.url}/x")
    assert len(sent) < 50  # what the buffers of the system hold


def slow_header(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(150):  # 3 seconds
        handler.site.closing.wait(0.02)
        handler.wfile.write(b"x")


def slow_content(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(150):  # 3 seconds
        handler.site.closing.wait(0.02)
        handler.wfile.write(b"x")


def silent(handler):
    handler.site.closing.wait(3)


def slow_redirect(handler):
    handler.site.closing.wait(0.1)
    handler.answer(302, b"", Location="/slow_redirect")


def endless_continue(handler):
    while not handler.site.closing.wait(0.001):
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def endless_trailer(handler):
    handler.wfile.write(CHUNKED + b"0\r\n")
    while not handler.site.closing.wait(0.001):
        handler.wfile.write(b"X: y\r\n")


def tiny_chunks(handler):
    handler.wfile.write(CHUNKED)
    while not handler.site.closing.is_set():
        handler.wfile.write(b"1\r\nx\r\n" * 100)


@pytest.mark.parametrize("page", [slow_header, slow_content, silent, slow_redirect, endless_continue, endless_trailer,
                                  tiny_chunks], ids=lambda page: page.__name__)
def test_the_time_is_limited_even_if_bytes_keep_arriving(server, monkeypatch, page):
    monkeypatch.setattr(urls, "MAX_SECONDS", 0.3)
    server.pages[f"/{page.__name__}"] = page
    start = time.monotonic()
    assert "expected a complete answer within 0.3 s; got none" in reason(f"{server.url}/{page.__name__}")
    assert 0.25 < time.monotonic() - start < 3


def test_a_server_that_accepts_no_connection_has_the_same_limit(server, monkeypatch):
    monkeypatch.setattr(urls, "MAX_SECONDS", 0.3)
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):  # fill the queue, so that the system answers no more
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        assert "within 0.3 s" in reason(f"http://127.0.0.1:{listener.getsockname()[1]}/")


@pytest.mark.parametrize("sends", [b"", b"\x16\x03\x03\x40\x00"])
def test_a_handshake_has_the_same_limit(server, monkeypatch, sends):
    """A server that is silent, or sends a record of TLS byte by byte."""
    monkeypatch.setattr(urls, "MAX_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def answer():
            accepted, _ = listener.accept()
            with accepted, contextlib.suppress(OSError):
                accepted.sendall(sends)
                for _ in range(150):
                    time.sleep(0.02)
                    if sends:
                        accepted.sendall(b"x")

        threading.Thread(target=answer, daemon=True).start()
        start = time.monotonic()
        assert "within 0.3 s" in reason(f"https://127.0.0.1:{listener.getsockname()[1]}/")
        assert 0.25 < time.monotonic() - start < 3


def test_an_answer_that_ends_early_is_refused(server):
    server.pages["/x"] = lambda handler: handler.answer(200, b"abc", Content_Length="5")
    assert "expected 5 bytes; the connection ended after 3" in reason(f"{server.url}/x")


@pytest.mark.parametrize("status", [204, 206, 304, 403, 404, 500, 999])
def test_another_status_than_200_is_named(server, status):
    server.pages["/x"] = lambda handler: handler.answer(status, b"")
    assert reason(f"{server.url}/x").startswith(f"{server.url}/x: expected an image; the server answered {status} (")


@pytest.mark.parametrize("answer", [b"", b"no HTTP\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200,
                                    b"HTTP/1.1 200 OK\r\nX: " + bytes(10**5),
                                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"])
def test_an_answer_that_is_no_http_is_an_error_of_the_image(server, answer):
    server.pages["/x"] = lambda handler: handler.wfile.write(answer)
    assert f"{server.url}/x: cannot be downloaded (" in reason(f"{server.url}/x")


def test_a_refused_connection_and_an_unknown_host(server, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/cat.jpg"
        assert f"{url}: cannot be downloaded (" in reason(url)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert reason("https://nowhere.test/") == (
        "https://nowhere.test/: expected a URL with a public address; its host has none. Its name cannot be resolved "
        "([Errno -2] Name or service not known): check the URL and the connection")


def test_an_error_can_be_sent_to_another_process():
    error = pickle.loads(pickle.dumps(urls.TooLarge("too large", "Try again")))
    assert (type(error), error.cause, str(error)) == (urls.TooLarge, "too large", "too large. Try again")


def unknown(*_, **__):
    raise socket.gaierror(-2, "Name or service not known")


# ---- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("target", ["/photo.png", "photo.png", "//{host}/photo.png", "http://{host}/photo.png#x"])
def test_redirects_are_followed(server, status, target):
    server.pages["/x"] = redirect(target.format(host=f"127.0.0.1:{server.port}"), status)
    assert urls.download(f"{server.url}/x") == png()


def test_the_bytes_of_a_redirect_are_kept(server):
    server.pages |= {"/x": redirect("/ü ".encode().decode("latin-1")), "/%C3%BC": png()}
    assert urls.download(f"{server.url}/x") == png()


def test_the_number_of_redirects_is_limited(server):
    server.pages |= {"/loop": redirect("/loop"), **{f"/{n}": redirect(f"/{n - 1}") for n in range(2, 9)},
                     "/1": redirect("/photo.png")}
    assert urls.download(f"{server.url}/5") == png()
    for page in ("6", "loop"):
        assert "expected at most 5 redirects; got more" in reason(f"{server.url}/{page}")


@pytest.mark.parametrize(("target", "expected"), [
    ("file:///etc/passwd", r"redirected to file:///etc/passwd: .* http:// or https://; got file:"),
    ("ftp://example.org/x", "got ftp:"), ("javascript:1", "got javascript:"), ("data:image/png;base64,AA", "got data:"),
    ("gopher://127.0.0.1:6379/_INFO", "got gopher:"),
    ("http://user:secret@example.org/", "redirected to http://example.org/: expected a URL without user name"),
    ("http://[::1", r"cannot be downloaded \(Invalid IPv6 URL\)"),
    ("http://me:secret/x@host/", "redirected to http://host/: not a valid URL"),
])
def test_a_redirect_is_checked_as_the_url_is(server, target, expected):
    server.pages["/x"] = redirect(target)
    with pytest.raises(ImageError, match=expected) as raised:
        urls.download(f"{server.url}/x")
    assert "secret" not in str(raised.value)


def test_a_redirect_to_a_private_address_is_refused(server, monkeypatch):
    with Server("127.0.0.2") if can_bind("127.0.0.2") else pytest.skip("needs 127.0.0.2") as inner:
        inner.pages["/photo.png"] = png()
        server.pages["/x"] = redirect(f"{inner.url}/photo.png")
        assert urls.download(f"{server.url}/x") == png()
        monkeypatch.delenv("MINIGDINO_PRIVATE_URLS")
        monkeypatch.setattr(urls, "is_public", lambda address: address == "127.0.0.1")
        assert f"/x, redirected to {inner.url}/photo.png: expected a URL with a public address" in reason(
            f"{server.url}/x")
        assert len(inner.requests) == 1


def can_bind(address):
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True


# ---- addresses


NOT_PUBLIC = [  # the first 16 are of IPv4
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4",
    "240.0.0.0/4", "168.63.129.16/32", "192.88.99.0/24", "::/128", "::1/128", "100::/64", "2001::/32",
    "2001:2::/48", "2001:db8::/32", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "64:ff9b:1::/48",
    "3fff::/20", "5f00::/16", "::ffff:0:0:0/96"
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "172.15.255.255", "172.32.0.0", "2606:4700::1111", "2a00:1450::1"]


@given(st.sampled_from(NOT_PUBLIC).flatmap(lambda network: st.ip_addresses(network=network)))
def test_no_address_of_a_special_network_is_public(address):
    assert not urls.is_public(str(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_other_addresses_are_public(address):
    assert urls.is_public(address)


@given(st.ip_addresses(v=4) | st.sampled_from(NOT_PUBLIC[:16]).flatmap(lambda n: st.ip_addresses(network=n)))
def test_an_ipv6_address_that_stands_for_an_ipv4_address_is_public_if_that_is(address):
    is_public = urls.is_public(str(address))
    for start in ("::ffff:", "64:ff9b::"):
        assert urls.is_public(f"{start}{address}") == is_public
    assert urls.is_public(str(ipaddress.IPv6Address((0x2002 << 112) | (int(address) << 80)))) == is_public


def test_a_link_local_address_with_an_interface_is_not_public():
    assert not urls.is_public("fe80::1%eth0")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1",
                                  "10.0.0.1", "169.254.169.254", "0", "0177.0.0.1", "127.1", "①②⑦.⓪.⓪.①",
                                  "127。0。0。1", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::127.0.0.1]"])
@pytest.mark.parametrize("setting", [None, "0", ""])
def test_a_private_address_is_refused_in_every_form(monkeypatch, host, setting):
    monkeypatch.delenv("MINIGDINO_PRIVATE_URLS", raising=False)
    if setting is not None:
        monkeypatch.setenv("MINIGDINO_PRIVATE_URLS", setting)
    monkeypatch.setattr(socket, "create_connection", None)  # is not reached
    assert reason(f"http://{host}/x").endswith(
        "expected a URL with a public address; its host has none. It has a private, local or reserved one: set "
        "MINIGDINO_PRIVATE_URLS=1, if you trust the URL")


def resolved(*addresses):
    """A replacement of `socket.getaddrinfo` whose answer differs at each call, and a list of the names asked for."""
    asked, original, answers = [], socket.getaddrinfo, iter(addresses)

    def resolve(host, port, *args, **options):
        if host[0].isdigit() or ":" in host:
            return original(host, port, *args, **options)
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in next(answers)]

    return resolve, asked


def test_a_name_is_resolved_once_and_the_checked_address_is_connected_to(server, monkeypatch):
    resolve, asked = resolved(["127.0.0.1"], ["10.0.0.1"])
    monkeypatch.delenv("MINIGDINO_PRIVATE_URLS")
    monkeypatch.setattr(urls, "is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert urls.download(f"http://images.test:{server.port}/photo.png") == png()
    assert asked == ["images.test"]
    assert server.requests[0][1]["Host"] == f"images.test:{server.port}"


def test_private_addresses_of_a_name_are_left_out(monkeypatch):
    tried = []
    resolve, _ = resolved(["10.0.0.1", "93.184.216.34", "127.0.0.1", "8.8.8.8"])

    def connect(address, timeout):
        tried.append((address, timeout))
        raise OSError("unreachable")

    monkeypatch.delenv("MINIGDINO_PRIVATE_URLS", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    assert "cannot be downloaded (unreachable)" in reason("https://images.test/")
    assert [address for address, _ in tried] == [("93.184.216.34", 443), ("8.8.8.8", 443)]
    assert 14 < tried[0][1] <= 15  # half of the time, so that one is left for the second


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of images.test, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("needs the program openssl, to make a certificate")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-days", "2", "-subj", "/CN=images.test", "-addext", "subjectAltName=DNS:images.test",
                    "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def secure(certificate, monkeypatch):
    """A server with TLS, reached under any name ending in ".test"."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    monkeypatch.setenv("MINIGDINO_PRIVATE_URLS", "1")
    monkeypatch.setattr(socket, "getaddrinfo", resolved(["127.0.0.1"], ["127.0.0.1"])[0])
    with Server(context=context) as server:
        context.sni_callback = lambda _, name, __: server.names.append(name)
        server.pages["/photo.png"] = png()
        yield server


def test_https_checks_the_name_of_the_host_not_of_the_address(secure, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert urls.download(f"https://images.test:{secure.port}/photo.png") == png()
    assert "other.test" not in secure.names
    other = reason(f"https://other.test:{secure.port}/photo.png")
    assert "cannot be downloaded (" in other and "CERTIFICATE_VERIFY_FAILED" in other
    assert secure.names == ["images.test", "other.test"]
    assert len(secure.requests) == 1


def test_an_unknown_certificate_is_refused(secure):
    assert "CERTIFICATE_VERIFY_FAILED" in reason(f"https://images.test:{secure.port}/photo.png")
    assert not secure.requests


def test_a_server_without_tls_is_an_error(server):
    assert "cannot be downloaded (" in reason(f"https://127.0.0.1:{server.port}/photo.png")


# ---- forms of a URL


@pytest.mark.parametrize(("url", "expected"), [
    ("file:///a.png", r"expected a URL that starts with http:// or https://; got file:\. Give the path without file"),
    ("ftp://example.org/cat.jpg", r"got ftp:\. Download the file"), ("s3://bucket/cat.jpg", "got s3:"),
    ("data:image/png;base64," + 99_999 * "A", r"^data:image.{,400} got data:\. Decode its base64 text, and give the b"),
    ("https://", "expected a URL with a host"), ("http:///cat.jpg", "expected a URL with a host"),
    ("http://[x]/", "not a valid URL"), ("http://host:port/", "not a valid URL"),
    ("http://host:99999/", "not a valid URL"), ("HTTPS://me@host/", "expected a URL without user name and password"),
])
def test_a_url_of_another_form_is_refused_before_anything_is_resolved(monkeypatch, url, expected):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    for refuse in (urls.check, urls.download, open_image, lambda url: files.find_images(["a.png", url])):
        with pytest.raises(ImageError, match=expected):
            refuse(url)


@pytest.mark.parametrize("source", ["cat.jpg", "/a//b.jpg", "C:\\cat.jpg", "c://cat.jpg", "http:/x/cat.jpg", "://x",
                                    "", Path("https://x/cat.jpg"), b"https://x", None, 5, "data:x.png", "data:a,b.png"])
def test_other_inputs_are_no_urls(source):
    assert not urls.is_url(source)


def test_a_path_of_a_url_is_explained():
    with pytest.raises(ImageError, match="no such file. To download a URL, give it as a str"):
        open_image(Path("https://example.org/cat.jpg"))
    with pytest.raises(ImageError, match="^https:: no such file in the folder"):
        open_image("https:")


@given(st.text(max_size=20), st.text(st.characters(exclude_characters="/?#", exclude_categories=["Cs"]), max_size=8),
       st.sampled_from(["http", "https", "ftp", "file"]))
def test_a_message_never_has_the_password(rest, name, scheme):
    for user in (f"{name}:s3cr3t@", f"s3cr3t{name}@", f"{name}:s3cr3t/x@y:z@"):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(socket, "getaddrinfo", unknown)
            for refuse in (urls.check, urls.download):
                with pytest.raises(ImageError) as raised:
                    refuse(f"{scheme}://{user}host/{rest}")
                assert "s3cr3t" not in str(raised.value)


@given(st.text(max_size=30), st.sampled_from(["http://", "https://", "http://[", "https://a.", "ws://"]))
def test_any_text_after_a_scheme_is_an_error_of_the_image(text, start):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", unknown)
        message = reason(start + text)
    assert message.isprintable() and len(message) < 700


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
@pytest.mark.parametrize("kind", [TimeoutError, ConnectionResetError, ValueError, ImageError, KeyboardInterrupt])
@pytest.mark.parametrize("page", [slow_header, slow_content, tiny_chunks], ids=lambda page: page.__name__)
def test_a_signal_ends_a_download_and_closes_its_connection(server, kind, page):
    error, closed = kind("the job took too long"), threading.Event()

    def handler(signum, frame):
        raise error

    def watched(request):
        try:
            page(request)
        except OSError:
            closed.set()

    server.pages["/x"] = watched
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(kind) as raised:
            urls.download(f"{server.url}/x")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert raised.value is error
    raised = None  # its traceback holds the frames
    assert closed.wait(2)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
@pytest.mark.parametrize("kind", [ValueError, ImageError, TimeoutError])
def test_an_exception_of_a_signal_handler_that_http_client_replaces(server, monkeypatch, kind):
    """It turns a ValueError in the length of a chunk into an error of its own."""
    error = kind("the job took too long")

    def handler(signum, frame):
        raise error

    def readline(self, *args):
        signal.raise_signal(signal.SIGALRM)

    server.pages["/x"] = lambda handler: handler.wfile.write(CHUNKED + b"1\r\n")
    content = urls._content
    before = signal.signal(signal.SIGALRM, handler)
    monkeypatch.setattr(urls, "_content", lambda response, most: (
        monkeypatch.setattr(urls._Buffered, "readline", readline, raising=False), content(response, most)))
    try:
        with pytest.raises(kind) as raised:
            urls.download(f"{server.url}/x")
        assert raised.value is error
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_exception_that_the_caller_handles_is_not_raised_again(server):
    server.pages["/x"] = lambda handler: handler.wfile.write(CHUNKED + b"z\r\n")
    error = ValueError("the job took too long")

    def handler(signum, frame):
        raise error

    before = signal.signal(signal.SIGINT, handler)
    try:
        signal.raise_signal(signal.SIGINT)
    except ValueError:
        assert f"{server.url}/x: cannot be downloaded (IncompleteRead" in reason(f"{server.url}/x")
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
@pytest.mark.parametrize("kind", [TimeoutError, OSError, ValueError, ImageError])
@pytest.mark.parametrize("name", ["getaddrinfo", "create_connection"])
def test_an_exception_of_a_signal_handler_is_unchanged(monkeypatch, kind, name):
    error = kind("the job took too long")

    def handler(signum, frame):
        raise error

    monkeypatch.setenv("MINIGDINO_PRIVATE_URLS", "1")
    before = signal.signal(signal.SIGALRM, handler)
    try:
        monkeypatch.setattr(socket, name, lambda *_, **__: signal.raise_signal(signal.SIGALRM))
        with pytest.raises(kind) as raised:
            urls.download("http://127.0.0.1/")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert raised.value is error


# ---- the command line, and several images


def test_urls_are_sources(server, tmp_path, capsys):
    tiny.model().save(tmp_path / "model")
    url = f"{server.url}/photo.png?size=1"
    server.pages["/photo.png?size=1"] = png()
    missing = f"{server.url}/missing.png"
    status = cli.main(["detect", url, url, missing, "--phrase", "a cat", "--model", str(tmp_path / "model"),
                       "--jsonl", str(tmp_path / "found.jsonl"), "--out", str(tmp_path / "drawn")])
    assert status == 1
    assert f"minigdino: {missing}: expected an image; the server answered 404 (Not Found)" in capsys.readouterr().err
    lines = files.JsonLines(tmp_path / "found.jsonl", resume=True)
    assert list(lines.done) == [url, missing]
    lines.close()
    drawn, = (tmp_path / "drawn").rglob("*.png")
    assert drawn == tmp_path / "drawn" / Path(urls.local_name(url)).name
    with Image.open(drawn) as picture:
        assert picture.size == (PHOTO.shape[1], PHOTO.shape[0])


@given(st.text(max_size=300) | st.text("./\\%2e:CON \0", max_size=300), st.sampled_from(["a.test", "..", "[::1]:81"]))
def test_any_url_has_a_local_name_that_file_systems_accept(text, host):
    url = f"https://{host}/{text}"
    name = urls.local_name(url)
    assert name == urls.local_name(url) and len(name.encode()) < 3000
    for part in name.split("/"):
        assert part not in ("", ".", "..") and part.isprintable() and not set(part) & set('<>:"\\|?*')
        assert len(f"{part}.png".encode()) <= 255


@pytest.mark.parametrize(("path", "name"), [
    ("/cats/a.jpg", "cats/a.jpg"), ("/a%20b (1).jpg", "a%20b (1).jpg"), ("", "index"), ("/", "index"),
    ("/cats/", "cats/index"), ("/../../etc/x.png", "etc/x.png"), ("/a\\..\\b.png", "a_.._b.png"),
    ("/猫.png#part", "猫.png"), ("/a.jpg?", "a.jpg")])
def test_a_local_name(path, name):
    assert urls.local_name(f"https://a.test{path}") == f"a.test/{name}"


def test_urls_that_differ_in_their_query_or_in_long_parts_have_different_names():
    found = [f"https://a.test/{part}{end}" for part in ("x.png?id=", 99 * "x", "x/" * 20) for end in "ab"]
    assert len(set(map(urls.local_name, found))) == len(found)
    assert re.fullmatch(r"a\.test/x-[0-9a-f]{8}\.png", urls.local_name(found[0]))


def test_pictures_of_urls_stay_in_their_folder():
    hosts = ["https://a.test/x/../../../../etc/cat.jpg", "https://b.test", "http://[::1]/../x?y/z", "a/cat.jpg"]
    for name in map(urls.local_name, hosts[:3]):
        assert not name.startswith(("/", "."))
    folder = outputs.Folder("--out", "drawn", hosts, overwrite=False)
    found = [folder.picture(inputs.Input(host)) for host in hosts]
    assert all(".." not in Path(path).parts and path.startswith("drawn") for path in found)


def test_an_error_can_be_returned(server):
    missing = f"{server.url}/missing.png"
    found, error = tiny.model().detect([f"{server.url}/photo.png", missing], TEXT, errors="return")
    assert isinstance(found, Detections) and str(error).startswith(f"{missing}: ")
