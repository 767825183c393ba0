# SPDX-License-Identifier: MIT
"""Through the proxies of restricted networks: squid, tinyproxy, and mitmproxy's interception."""
import os
import ssl
import subprocess
import unittest

from .. import synthetic_client as sc
from ..server import CA_FILE, DATA, KEY, MODEL, Server
from . import parts

PASSWORD = "t0p-s3cret"
CALLS = 5
SQUID = """
http_port 127.0.0.1:{port}
pid_filename none
logformat ports %>p
access_log stdio:{folder}/access ports
cache_log {folder}/log
cache deny all
netdb_filename none
shutdown_lifetime 0 seconds
hosts_file {folder}/hosts
max_filedescriptors 1024
auth_param basic program /usr/lib/squid/basic_ncsa_auth {folder}/users
acl known proxy_auth REQUIRED
acl forbidden dstdomain forbidden.test
http_access deny forbidden
http_access allow known
http_access deny all
"""
TINYPROXY = """
Port {port}
Listen 127.0.0.1
Timeout 60
MaxClients 20
BasicAuth user {password}
"""


def setUpModule():
    parts.need(commands="setpriv squid htpasswd tinyproxy mitmdump", modules="trustme")


class Proxied:
    """What holds through each proxy; `hands_on` where it passes a stream's pieces on at once."""

    hands_on = True
    trusted = CA_FILE
    refusals = (r"407.*user\b.*password.*proxy=",) * 2  # of a plain and a TLS server's client
    unreachable = "proxy 127.0.0.1:{proxy}.*base_url"

    @classmethod
    def setUpClass(cls):
        cls.folder, cls.port = parts.start(cls, parts.folder()), parts.free_port()
        parts.start(cls, parts.Program(*cls.command(), port=cls.port))
        cls.url = "http://user:%s@127.0.0.1:%d" % (PASSWORD, cls.port)

    def setUp(self):
        self.plain, self.tls = (parts.Lockstep(tls=tls) for tls in (None, "localhost"))
        for server in (self.plain, self.tls):
            server.__enter__()
            self.addCleanup(server.__exit__, None, None, None)

    def client(self, server, **options):
        if server.tls:
            options.setdefault("ca_file", self.trusted)
        return server.client(**{"proxy": self.url, **options})

    def test_whole_answer(self):
        """A whole answer comes through, from a plain and a TLS server."""
        for server in (self.plain, self.tls):
            reply = self.client(server).chat("hi")
            self.assertEqual((reply.text, reply.meta.attempts), ("whole", 1))
            self.assertEqual(server.requests[0].headers["authorization"], "Bearer " + KEY)
            self.assertNotIn("proxy-authorization", server.requests[0].headers)

    def test_stream(self):
        """A stream comes through, piece by piece where the proxy hands it on so."""
        for server in (self.plain, self.tls):
            with self.subTest(tls=server.tls):
                server.waits = self.hands_on
                with self.client(server).stream_chat("hi") as stream:
                    self.assertEqual(server.read(stream), "01234")

    def test_reuse(self):
        """Calls and streams through CONNECT share one connection to the server."""
        client = self.client(self.tls)
        for _ in range(CALLS):
            client.chat("hi")
        self.tls.waits = False
        self.assertEqual(client.stream_chat("hi").completion().text, "01234")
        client.chat("hi")
        self.assertEqual((self.tls.connections, len(self.tls.requests)), (1, CALLS + 2))

    def test_wrong_password(self):
        """A wrong password is one error that says where to mend it, and never shows it."""
        wrong = self.url.replace(PASSWORD, "wr0ng-s3cret")
        kinds = (sc.APIStatusError, sc.APIConnectionError)
        for server, kind, words in zip((self.plain, self.tls), kinds, self.refusals):
            for body in ("hi", "long " * 100_000):
                with self.subTest(tls=server.tls, size=len(body)):
                    client = self.client(server, proxy=wrong, max_retries=2)
                    with self.assertRaises(kind) as caught:
                        client.chat(body)
                    said = str(caught.exception)
                    self.assertRegex(said, words)
                    self.assertNotIn("wr0ng", said)
                    self.assertEqual(caught.exception.attempts, 1)
                    self.assertEqual(server.requests, [])

    def test_nothing_there(self):
        """A server that is down is an error that may pass, and says what cannot be reached."""
        port = parts.free_port()
        with sc.SyntheticClient(KEY, base_url="https://127.0.0.1:%d/v1" % port, model=MODEL,
                                proxy=self.url, ca_file=self.trusted, max_retries=1) as client:
            with self.assertRaises((sc.APIConnectionError, sc.InternalServerError)) as caught:
                client.chat("hi")
        self.assertRegex(str(caught.exception), self.unreachable.format(proxy=self.port))
        self.assertIn(str(port), "%s %s" % (caught.exception, vars(caught.exception)))
        self.assertEqual(caught.exception.attempts, 2)


