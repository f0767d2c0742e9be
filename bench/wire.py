#!/usr/bin/env python3
"""Hosts that are network namespaces of this machine, joined by wires of a given rate and delay, for kernels without netem.

    bench/wire.py RATE DELAY            e.g. bench/wire.py 1gbit 5     says what a wire really gives (bit/s, ms each way)

Each host has a TUN device. The kernel's tbf gives what it sends a rate; this program takes packets from one device, keeps them for the
delay, and puts them into the device of the host they are addressed to. Segmentation is left to the devices, as a network card does it:
packets of up to 64 KB pass here, of which TCP counts each 1,448 bytes as a segment. Needs root and iproute2.
"""
import collections, fcntl, json, os, select, signal, socket, statistics, struct, subprocess, sys, time

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
VNET_HEADER = 10
LARGEST_PACKET = 1 << 17
# A wire of 10 Gbit/s and 5 ms holds 6 MB; Linux lets a connection have 4 to 6 of itself.
BUFFERS = "4096 131072 67108864"


def run(*command):
    subprocess.run(command, check=True)


class Hosts:
    """`with Hosts(count, rate, delay) as hosts`: host i has the address 10.77.0.(i + 1). No rate: as fast as it goes."""

    def __init__(self, count, rate, delay):
        self.count, self.rate, self.delay = count, rate, delay

    def name(self, i):
        return f"ss-host-{i}"

    def address(self, i):
        return f"10.77.0.{i + 1}"

    def on(self, i, *command):
        """A command on a host, in words."""
        return ["ip", "netns", "exec", self.name(i), *command]

    def __enter__(self):
        self.remove()
        devices = [self.host(i) for i in range(self.count)]
        self.carrier = os.fork()
        if self.carrier == 0:
            carry(devices, self.delay)
        for device in devices:
            os.close(device)
        return self

    def __exit__(self, *_):
        os.kill(self.carrier, signal.SIGKILL)
        os.waitpid(self.carrier, 0)
        self.remove()

    def end(self):
        """Kills all that runs on the hosts."""
        for i in range(self.count):
            inside = subprocess.run(["ip", "netns", "pids", self.name(i)], capture_output=True, text=True)
            for process in inside.stdout.split():
                os.kill(int(process), signal.SIGKILL)

    def remove(self):
        self.end()
        for i in range(self.count):
            subprocess.run(["ip", "netns", "del", self.name(i)], capture_output=True)

    def host(self, i):
        name, wire = self.name(i), f"sswire{i}"
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", wire.encode(), flags))
        fcntl.ioctl(device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
        run("ip", "netns", "add", name)
        run("ip", "link", "set", wire, "netns", name)
        ip = ["ip", "-n", name]
        run(*ip, "link", "set", "lo", "up")
        run(*ip, "addr", "add", f"{self.address(i)}/24", "dev", wire)
        run(*ip, "link", "set", wire, "txqueuelen", "1000", "up")
        for which in "rmem", "wmem":
            run(*self.on(i, "sysctl", "-q", "-w", f"net.ipv4.tcp_{which}={BUFFERS}"))
        if self.rate:
            run("tc", "-n", name, "qdisc", "add", "dev", wire, "root", "tbf", "rate", self.rate, "burst", "256kb", "latency", "50ms")
        return device


def carry(devices, delay):
    """Carries packets between devices until the process is killed."""
    on_the_way = collections.deque()  # when to arrive, where, what: as all take as long, in order
    poll = select.poll()
    for device in devices:
        poll.register(device, select.POLLIN)
    while True:
        now = time.monotonic()
        while on_the_way and on_the_way[0][0] <= now:
            _, to, packet = on_the_way.popleft()
            try:
                os.write(to, packet)
            except OSError:
                pass  # a host that is not up any more, or takes no more: lost, as on a wire
        # Milliseconds are too coarse for the last one of a delay: it is spent asking.
        left = 1000 * (on_the_way[0][0] - now) if on_the_way else None
        for device, _ in poll.poll(left if left is None else max(0, int(left - 0.2))):
            for _ in range(16):
                try:
                    packet = os.read(device, LARGEST_PACKET)
                except BlockingIOError:
                    break
                # The last byte of an IPv4 packet's destination says which host.
                to = packet[VNET_HEADER + 19] - 1 if packet[VNET_HEADER] >> 4 == 4 else -1
                if 0 <= to < len(devices):
                    on_the_way.append((time.monotonic() + delay, devices[to], packet))


def measure(hosts, seconds=2.0):
    """What the wire between two hosts gives: bit/s of one TCP connection, of two in opposite directions (the mean of both), and half
    a round trip of a small message, in seconds."""
    here = os.path.abspath(__file__)
    listener = subprocess.Popen(hosts.on(1, sys.executable, here, "listen"), stdout=subprocess.PIPE)
    listener.stdout.readline()
    ask = lambda what: json.loads(
        subprocess.check_output(hosts.on(0, sys.executable, here, "ask", what, hosts.address(1), str(seconds)))
    )
    found = {"latency": ask("ping") / 2, "bits_one_way": ask("blast"), "bits_each_way": ask("both")}
    listener.kill()
    listener.wait()
    return found


def listen():
    """The side that answers."""
    server = socket.create_server(("", 7777))
    print("ready", flush=True)
    while True:
        peer, _ = server.accept()
        if os.fork() > 0:
            peer.close()
            continue
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        kind, seconds = peer.recv(1), struct.unpack("d", peer.recv(8))[0]
        if kind == b"p":
            while byte := peer.recv(1):
                peer.sendall(byte)
        elif kind == b"b":
            peer.sendall(struct.pack("d", swallow(peer, seconds)))
        else:
            blast(peer, seconds)
        os._exit(0)


def swallow(peer, seconds):
    """Bits a second that come, without the first quarter of the time."""
    buffer, begun, mark, count = bytearray(1 << 20), time.monotonic(), None, 0
    while (now := time.monotonic()) < begun + seconds:
        if mark is None and now > begun + seconds / 4:
            mark, count = now, 0
        count += peer.recv_into(buffer)
    return 8 * count / (time.monotonic() - mark)


def blast(peer, seconds):
    """Sends for a while and a little longer."""
    end, block = time.monotonic() + 1.2 * seconds, bytes(1 << 20)
    try:
        while time.monotonic() < end:
            peer.sendall(block)
    except OSError:
        pass


def connect(kind, host, seconds):
    peer = socket.create_connection((host, 7777))
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.sendall(kind + struct.pack("d", seconds))
    return peer


def ask(what, host, seconds):
    """The side that asks: seconds of a round trip, or bits a second."""
    if what == "ping":
        peer, times = connect(b"p", host, seconds), []
        for _ in range(100):
            begun = time.monotonic()
            peer.sendall(b"x")
            peer.recv(1)
            times.append(time.monotonic() - begun)
        return statistics.median(times)
    if what == "blast":
        return swallow(connect(b"s", host, seconds), seconds)
    to, back = connect(b"b", host, seconds), connect(b"s", host, seconds)
    sender = os.fork()
    if sender == 0:
        blast(to, seconds)
        os._exit(0)
    came = swallow(back, seconds)
    back.close()
    went = struct.unpack("d", to.recv(8, socket.MSG_WAITALL))[0]
    os.kill(sender, signal.SIGKILL)
    return (came + went) / 2


if __name__ == "__main__":
    if sys.argv[1:] == ["listen"]:
        listen()
    elif sys.argv[1:2] == ["ask"]:
        print(json.dumps(ask(sys.argv[2], sys.argv[3], float(sys.argv[4]))))
    elif len(sys.argv) == 3:
        with Hosts(2, None if sys.argv[1] == "none" else sys.argv[1], float(sys.argv[2]) / 1000) as hosts:
            print(json.dumps(measure(hosts)))
    else:
        sys.exit(__doc__)
