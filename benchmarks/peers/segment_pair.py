"""One end of a transfer of map outputs: cortex's own, or the barest Twisted pair that moves the same bytes.

    segment_pair.py send cortex|bare plain|tls FOLDER CERTIFICATES
    segment_pair.py receive cortex|bare plain|tls file|discard FOLDER CERTIFICATES PORT MAPS PARTITIONS
    segment_pair.py read cortex|bare FOLDER MAPS PARTITIONS

The sender says its port and ends with its standard input; both say what they took, in JSON. The bare
sender is a push producer that reads the run files whole on the reactor's thread; the bare receiver
writes what comes to one file, or drops it. What cortex adds to that: an answer to each request, the
checksum of every block, a file a segment, its footer checked, a rename.

``read`` is what a reduce does where it runs on the maps' own node, no socket between: cortex reads each
partition of each run file in place, block by block with its checksum; bare, a loop of `os.pread`.
"""

import json
import os
import resource
import sys
import time

from twisted.internet import reactor, ssl
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, wrapClientTLS
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.tls import TLSMemoryBIOFactory

CHUNK_BYTES = 256 << 10  # the fastest of 64 KiB to 1 MiB here, by little
JOB = "j0123456789ab"


def attempt(index: int) -> str:
    return f"{JOB}-m{index:06d}.0"


def processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def options(folder: str, name: str) -> dict:
    """TLS 1.3 both ways, as between nodes: each verifies the other's certificate."""
    with open(os.path.join(folder, f"{name}.pem"), "rb") as file:
        own = ssl.PrivateCertificate.loadPEM(file.read())
    with open(os.path.join(folder, "ca.pem"), "rb") as file:
        authority = ssl.Certificate.loadPEM(file.read())
    return {"own": own, "authority": authority}


def as_a_node() -> None:
    from cortex.transfer.buffers import keep_freed_buffers

    keep_freed_buffers()


def served(factory: Factory, wire: str, certificates: str) -> Factory:
    if wire == "plain":
        return factory
    loaded = options(certificates, "node")
    context = ssl.CertificateOptions(
        privateKey=loaded["own"].privateKey.original,
        certificate=loaded["own"].original,
        trustRoot=ssl.trustRootFromCertificates([loaded["authority"]]),
        raiseMinimumTo=ssl.TLSVersion.TLSv1_3,
    )
    return TLSMemoryBIOFactory(context, False, factory)


def dialled(port: int, wire: str, certificates: str):
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    if wire == "plain":
        return endpoint
    loaded = options(certificates, "node")
    context = ssl.optionsForClientTLS(
        "node.cortex",
        trustRoot=ssl.trustRootFromCertificates([loaded["authority"]]),
        clientCertificate=loaded["own"],
        extraCertificateOptions={"raiseMinimumTo": ssl.TLSVersion.TLSv1_3},
    )
    return wrapClientTLS(context, endpoint)


class BareSender(Protocol):
    def __init__(self, folder: str) -> None:
        self.paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
        self.file = None
        self.paused = True

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        self.resumeProducing()  # TLS: the handshake is over

    def resumeProducing(self) -> None:
        self.paused = False
        while not self.paused:
            data = self.file.read(CHUNK_BYTES) if self.file is not None else b""
            if data:
                self.transport.write(data)
            elif self.paths:
                self.file = open(self.paths.pop(0), "rb", buffering=0)  # noqa: SIM115
            else:
                self.transport.unregisterProducer()
                self.transport.loseConnection()
                return

    def pauseProducing(self) -> None:
        self.paused = True

    def stopProducing(self) -> None:
        self.paused = True


class BareReceiver(Protocol):
    def __init__(self, file, done) -> None:
        self.file, self.done = file, done
        self.received_bytes = 0

    def connectionMade(self) -> None:
        self.transport.write(b"?")

    def dataReceived(self, data: bytes) -> None:
        self.received_bytes += len(data)
        if self.file is not None:
            self.file.write(data)

    def connectionLost(self, reason=None) -> None:
        self.done(self.received_bytes)


def send(contender: str, wire: str, folder: str, certificates: str) -> None:
    if contender == "cortex":
        from cortex.storage.filesystem import LocalFilesystem
        from cortex.transfer.segment_server import SegmentServer

        as_a_node()
        server = SegmentServer(reactor, time.monotonic, LocalFilesystem(), lambda transport: "peer")
        server.register_job(JOB, folder)
        factory = server
    else:
        factory = Factory.forProtocol(lambda: BareSender(folder))
    listening = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(
        served(factory, wire, certificates)
    )
    started = 0.0

    def ready(port) -> None:
        nonlocal started
        started = processor_s()
        print(port.getHost().port, flush=True)

    def end() -> None:
        sys.stdin.read()
        print(json.dumps({"processor_s": processor_s() - started}), flush=True)
        os._exit(0)

    listening.addCallback(ready)
    reactor.callInThread(end)
    reactor.run(installSignalHandlers=False)