class Tunnels(Proxied):
    """What holds where a proxy does not look into TLS: the server's own certificate counts."""

    def test_bad_certificates(self):
        """Each fault of a certificate is told, with the store it was checked against."""
        other = os.path.join(DATA, "other-ca.pem")
        cases = [("localhost", other, r"unable to get local issuer|self.signed", other),
                 ("expired", CA_FILE, "expired", "clock"),
                 ("wrong-host", CA_FILE, "[Mm]ismatch.*127.0.0.1", "base_url")]
        for name, ca_file, fault, hint in cases:
            with self.subTest(name), Server(tls=name) as server:
                with self.assertRaisesRegex(sc.APIConnectionError, fault) as caught:
                    self.client(server, ca_file=ca_file, max_retries=2).chat("hi")
                self.assertIn(hint, str(caught.exception))
                self.assertEqual((caught.exception.attempts, server.requests), (1, []))


class Squid(Tunnels, unittest.TestCase):
    @classmethod
    def command(cls):
        users = subprocess.check_output(["htpasswd", "-nbm", "user", PASSWORD], text=True)
        parts.write(cls.folder, "users", users)
        parts.write(cls.folder, "hosts", "127.0.0.1 model.test localhost\n")
        for name in ("log", "access"):
            os.chmod(parts.write(cls.folder, name, ""), 0o666)
        path = parts.write(cls.folder, "conf", SQUID.format(port=cls.port, folder=cls.folder))
        return "squid", "-N", "-f", path

    def test_environment(self):
        """https_proxy and SSL_CERT_FILE suffice to reach a host that only the proxy can name."""
        import trustme

        authority = trustme.CA()
        bundle = os.path.join(self.folder, "ca.pem")
        authority.cert_pem.write_to_path(bundle)
        self.tls.tls_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("model.test").configure_cert(self.tls.tls_context)
        settings = {"base_url": "https://model.test:%d/v1" % self.tls.port, "max_retries": 0}
        with parts.environment(https_proxy=self.url, SSL_CERT_FILE=bundle, no_proxy=""):
            with sc.SyntheticClient(KEY, model=MODEL, **settings) as client:
                self.assertEqual(client.chat("hi").text, "whole")
        with parts.environment(https_proxy=self.url, SSL_CERT_FILE=bundle, no_proxy="model.test"):
            with sc.SyntheticClient(KEY, model=MODEL, **settings) as client:
                with self.assertRaisesRegex(sc.APIConnectionError, "looked up.*proxy"):
                    client.chat("hi")
        with parts.environment(https_proxy=self.url, no_proxy=""):
            with sc.SyntheticClient(KEY, model=MODEL, **settings) as client:
                with self.assertRaisesRegex(sc.APIConnectionError, "SSL_CERT_FILE"):
                    client.chat("hi")

    def test_reuse_plain(self):
        """Calls to a plain server share one connection to squid, as its own log has it.

        The server cannot tell: squid opens a connection for each POST.
        """
        path = os.path.join(self.folder, "access")
        with open(path, encoding="ascii") as log:
            log.read()
            client = self.client(self.plain)
            for _ in range(CALLS):
                client.chat("hi")
            ports = log.read().split()
        self.assertEqual((len(ports), len(set(ports))), (CALLS, 1))

    def test_forbidden(self):
        """A host that the proxy's rules forbid is one error, which says whose rule it is."""
        for scheme, kind in (("https", sc.APIConnectionError), ("http", sc.PermissionDeniedError)):
            with self.subTest(scheme), sc.SyntheticClient(
                    KEY, base_url=scheme + "://forbidden.test/v1", model=MODEL, proxy=self.url,
                    allow_http=True) as client:
                with self.assertRaisesRegex(kind, "403.*(proxy|gateway)") as caught:
                    client.chat("hi")
                self.assertEqual(caught.exception.attempts, 1)

    def test_unknown_host(self):
        """A name that squid cannot look up is an error that may pass, and is asked again."""
        cases = (("https", sc.APIConnectionError, "nowhere.*base_url"),
                 ("http", sc.InternalServerError, "could not be retrieved"))
        for scheme, kind, words in cases:
            with self.subTest(scheme), sc.SyntheticClient(
                    KEY, base_url=scheme + "://nowhere.invalid/v1", model=MODEL, proxy=self.url,
                    allow_http=True, max_retries=1) as client:
                with self.assertRaisesRegex(kind, words) as caught:
                    client.chat("hi")
                self.assertEqual(caught.exception.attempts, 2)


class Tinyproxy(Tunnels, unittest.TestCase):
    refusals = ("401", r"401.*user\b.*password.*proxy=")  # where others answer 407

    @classmethod
    def command(cls):
        text = TINYPROXY.format(port=cls.port, password=PASSWORD)
        return "tinyproxy", "-d", "-c", parts.write(cls.folder, "conf", text)

    def test_no_reuse_plain(self):
        """No call to a plain server fails because tinyproxy closes after each, and never says so.

        So there is no reuse to count: it closes the connections on both of its sides.
        """
        client = self.client(self.plain)
        for _ in range(CALLS):
            self.assertEqual(client.chat("hi").meta.attempts, 1)
        self.assertEqual((self.plain.connections, len(self.plain.requests)), (CALLS, CALLS))


class Mitmproxy(Proxied, unittest.TestCase):
    """TLS interception: the proxy's own authority signs for every host."""

    hands_on = False  # it reads an answer to its end before it passes it on
    unreachable = "HTTP 502.*Try again later"

    @classmethod
    def command(cls):
        cls.trusted = os.path.join(cls.folder, "mitmproxy-ca-cert.pem")
        options = ["confdir=" + cls.folder, "ssl_verify_upstream_trusted_ca=" + CA_FILE,
                   "connection_strategy=lazy"]
        sets = [word for option in options for word in ("--set", option)]
        return ("mitmdump", "-q", "--listen-host", "127.0.0.1", "-p", str(cls.port),
                "--proxyauth", "user:" + PASSWORD, *sets)

    def test_reuse_plain(self):
        """A client's calls to a plain server share one connection, as the server has it.

        For each connection that mitmproxy accepts it opens one to the server, and keeps both.
        """
        for _ in range(2):
            with self.client(self.plain) as client:
                for _ in range(CALLS):
                    client.chat("hi")
        self.assertEqual((self.plain.connections, len(self.plain.requests)), (2, 2 * CALLS))

    def test_not_trusted(self):
        """Without its authority the inspection is found out, in words that say how to allow it."""
        with self.assertRaisesRegex(sc.APIConnectionError, "not trusted.*ca_file") as caught:
            self.client(self.tls, ca_file=CA_FILE, max_retries=2).chat("hi")
        self.assertEqual((caught.exception.attempts, self.tls.requests), (1, []))

    def test_from_environment(self):
        """SSL_CERT_FILE with its authority is enough."""
        with parts.environment(SSL_CERT_FILE=self.trusted):
            self.assertEqual(self.client(self.tls, ca_file=None).chat("hi").text, "whole")