def discarding_filesystem():
    """Keeps of each file only what its footer is in: what is measured is all but the disk's part."""
    from cortex.storage.filesystem import LocalFilesystem

    kept = {}

    class File:
        def __init__(self, path: str) -> None:
            self.path, self.size_bytes, self.head, self.tail = path, 0, b"", b""

        def write_all(self, pieces) -> None:
            self.head = self.head or b"".join(pieces[:1])[:8]
            self.tail = (self.tail + b"".join(pieces[-2:]))[-65536:]
            self.size_bytes += sum(map(len, pieces))

        def pread(self, length: int, offset: int) -> bytes:
            if offset < 8:
                return self.head[:length]
            begin = offset - (self.size_bytes - len(self.tail))
            return self.tail[begin : begin + length]

        def close(self) -> None: ...

    class Discarding(LocalFilesystem):
        def create(self, path, mode=0o600):
            kept[path] = File(path)
            return kept[path]

        def open(self, path):
            return kept[path]

        def rename(self, old, new) -> None:
            del kept[old]

    return Discarding()


def receive(
    contender: str,
    wire: str,
    sink: str,
    folder: str,
    certificates: str,
    port: str,
    maps: str,
    partitions: str,
) -> None:
    begun = [0.0, 0.0]

    def done(size_bytes: int) -> None:
        seconds = time.perf_counter() - begun[0]
        found = {"bytes": size_bytes, "seconds": seconds, "processor_s": processor_s() - begun[1], **more()}
        print(json.dumps(found), flush=True)
        os._exit(0)

    def more() -> dict:
        return {}

    endpoint = dialled(int(port), wire, certificates)
    if contender == "cortex":
        from cortex.storage.filesystem import LocalFilesystem
        from cortex.transfer.fetch_queue import Wanted
        from cortex.transfer.segment_fetcher import SegmentFetcher

        as_a_node()
        landed = []
        wanted = [
            Wanted(JOB, "node", attempt(index), partition)
            for index in range(int(maps))
            for partition in range(int(partitions))
        ]

        def one(_wanted, size_bytes: int, _rows: int, _others) -> None:
            landed.append(size_bytes)
            if len(landed) == len(wanted):
                done(sum(landed))

        def failed(_wanted, error) -> None:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)

        fs = LocalFilesystem() if sink == "file" else discarding_filesystem()
        fetcher = SegmentFetcher(reactor, time.monotonic, fs, lambda holder: endpoint, one, failed)
        fetcher.open_job(JOB, folder)
        more = lambda: {"peak_bytes": fetcher.inflight.peak_bytes}  # noqa: E731

        def start() -> None:
            begun[:] = time.perf_counter(), processor_s()
            fetcher.fetch(wanted)
    else:
        file = open(os.path.join(folder, "received"), "wb", buffering=0) if sink == "file" else None  # noqa: SIM115

        def start() -> None:
            begun[:] = time.perf_counter(), processor_s()
            endpoint.connect(Factory.forProtocol(lambda: BareReceiver(file, done)))

    reactor.callWhenRunning(start)
    reactor.run(installSignalHandlers=False)


def read(contender: str, folder: str, maps: str, partitions: str) -> None:
    size_bytes = 0
    if contender == "cortex":
        from cortex.storage.filesystem import LocalFilesystem
        from cortex.storage.map_output_store import MapOutputStore

        store = MapOutputStore(LocalFilesystem(), folder)
        begun = time.perf_counter(), processor_s()
        for partition in range(int(partitions)):
            for index in range(int(maps)):
                for run in store.open(attempt(index), partition).runs:
                    for batch in run.batches(partition):
                        size_bytes += batch.nbytes
    else:
        begun = time.perf_counter(), processor_s()
        for name in sorted(os.listdir(folder)):
            file, at = os.open(os.path.join(folder, name), os.O_RDONLY), 0
            while data := os.pread(file, CHUNK_BYTES, at):
                at += len(data)
            size_bytes += at
            os.close(file)
    spent = {"seconds": time.perf_counter() - begun[0], "processor_s": processor_s() - begun[1]}
    print(json.dumps({"bytes": size_bytes, **spent}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    {"send": send, "receive": receive, "read": read}[sys.argv[1]](*sys.argv[2:])
